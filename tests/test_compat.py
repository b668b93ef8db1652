"""The cures for the stack below us; the ops have a file of their own."""

import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from shvit_det.compat import prepare


def through_a_file(content: object) -> object:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_history_of_the_log_survives_a_safe_load():
    history = HistoryBuffer(max_length=100)
    for value in (1.0, 3.0):
        history.update(value)
    loaded = through_a_file(dict(loss=history))['loss']
    assert loaded.mean(2) == 2.0 and loaded.max() == 3.0


class Attribute:
    """Pickles as a call of getattr, with which any function can be reached."""

    def __init__(self, *path: object) -> None:
        self.path = path

    def __reduce__(self):
        return getattr, self.path


class Command:
    def __reduce__(self):
        return os.system, ('echo never',)


@pytest.mark.parametrize(
    'content',
    [Attribute(HistoryBuffer, '__init__'), Attribute(torch.Tensor, 'mean'), Command()],
    ids=['method of the class', 'method of another class', 'command'],
)
def test_nothing_else_is_allowed_by_that(content):
    with pytest.raises(pickle.UnpicklingError):
        through_a_file(content)


def test_configs_of_the_package_can_be_named_as_bases():
    from mmengine.config.utils import MODULE2PACKAGE

    prepare()
    assert MODULE2PACKAGE['shvit_det'] == 'shvit_det'
    assert Config.fromstring("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'", '.py').train_cfg.max_epochs == 12


def test_importing_prints_nothing():
    code = 'import shvit_det, mmdet.models; from mmengine.config import Config'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_without_find_loader_of_pkgutil():
    """As on Python 3.14: mmengine and mmcv both ask it whether the compiled ops are there."""
    code = """
import pkgutil
if hasattr(pkgutil, 'find_loader'):
    del pkgutil.find_loader
import shvit_det
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.utils.dl_utils.misc import mmcv_full_available
assert check_ops_exist() and mmcv_full_available()
assert not hasattr(pkgutil, 'find_loader')
from shvit_det.compat.find_loader import find_loader
assert find_loader('json').get_code('json') and find_loader('no_such_module') is None
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
