"""The libraries of the kernels: how they are compiled when the package is installed, and found when it runs."""

import os
import platform
import shutil
import stat
import sys

import pytest
import torch

from shvit_det import SHViT, deploy, kernels
from shvit_det.kernels import building, loading
from shvit_det.kernels.building import CannotBuildError, build_libraries, library_path
from shvit_det.kernels.loading import CannotLoadError, find_kernels

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='kernels are compiled on Linux')
SETS = tuple(building.INSTRUCTION_SETS.get(platform.machine(), ()))
COMPILED = [name for name in SETS if library_path(name).is_file()]
needs_libraries = pytest.mark.skipif(
    not COMPILED, reason='the kernels were not compiled when the package was installed'
)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Make a shell script the C++ compiler; it is asked for the machine first."""

    def make(text: str) -> None:
        path = tmp_path / 'compiler'
        machine = f'case "$*" in *-dumpmachine*) echo {platform.machine()}-linux-gnu; exit;; esac'
        path.write_text(f'#!/bin/sh\n{machine}\n{text}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('CXX', str(path))

    building.target_machine.cache_clear()
    yield make
    building.target_machine.cache_clear()


WRITES = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'


@linux
@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('echo "fatal error: no headers" >&2; exit 1', 'compiler: fatal error: no headers'),
        ('exit 3', 'compiler: status 3'),
        ('sleep 100', 'compiler has not ended after 0.5 seconds'),
        ('printf "\\377 error\\n" >&2; exit 1', 'error'),
    ],
)
def test_a_failing_compiler_is_named_and_leaves_nothing(compiler, monkeypatch, tmp_path, text, reason):
    compiler(text)
    monkeypatch.setattr(building, 'TIMEOUT', 0.5 if 'sleep' in text else 30)
    with pytest.raises(CannotBuildError, match=reason):
        build_libraries(tmp_path / 'made')
    assert not list((tmp_path / 'made').iterdir())


@linux
def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv('CXX', 'nosuch-compiler')
    with pytest.raises(CannotBuildError, match=r'no C\+\+ compiler \(nosuch-compiler\)'):
        build_libraries(tmp_path)


@linux
@needs_libraries
def test_a_wheel_takes_what_has_been_compiled_from_the_same_sources(monkeypatch, tmp_path):
    building.copy_libraries(tmp_path / 'taken')
    assert {path.name for path in (tmp_path / 'taken').iterdir()} == {library_path(name).name for name in COMPILED}
    monkeypatch.setattr(building, 'digest_of_sources', lambda: 'of other sources')
    building.copy_libraries(tmp_path / 'stale')
    assert not list((tmp_path / 'stale').iterdir())


@linux
def test_another_kind_of_machine(compiler, monkeypatch, tmp_path):
    compiler('exit 1')
    monkeypatch.setattr(building, 'INSTRUCTION_SETS', {'s390x': {}})
    with pytest.raises(CannotBuildError, match='only for s390x'):
        build_libraries(tmp_path)


def test_another_system(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with pytest.raises(CannotBuildError, match='Linux'):
        build_libraries(tmp_path)


@linux
def test_a_folder_that_cannot_be_written(compiler, tmp_path):
    compiler(WRITES)
    (tmp_path / 'file').touch()
    with pytest.raises(CannotBuildError, match=f'{tmp_path}/file'):
        build_libraries(tmp_path / 'file')


@linux
@pytest.mark.skipif(not SETS, reason='there are no kernels for this kind of machine')
def test_what_is_there_is_compiled_again_when_sources_have_changed(compiler, monkeypatch, tmp_path):
    folder = tmp_path / 'made'
    compiler(f'echo call >> {tmp_path}/calls; digest="$*"; {WRITES}; echo "$digest" > "$2"')
    made = build_libraries(folder)
    assert made == [library_path(name, folder) for name in SETS]
    for path in made:  # a library holds the digest of its sources
        path.write_text(building.digest_of_sources())
    (tmp_path / 'calls').unlink()
    assert build_libraries(folder) == made and not (tmp_path / 'calls').exists()
    monkeypatch.setattr(building, 'digest_of_sources', lambda: 'others')
    build_libraries(folder)
    assert len((tmp_path / 'calls').read_text().split()) == 3 * len(SETS)
    assert sorted(folder.iterdir()) == sorted(made)


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Libraries are looked for in an empty folder."""
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(loading, 'library_path', lambda name: library_path(name, tmp_path))
    kernels.load.cache_clear()
    yield tmp_path
    kernels.load.cache_clear()


