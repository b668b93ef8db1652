"""Training runs in a process group of their own, with signals to all of its processes.

What the processes import stands here: test modules have no name by which another process could import them.
"""

import os
import re
import signal
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
from processes import context, every_process, process_tree, runs
from training_runs import SignalAt, run

from shvit_det.commands import cli
from shvit_det.training.hooks.termination import listening


def wait_for_end(processes: list) -> None:
    """Wait until the processes have ended; kill what stays."""
    deadline = time.monotonic() + 60
    while (alive := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, _ in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def group_of(pid: int) -> int:
    """Return the group of a process, 0 if it has just ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def send(receivers: list[int], number: int) -> None:
    """Signal processes, or groups of them as negative numbers, as another process does, and let that take effect."""
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(0.1)  # what is raised while the other side still forks is lost
        for receiver in receivers:
            os.kill(receiver, number)
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.2)


def send_to_group(pid: int, number: int) -> None:
    send([-os.getpgid(pid)], number)


def send_to_each(pid: int, number: int) -> None:
    send([process for process, _ in reversed(process_tree(pid))], number)


def train_in_group(folder: Path, hook: SignalAt, loading: dict, errors: Path) -> None:
    """Train the model of two weights as a tool does, in a group of processes of its own."""
    os.setpgid(0, 0)
    forkserver._forkserver._forkserver_pid = None  # the server of the tests is none of this run's
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored if the tests run under nohup
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT, 0o644), 2)
    sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)

    def main() -> None:
        with listening():
            run(folder, [hook], loading=loading, randomness=dict(seed=3)).train()

    cli.run(main)


def end_in_group(folder: Path, hook: SignalAt, **loading) -> tuple[int, str]:
    """Return the status of a run that is signalled by a hook, and what it wrote to stderr."""
    errors = folder.with_suffix('.stderr')
    process = context.Process(target=train_in_group, args=(folder, hook, dict(dict(num_workers=2), **loading), errors))
    process.start()
    process.join(120)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        raise TimeoutError(errors.read_text())
    wait_for_end([(pid, start) for pid, start in every_process() if group_of(pid) == process.pid])
    return process.exitcode, errors.read_text()


class Stuck:
    """A data set whose third sample never comes, and which lets no other Python code of its process run meanwhile."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            re.match('(a+)+b', 'a' * 60)
        return torch.full((1,), float(index))


def send_later(pid: int, number: int) -> None:
    threading.Timer(1, send_to_group, (pid, number)).start()
