"""What a benchmark says of the machine: everything that matters, nothing private."""

import getpass
import json
import os
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from simulated_machine import machine_of

import shvit_det
from shvit_det.common import environment
from shvit_det.common.environment import describe_environment
from shvit_det.compat import mmcv_ops

CPU = torch.device('cpu')
X86 = """processor\t: {0}
model name\t: An x86  CPU @ 2.20GHz
cpu MHz\t\t: {1}
flags\t\t: fpu sse avx2 avx512f amx_tile amx_int8 avx512_vnni
"""
ARM = """processor\t: 0
Features\t: fp asimd evtstrm sve bf16
CPU part\t: 0xd40
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that is the whole PATH."""
    folder = tmp_path / 'programs'
    folder.mkdir()
    monkeypatch.setenv('PATH', str(folder))
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)


def texts(value):
    """All strings in a description, keys too."""
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str) else []


def test_it_is_json_and_tells_what_matters():
    threads = torch.get_num_threads()
    description = describe_environment(CPU)
    assert json.loads(json.dumps(description)) == description
    assert description['device'] == 'cpu' and description['gpu'] is None
    assert description['torch']['threads'] == threads
    assert 1 <= description['cpu']['usable_cores'] <= description['cpu']['logical_cores']
    assert description['memory_gib'] > 0.5
    assert len(description['load_average']) == 3
    assert description['versions']['torch'] == metadata.version('torch')
    assert description['versions']['shvit_det'] == shvit_det.__version__
    assert description['mmcv_ops'] == ('stand-in' if mmcv_ops.is_stand_in() else 'compiled')


def test_nothing_private_is_in_it():
    description = describe_environment(CPU)
    secrets = {socket.gethostname(), getpass.getuser(), Path.cwd().name, Path.home().name} - {'shvit_det'}  # a checkout
    for text in texts(description):
        assert not Path(text).is_absolute() and os.sep not in text
        assert text not in secrets


def test_an_x86_processor(tmp_path, monkeypatch):
    cpuinfo = tmp_path / 'cpuinfo'
    cpuinfo.write_text('\n'.join([X86.format(0, '1800.5'), X86.format(1, '3100.0')]))
    for core, maximum in enumerate(('3500000', '4100000')):
        (tmp_path / f'cpu{core}' / 'cpufreq').mkdir(parents=True)
        (tmp_path / f'cpu{core}' / 'cpufreq' / 'cpuinfo_max_freq').write_text(f'{maximum}\n')
    monkeypatch.setattr(environment, 'CPUINFO', cpuinfo)
    monkeypatch.setattr(environment, 'CPUFREQ', tmp_path)
    monkeypatch.setattr(environment.platform, 'system', lambda: 'Linux')
    cpu = describe_environment(CPU)['cpu']
    assert cpu['model'] == 'An x86  CPU @ 2.20GHz'
    assert cpu['instruction_sets'] == ['avx2', 'avx512f', 'avx512_vnni', 'amx_int8']
    assert (cpu['clock_mhz'], cpu['clock_max_mhz']) == (3100.0, 4100.0)


def test_an_arm_processor(tmp_path, monkeypatch):
    cpuinfo = tmp_path / 'cpuinfo'
    cpuinfo.write_text(ARM)
    (tmp_path / 'cpu0' / 'cpufreq').mkdir(parents=True)
    (tmp_path / 'cpu0' / 'cpufreq' / 'scaling_cur_freq').write_text('2600000\n')
    monkeypatch.setattr(environment, 'CPUINFO', cpuinfo)
    monkeypatch.setattr(environment, 'CPUFREQ', tmp_path)
    monkeypatch.setattr(environment.platform, 'system', lambda: 'Linux')
    cpu = describe_environment(CPU)['cpu']
    assert cpu['instruction_sets'] == ['neon', 'sve', 'bf16']
    assert (cpu['model'], cpu['clock_mhz'], cpu['clock_max_mhz']) == (None, 2600.0, None)


