"""Shared by all tests: one torch thread, and the folders with real photographs where they are there."""

import gc
import logging
import os
from collections import Counter
from pathlib import Path

import fewer_chores
import golden
import pytest
import torch
from checkpoint_files import TINY
from filelock import FileLock
from hypothesis import settings
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from paths import MASK_RCNN, photographs
from processes import tool

from shvit_det import SHViT  # importing it prepares the stack before any test imports mmdet

settings.register_profile('no deadline', deadline=None)  # a busy machine is no failure
settings.load_profile('no deadline')
USUAL_SECONDS = 3  # of a slow test whose mark says nothing else
torch.set_num_threads(1)
fewer_chores.leave_out()
os.environ['OMP_NUM_THREADS'] = '1'  # for the tools that run as processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that the processes end together."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker('slow'):
            seconds[item.path] += slow.args[0] if slow.args else USUAL_SECONDS
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Let the searches for garbage that mmengine starts for each data set pass over what has been imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='module', autouse=True)
def registry_scope():
    """Give mmengine the default scope back that it had: a runner leaves its own behind, for the next module to see."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope='session')
def trained_once(tmp_path_factory) -> Path:
    """A folder in which a tiny Mask R-CNN was trained once for all tests, in whichever process; not to be changed.

    The run is in ``run``, the data in ``data/sample``, and what the tool printed in ``output.txt``.
    """
    common = tmp_path_factory.getbasetemp()
    common = common.parent if 'PYTEST_XDIST_WORKER' in os.environ else common
    folder = common / 'trained_once'
    with FileLock(common / 'trained_once.lock'):
        if not (folder / 'output.txt').is_file():
            folder.mkdir(exist_ok=True)
            result = tool('train', MASK_RCNN, '--work-dir', 'run', '--seed', 0, cwd=folder)
            assert result.returncode == 0, result.stderr[-3000:]
            (folder / 'output.txt').write_text(result.stdout)
    return folder


@pytest.fixture
def coco_mini() -> Path:
    return photographs('coco_mini')


@pytest.fixture
def log(caplog):
    """The lines that were logged; mmengine's logger does not hand them on by itself."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def backbone() -> SHViT:
    """A tiny one."""
    return SHViT(TINY)


@pytest.fixture
def state(backbone) -> dict[str, torch.Tensor]:
    """A filled state dict of the tiny backbone."""
    return {name: golden.entry(name, value.shape) for name, value in backbone.state_dict().items()}
