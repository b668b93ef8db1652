"""Files that must not be read: made to do harm, damaged, or something else; each refusal is one sentence."""

import collections
import fractions
import functools
import io
import json
import os
import pickle
import resource
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import NAME, mmdet2, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from torch import nn

from shvit_det import UsageError, load_checkpoint
from shvit_det.checkpoint.loading import check_checkpoint
from shvit_det.checkpoint.reading import read_content

# ----- hostile files


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(proof) -> dict[str, object]:
    """Return what would run code, by the name of what it needs for that; a command would leave the file ``proof``."""
    command = Call(os.system, f'touch {proof}')
    return {
        f'{os.name}.system': dict(state_dict=dict(a=torch.zeros(1)), meta=command),
        'builtins.eval': dict(model=dict(a=Call(eval, f'open({str(proof)!r}, "w")'))),
        'builtins.exec': [[[Call(exec, f'open({str(proof)!r}, "w")')]]],
        'builtins.range': dict(a=dict(b={1, 2}), c=Call(range, 3)),  # under another name in files
        'urllib.request.urlopen': dict(a=Call(urllib.request.urlopen, f'file:{proof}')),
        'torch.hub.load': dict(a=Call(torch.hub.load, str(proof), 'model')),
        'builtins.getattr': dict(a=Call(getattr, HistoryBuffer, '__init__')),
        'collections.deque': collections.deque([command]),
        'fractions.Fraction': dict(args=fractions.Fraction(1, 2)),
        'functools.partial': dict(a=functools.partial(os.system, f'touch {proof}')),
    }


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('needs', hostile('proof'))
def test_nothing_is_executed_and_what_was_wanted_is_named(needs, zipped, tmp_path):
    path = tmp_path / 'hostile.pth'
    torch.save(hostile(tmp_path / 'executed')[needs], path, _use_new_zipfile_serialization=zipped)
    sentence = refusal(read_content, path)
    assert str(path) in sentence and 'could run code' in sentence
    assert f'needs {needs},' in sentence
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_of_what_was_wanted_is_found_whatever_torch_says(tmp_path, monkeypatch):
    load = torch.load

    def load_with_other_words(*arguments, **options):
        try:
            return load(*arguments, **options)
        except pickle.UnpicklingError:
            raise pickle.UnpicklingError('something builtins GLOBAL set is wrong') from None

    monkeypatch.setattr(torch, 'load', load_with_other_words)
    for needs, content in hostile(tmp_path / 'executed').items():
        if needs != 'builtins.getattr':  # allowed for some arguments; it is our own error that names it
            torch.save(content, tmp_path / 'hostile.pth')
            assert f'needs {needs}, which could run code' in refusal(read_content, tmp_path / 'hostile.pth')


def test_a_name_of_any_length_and_letters_makes_one_sentence(tmp_path):
    for name in ('x' * 5000, 'a\x1b[31mb', 'ä'):
        path = tmp_path / 'hostile.pth'
        path.write_bytes(b''.join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {})))
        with path.open('ab') as file:
            file.write(f'\x80\x02cmodule\n{name}\n.'.encode('latin-1'))
        refusal(read_content, path)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_bare_pickle_is_not_executed(tmp_path):
    path = tmp_path / 'hostile.pth'
    path.write_bytes(pickle.dumps(hostile(tmp_path / 'executed')[f'{os.name}.system']))
    refusal(read_content, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / 'a.pth')
    assert 'TorchScript' in refusal(read_content, tmp_path / 'a.pth')


def test_a_legacy_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / 'a.pth', 'w') as archive:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            content = pickle.dumps(Call(os.system, f'touch {tmp_path / "executed"}'))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert 'tar archive' in refusal(read_content, tmp_path / 'a.pth')
    assert not (tmp_path / 'executed').exists()