def test_a_mac(tmp_path, monkeypatch, programs):
    write_program(programs / 'sysctl', 'test "$2" = machdep.cpu.brand_string && echo Apple M9')
    monkeypatch.setattr(environment, 'CPUINFO', tmp_path / 'absent')
    monkeypatch.setattr(environment, 'CPUFREQ', tmp_path / 'absent')
    monkeypatch.setattr(environment.platform, 'system', lambda: 'Darwin')
    monkeypatch.setattr(environment.platform, 'release', lambda: '23.5.0')
    monkeypatch.setattr(environment.platform, 'machine', lambda: 'arm64')
    machine_of(tmp_path, monkeypatch, {}, count=8)
    description = describe_environment(CPU)
    assert description['os'] == 'Darwin 23.5.0'
    assert description['cpu']['model'] == 'Apple M9' and description['cpu']['instruction_sets'] == ['neon']
    assert description['cpu']['usable_cores'] == 8 and description['cpu']['clock_mhz'] is None


def test_the_builder_of_the_system_is_left_out(monkeypatch):
    monkeypatch.setattr(environment.platform, 'system', lambda: 'Linux')
    monkeypatch.setattr(environment.platform, 'release', lambda: '6.8.12-41-somebodys-cloud')
    assert describe_environment(CPU)['os'] == 'Linux 6.8.12'


GPU_ANSWER = '550.10, 1410, 1980, [N/A], 2619'


@pytest.mark.parametrize(
    'script, driver, clocks',
    [
        (f'echo "{GPU_ANSWER}"', '550.10', [1410.0, 1980.0, None, 2619.0]),
        ('echo no devices were found; exit 6', None, [None] * 4),
        (None, None, [None] * 4),
    ],
)
def test_a_gpu(script, driver, clocks, monkeypatch, programs):
    properties = SimpleNamespace(name='Some GPU', total_memory=80 * 2**30, uuid='12-34')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    if script:
        write_program(programs / 'nvidia-smi', f'case "$*" in *clocks.max.sm*--id=GPU-12-34) {script};; esac')
    gpu = describe_environment(torch.device('cuda', 0))['gpu']
    assert (gpu['model'], gpu['memory_gib'], gpu['driver']) == ('Some GPU', 80.0, driver)
    names = ('sm_clock_mhz', 'sm_clock_max_mhz', 'memory_clock_mhz', 'memory_clock_max_mhz')
    assert [gpu[name] for name in names] == clocks
    json.dumps(gpu)


def test_other_distributions_of_a_package_are_named(tmp_path, monkeypatch):
    for distribution, module, version in (('onedl-mmcv', 'mmcv', '2.3'), ('onedl-mmdetection', 'mmdet', '3.4')):
        folder = tmp_path / f'{distribution.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n')
        (folder / 'top_level.txt').write_text(f'{module}\n')
    monkeypatch.syspath_prepend(tmp_path)
    versions = describe_environment(CPU)['versions']
    assert versions['mmcv'] == 'onedl-mmcv 2.3' and versions['mmdet'] == 'onedl-mmdetection 3.4'
    assert versions['mmengine'] == metadata.version('mmengine')


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, 'PACKAGES', ('no_such_package',))
    assert describe_environment(CPU)['versions']['no_such_package'] is None


def git(tree: Path, *arguments: str) -> str:
    identity = ['-c', 'user.name=A', '-c', 'user.email=a@example.org', '-c', 'commit.gpgsign=false']
    command = ['git', '-C', str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / 'tree').mkdir()
    git(tmp_path / 'tree', 'init')
    (tmp_path / 'tree' / 'file.py').write_text('1')
    git(tmp_path / 'tree', 'add', '.')
    git(tmp_path / 'tree', 'commit', '-m', 'one')
    monkeypatch.setattr(environment, 'CHECKOUT', tmp_path / 'tree')
    return tmp_path / 'tree'


def test_the_source_is_a_commit_and_its_changes(checkout):
    commit = git(checkout, 'rev-parse', 'HEAD')
    (checkout / 'benchmark.json').write_text('{}')  # what a run leaves is no change
    assert describe_environment(CPU)['source'] == {'commit': commit, 'changed': False}
    (checkout / 'file.py').write_text('2')
    assert describe_environment(CPU)['source'] == {'commit': commit, 'changed': True}


def test_a_package_inside_another_checkout_has_no_source(checkout, monkeypatch):
    (checkout / 'site-packages').mkdir()
    monkeypatch.setattr(environment, 'CHECKOUT', checkout / 'site-packages')
    assert describe_environment(CPU)['source'] is None


def test_without_git_there_is_no_source(checkout, programs):
    assert describe_environment(CPU)['source'] is None
