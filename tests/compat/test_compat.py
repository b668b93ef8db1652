"""What mmengine and mmcv need on today's torch and Python; the ops have a file of their own."""

import argparse
import fractions
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config import config as config_module
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from shvit_det import UsageError, on_import
from shvit_det.checkpoint.reading import read_content
from shvit_det.compat.formatted_configs import formatted, formatted_once
from shvit_det.compat.import_hooks import when_imported
from shvit_det.compat.torch_load import classes_allowed


def test_an_action_on_an_import_that_failed_is_tried_again():
    tried = []

    def fail_at_first(module):
        tried.append(module)
        if len(tried) == 1:
            raise ImportError('a part of it is missing')

    with pytest.raises(ImportError):
        when_imported('fractions', fail_at_first)
    for _ in range(3):
        when_imported('fractions', fail_at_first)
    assert tried == [fractions, fractions]


def test_a_config_is_formatted_once():
    config = Config(dict(a=dict(type='A', numbers=[1, 2]), b='text'))
    before, text = config_module.FormatCode, config.pretty_text
    with formatted_once():
        done = formatted.cache_info().misses
        assert [config.pretty_text for _ in range(3)] == [text] * 3
        assert formatted.cache_info().misses == done + 1
        config.a.numbers = [3]
        assert '3' in config.pretty_text and '1' not in config.pretty_text
    assert config_module.FormatCode is before


def saved(content: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def history(*values: float) -> HistoryBuffer:
    buffer = HistoryBuffer(max_length=100)
    for value in values:
        buffer.update(value)
    return buffer


class Attribute:
    """Pickles as a call of getattr, with which any function can be reached."""

    def __init__(self, *path: object) -> None:
        self.path = path

    def __reduce__(self):
        return getattr, self.path


class Command:
    def __reduce__(self):
        return os.system, ('echo never',)


@pytest.fixture(params=['mmengine', 'ours', 'a block'])
def load(request, tmp_path):
    """Every way of loading that has to read what mmengine saves."""

    def load_from_file(content: object) -> object:
        path = tmp_path / 'file.pth'
        path.write_bytes(saved(content).getvalue())
        return CheckpointLoader.load_checkpoint(str(path)) if request.param == 'mmengine' else read_content(path)

    def load_in_block(content: object) -> object:
        with classes_allowed():
            return torch.load(saved(content), weights_only=True)

    return load_in_block if request.param == 'a block' else load_from_file


@pytest.fixture(autouse=True)
def list_of_the_program():
    """Torch's list of allowed classes, which each test here has to leave as it was."""
    before = set(torch.serialization.get_safe_globals())
    yield before
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_history_of_the_log_survives_a_safe_load(load):
    loaded = load(dict(loss=history(1.0, 3.0)))['loss']
    assert loaded.mean(2) == 2.0 and loaded.max() == 3.0


@pytest.mark.parametrize(
    'content',
    [Attribute(HistoryBuffer, '__init__'), Attribute(torch.Tensor, 'mean'), Command()],
    ids=['method of the class', 'method of another class', 'command'],
)
def test_nothing_else_is_allowed_by_that(content, load):
    with pytest.raises((pickle.UnpicklingError, UsageError)):
        load(content)


def test_the_program_itself_is_allowed_nothing():
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(saved(history(1.0)), weights_only=True)


def test_what_the_program_allows_is_allowed_in_every_load_and_stays_so(load, list_of_the_program):
    """The same entries as ours too, which must not go when ours do, and getattr, under whose name we have another."""
    allowed = [getattr, argparse.Namespace, fractions.Fraction, HistoryBuffer, (np.ndarray, 'numpy.ndarray')]
    content = dict(a=Attribute(torch.Tensor, 'mean'), b=fractions.Fraction(1, 2), loss=history(2.0))
    with torch.serialization.safe_globals(allowed):
        for _ in range(2):
            loaded = load(content)
            assert loaded['a'] is torch.Tensor.mean and loaded['b'] == 0.5 and loaded['loss'].mean() == 2.0
            assert set(torch.serialization.get_safe_globals()) == {*list_of_the_program, *allowed}
            assert torch.load(saved(content['a']), weights_only=True) is torch.Tensor.mean


def test_what_the_program_allows_in_the_meantime_is_its_own_meaning():
    """As another thread of it may do; torch asks its list in an order that depends on the hashes."""
    for name in ('mean', 'sum', 'min'):
        with classes_allowed(), torch.serialization.safe_globals([getattr]):
            assert torch.load(saved(Attribute(torch.Tensor, name)), weights_only=True) is getattr(torch.Tensor, name)


def test_a_load_that_ends_leaves_the_others_what_they_need():
    first, second = classes_allowed(argparse.Namespace), classes_allowed(argparse.Namespace)
    content = dict(loss=history(1.0), args=argparse.Namespace(a=1))
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        assert torch.load(saved(content), weights_only=True)['args'].a == 1


def test_loads_in_many_threads(tmp_path):
    path = tmp_path / 'file.pth'
    torch.save(dict(loss=history(1.0), args=argparse.Namespace(a=1)), path)

    def load_often(load) -> list:
        return [load(path) for _ in range(20)]

    def as_the_program(path):
        return torch.load(saved(Attribute(torch.Tensor, 'mean')), weights_only=True)

    with torch.serialization.safe_globals([getattr]), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_often, [read_content, read_content, read_content, as_the_program]))
    assert [content['loss'].mean() for content in found[0] + found[1] + found[2]] == [1.0] * 60
    assert found[3] == [torch.Tensor.mean] * 20


def test_preparing_again_changes_nothing():
    before = CheckpointLoader.load_checkpoint.__func__
    on_import.install()
    assert CheckpointLoader.load_checkpoint.__func__ is before


def test_configs_of_the_package_can_be_named_as_bases():
    from mmengine.config.utils import MODULE2PACKAGE

    on_import.install()
    assert MODULE2PACKAGE['shvit_det'] == 'shvit_det'
    assert Config.fromstring("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'", '.py').train_cfg.max_epochs == 12


@pytest.mark.slow
def test_importing_prints_nothing_and_allows_nothing():
    code = """
import torch, torch.distributed.tensor, torch._dynamo
before = set(torch.serialization.get_safe_globals())
import shvit_det, mmdet.models
from mmengine.config import Config
from mmengine.config import config as config_module
assert set(torch.serialization.get_safe_globals()) == before
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@pytest.mark.slow
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
from mmcv.utils import ext_loader
assert ext_loader.pkgutil.find_loader('json') and ext_loader.pkgutil.find_loader('no_such_module') is None
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