@pytest.fixture
def little_memory():
    """Fail, and do not swap, if a file makes the process ask for two more gigabytes."""
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def rewritten(path, change):
    """Write a zip archive again; ``change`` may alter the info and the bytes of each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, 'w') as archive:
        for info, content in entries:
            archive.writestr(*change(info, content))


def test_a_zip_bomb_is_refused_by_the_sizes_it_declares(tmp_path, little_memory):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=torch.zeros(4)), path)

    def inflate(info, content):
        info.compress_type = zipfile.ZIP_DEFLATED
        return info, bytes(64 << 20) if info.filename.endswith('data/0') else content

    rewritten(path, inflate)
    assert path.stat().st_size < 1 << 20
    sentence = refusal(read_content, path)
    assert f'declare {64 << 20}'[:12] in sentence and str(path.stat().st_size) in sentence


def test_declared_sizes_in_the_directory_are_not_believed(tmp_path, little_memory):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=torch.zeros(4)), path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data[start + 20 : start + 28] = (0xF0000000).to_bytes(4, 'little') * 2  # both sizes of the first entry
    path.write_bytes(data)
    assert 'declare 40' in refusal(read_content, path)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_tensor_larger_than_its_storage_is_refused(zipped, tmp_path, little_memory):
    storage = torch.zeros(4)._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    for stride in (1, 0):
        huge = Call(rebuild, storage, 0, (10**12,), (stride,), False, collections.OrderedDict())
        torch.save(dict(a=huge), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
        refusal(read_content, tmp_path / 'a.pth')


def test_a_safetensors_header_of_huge_lengths_is_refused(tmp_path, little_memory):
    path = tmp_path / 'a.safetensors'
    path.write_bytes((2**60).to_bytes(8, 'little') + b'{"a":1}')
    assert 'declares' in refusal(read_content, path)
    header = json.dumps(dict(a=dict(dtype='F32', shape=[10**12], data_offsets=[0, 4 * 10**12]))).encode()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(16))
    refusal(read_content, path)


def test_numbers_of_an_old_numpy_are_read(tmp_path):
    """Before numpy 2 the same two functions were pickled under another module."""
    path = tmp_path / 'a.pth'
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(mmdet2(dict(a=torch.ones(1))), log=history), path)
    rewritten(path, lambda info, content: (info, content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')))
    content = read_content(path)
    assert content['meta']['hook_msgs']['best_score'] == np.float64(0.39)
    assert content['log'].mean() == 1.5


# ----- damaged files


@pytest.fixture(params=['zip', 'legacy', 'safetensors'])
def whole(request, state, tmp_path):
    path = tmp_path / 'whole.pth'
    if request.param == 'safetensors':
        save_file(state, path)
    else:
        torch.save(dict(model=state), path, _use_new_zipfile_serialization=request.param == 'zip')
    return path


def test_the_name_of_a_file_says_nothing_of_its_form(whole, backbone):
    for suffix in ('.safetensors', '.pth', '.bin', ''):
        check_checkpoint(backbone, whole.rename(whole.with_suffix(suffix)))
        whole.with_suffix(suffix).rename(whole)


def test_cut_off_files_are_refused(whole, backbone):
    check_checkpoint(backbone, whole)
    data = whole.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        whole.write_bytes(data[:size])
        assert 'cannot be read as a checkpoint' in refusal(check_checkpoint, backbone, whole)


def test_a_flipped_bit_in_an_archive_is_found(state, backbone, tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(model=state), path)
    data = bytearray(path.read_bytes())
    data[data.index(state[NAME].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    assert 'checksum' in refusal(check_checkpoint, backbone, path)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_damage_ends_in_anything_but_a_sentence(damage, tmp_path_factory):
    folder = tmp_path_factory.mktemp('damaged')
    for form in (True, False, None):
        path = folder / f'{form}.pth'
        state = dict(a=torch.arange(4.0), b=torch.ones(2, 2))
        if form is None:
            save_file(state, path)
        else:
            torch.save(mmdet2(state), path, _use_new_zipfile_serialization=form)
        content = bytearray(path.read_bytes())
        for place, value in damage:
            # torch's old format writes addresses into the file, so its length differs from run to run.
            content[place % len(content)] = value
        path.write_bytes(content)
        try:
            read_content(path)
        except UsageError as error:
            assert str(path) in str(error) and '\n' not in str(error)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'<!DOCTYPE html><html>Not Found</html>', 'web page'),
        (b'\n<html>', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'Git LFS'),
        (b'', 'empty'),
        (b'hello world, this is no checkpoint', 'cannot be read'),
    ],
)
def test_other_things_under_the_name_of_a_checkpoint(content, words, tmp_path, backbone):
    path = tmp_path / 'shvit_s1.pth'
    path.write_bytes(content)
    sentence = refusal(load_checkpoint, backbone, path)
    assert words in sentence and 'cannot be read as a checkpoint' in sentence


def test_a_zip_archive_of_something_else(tmp_path, backbone):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('thesis.txt', 'mine')
    assert 'not one of torch.save' in refusal(load_checkpoint, backbone, tmp_path / 'a.pth')
