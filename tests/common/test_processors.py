"""How many processors there are for a process, and how many threads the tools then use."""

import pytest
import torch
from simulated_machine import machine_of

from shvit_det.commands import cli
from shvit_det.common.processors import usable_processors

V1 = '12:memory:/docker/7f\n4:cpuacct,cpu:/docker/7f\n0::/docker/7f'
CASES = {
    'no control groups': ({}, 64),
    'no limit': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': 'max 100000'}, 64),
    'a container': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '200000 100000'}, 2),
    'a part of a processor': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '350000 100000'}, 4),
    'less than one': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '20000 100000'}, 1),
    'more than there are': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': '9900000 100000'}, 64),
    'a group of a machine': (
        {'proc/self/cgroup': '0::/system.slice/run.service', 'sys/fs/cgroup/system.slice/run.service/cpu.max': '3 1'},
        3,
    ),
    'a group around it has less': (
        {
            'proc/self/cgroup': '0::/a/b/c',
            'sys/fs/cgroup/a/b/c/cpu.max': 'max 100000',
            'sys/fs/cgroup/a/b/cpu.max': '800000 100000',
            'sys/fs/cgroup/a/cpu.max': '500000 100000',
        },
        5,
    ),
    'a group outside of the container': ({'proc/self/cgroup': '0::/../x', 'sys/fs/cgroup/cpu.max': '200000 100000'}, 2),
    'version 1 in a container': (
        {
            'proc/self/cgroup': V1,
            'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '250000',
            'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000',
        },
        3,
    ),
    'version 1 outside': (
        {
            'proc/self/cgroup': V1,
            'sys/fs/cgroup/cpuacct,cpu/cpu.cfs_quota_us': '-1',
            'sys/fs/cgroup/cpuacct,cpu/cpu.cfs_period_us': '100000',
            'sys/fs/cgroup/cpuacct,cpu/docker/7f/cpu.cfs_quota_us': '100000',
            'sys/fs/cgroup/cpuacct,cpu/docker/7f/cpu.cfs_period_us': '50000',
            'sys/fs/cgroup/memory/docker/7f/cpu.cfs_quota_us': '50000',  # no file of this hierarchy
        },
        2,
    ),
    'files that say nothing': ({'proc/self/cgroup': '0::/', 'sys/fs/cgroup/cpu.max': ''}, 64),
}


@pytest.mark.parametrize('case', CASES)
def test_a_quota_counts_where_it_is_less_than_the_processors(case, tmp_path, monkeypatch):
    files, expected = CASES[case]
    machine_of(tmp_path, monkeypatch, files)
    assert usable_processors() == expected


def test_what_python_says_where_there_is_no_quota(tmp_path, monkeypatch):
    """The best answer that this Python and this system have."""
    machine_of(tmp_path, monkeypatch, {}, count=7)
    assert usable_processors() == 7
    monkeypatch.delattr('os.process_cpu_count')
    monkeypatch.setattr('os.sched_getaffinity', lambda process: {1, 3, 5}, raising=False)
    assert usable_processors() == 3
    monkeypatch.delattr('os.sched_getaffinity')
    monkeypatch.setattr('os.cpu_count', lambda: 11)
    assert usable_processors() == 11
    monkeypatch.setattr('os.cpu_count', lambda: None)
    assert usable_processors() == 1


@pytest.fixture
def four_threads(monkeypatch):
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('named', [None, 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'])
def test_tools_use_no_more_threads_than_there_are_processors(named, four_threads, tmp_path, monkeypatch, capsys):
    machine_of(tmp_path, monkeypatch, CASES['a container'][0])
    if named:
        monkeypatch.setenv(named, '4')
    cli.run(lambda: print(torch.get_num_threads()))
    output, errors = capsys.readouterr()
    assert output == ('4\n' if named else '2\n')
    assert errors == ('' if named else '2 of 4 threads, since this process may use no more processors: '
                      'OMP_NUM_THREADS=4 keeps them\n')  # fmt: skip


def test_a_tool_that_is_told_a_number_of_threads_uses_it(four_threads, tmp_path, monkeypatch, capsys):
    """As ``--threads`` does, which is read after."""
    machine_of(tmp_path, monkeypatch, CASES['a container'][0])
    cli.run(lambda: torch.set_num_threads(3))
    assert torch.get_num_threads() == 3


def test_fewer_threads_than_processors_stay(four_threads, tmp_path, monkeypatch, capsys):
    machine_of(tmp_path, monkeypatch, {}, count=8)
    cli.run(lambda: None)
    assert torch.get_num_threads() == 4 and capsys.readouterr().err == ''