def fallbacks(log) -> list[str]:
    return [record.getMessage() for record in log.records if 'oneDNN is used instead' in record.getMessage()]


def test_without_kernels_onednn_is_used(anew, log):
    deployed = deploy(SHViT('s1').eval())
    assert kernels.load() is None
    (line,) = fallbacks(log)
    assert 'none were compiled' in line or 'there are none' in line
    with torch.no_grad():
        assert len(deployed(torch.zeros(1, 3, 64, 64))) == 3


@needs_libraries
def test_a_damaged_library_is_named(anew, log):
    for name in SETS:
        library_path(name, anew).write_text('no library')
    assert kernels.load() is None
    assert f'{anew}' in fallbacks(log)[0] and 'cannot be loaded' in fallbacks(log)[0]


@needs_libraries
def test_a_library_of_other_sources_is_not_used(anew, monkeypatch, log):
    for name in COMPILED:
        shutil.copy(library_path(name), anew)
    monkeypatch.setattr(loading, 'digest_of_sources', lambda: 'others')
    assert kernels.load() is None
    assert 'other sources' in fallbacks(log)[0] and 'make setup' in fallbacks(log)[0]
    monkeypatch.setattr(loading, 'digest_of_sources', lambda: None)  # a wheel has no sources
    assert find_kernels().dtypes


@pytest.mark.skipif(not SETS, reason='there are no kernels for this kind of machine')
def test_an_instruction_set_can_be_chosen(monkeypatch):
    with pytest.raises(CannotLoadError, match=f'nosuch: choose one of 0, 1, {", ".join(SETS)}'):
        find_kernels('nosuch')
    for name in COMPILED:
        try:
            found = find_kernels(name)
        except CannotLoadError as error:
            assert str(error) == f'this processor does not have {name}'
        else:
            assert found.instruction_set == name and found.panel % 4 == 0


@needs_libraries
def test_only_what_the_processor_has_is_chosen(monkeypatch):
    """On a processor that lacks the faster sets, the next one is taken."""
    import ctypes

    original = ctypes.CDLL

    def lacking(path, *arguments, **keywords):
        library = original(path, *arguments, **keywords)
        if path.endswith(f'.{SETS[0]}.so'):
            library.shvit_runs_here = lambda: 0
        return library

    monkeypatch.setattr(loading.ctypes, 'CDLL', lacking)
    if len(COMPILED) > 1:
        try:
            assert find_kernels().instruction_set != SETS[0]
        except CannotLoadError as error:
            assert 'does not have' in str(error)
    with pytest.raises(CannotLoadError, match='this processor does not have'):
        find_kernels(SETS[0])


@needs_libraries
@pytest.mark.slow(60)
@pytest.mark.parametrize('name', COMPILED)
def test_the_tests_of_layers_hold_for_every_instruction_set(name):
    """Those of the fastest one run anyway; here they run once more in processes that were told another."""
    import subprocess

    from paths import ROOT

    fastest = kernels.load()
    if fastest is not None and fastest.instruction_set == name:
        pytest.skip('all other tests use this one')
    try:
        find_kernels(name)
    except CannotLoadError as error:
        pytest.skip(str(error))
    tests = ROOT / 'tests' / 'deployment' / 'test_kernels.py'
    command = [sys.executable, '-m', 'pytest', '-q', '-n', '0', '-x', '-p', 'no:cacheprovider', str(tests)]
    environment = dict(os.environ, **{kernels.SWITCH: name})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:]
