"""Run the tools as processes without importing torch and mmdet anew, which takes several seconds, for each.

A server process imports them once; every tool runs in a fork of it, with its own working folder, arguments, output and
exit status.
"""

import ctypes
import gc
import multiprocessing
import os
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
Process = tuple[int, int]  # its number, and when it began: numbers are used again
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS

context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(
    [
        'shvit_det.training.train',
        'shvit_det.evaluation.evaluate',
        'shvit_det.configuration.data_check',
        'shvit_det.data.sample',
        'shvit_det.timing.benchmark',
        'shvit_det.prediction.predict',
        'shvit_det.export.comparison',
        'shvit_det.export.detector_export',
        'mmdet.engine',
        'mmdet.visualization',
        'matplotlib.pyplot',
        'torch.utils.cpp_extension',  # mmengine's record of the environment
    ]
)


def mount(options: str, folder: str) -> None:
    """Put an empty disk in memory over a folder, for this process alone; what is written there is gone with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), 'cannot have mounts of its own')
    subprocess.run(['mount', '--make-rprivate', '/'], check=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def _main(path: str, arguments: list[str], cwd: str, output: str, errors: str, environment: dict[str, str]) -> None:
    gc.freeze()  # what the server has imported is no garbage, and need not be searched
    import fewer_chores  # mmengine, which the tests import later than this module

    fewer_chores.leave_out()
    os.chdir(cwd)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get('PYTHONPATH', '').split(os.pathsep))
    if limit := environment.get('FILE_LIMIT'):  # the largest file, in bytes; a stand-in for a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    if disk := environment.get('DISK'):  # with KEEP, what is on it in the end is copied there
        mount(disk, 'run')
    if environment.get('GROUP'):  # of its own, which can be signalled as a terminal or slurm does
        os.setpgid(0, 0)
    for number, name in ((1, output), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1, closefd=False) for number in (1, 2))
    sys.argv = [path, *arguments]
    status = 0
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    if keep := environment.get('KEEP'):
        shutil.copytree('run', keep)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Running:
    """A tool that runs. Its return code is negative if a signal ended it, like that of a subprocess."""

    def __init__(
        self,
        name: str | Path,
        *arguments: object,
        cwd: Path,
        environment: dict[str, str] | None = None,
        label: str = '',
    ) -> None:
        self._what = f'{name} {arguments}'
        self._files = [cwd.parent / f'{cwd.name}{label}.{kind}' for kind in ('stdout', 'stderr')]
        for file in self._files:
            file.unlink(missing_ok=True)
        path = str(name if isinstance(name, Path) else ROOT / 'tools' / f'{name}.py')
        self._process = context.Process(
            target=_main,
            args=(path, [str(a) for a in arguments], str(cwd), *map(str, self._files), environment or {}),
        )
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def read(self) -> str:
        return self._files[0].read_text() if self._files[0].is_file() else ''

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def tree(self) -> list[Process]:
        return process_tree(self._process.pid)

    def signal_group(self, number: int) -> None:
        """Signal the process, which was started with ``GROUP``, and all that descend from it."""
        os.killpg(self._process.pid, number)

    def wait_for(self, condition: Callable[[], object], timeout: float = 300) -> None:
        """Wait until a condition holds while the tool runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.alive or time.monotonic() > deadline:
                raise AssertionError(f'{self._what}: {self.finish(1)}')
            time.sleep(0.02)

    def finish(self, timeout: float = 300) -> Result:
        self._process.join(timeout)
        if self.alive:
            self._process.kill()
            raise TimeoutError(f'{self._what} did not end in {timeout} s: {self.read()[-2000:]}')
        output, errors = (file.read_text() if file.is_file() else '' for file in self._files)
        return Result(self._process.exitcode or 0, output, errors)


def tool(
    name: str | Path, *arguments: object, cwd: Path, timeout: float = 300, environment: dict[str, str] | None = None
) -> Result:
    """Run ``tools/NAME.py`` or another script in a folder; return how it ended and what it printed."""
    return Running(name, *arguments, cwd=cwd, environment=environment).finish(timeout)


def together(name: str, *arguments: object, cwd: Path, count: int = 2) -> list[Running]:
    """Start a tool in several processes with torch's variables, each by itself, as on as many machines."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE=str(count))
    return [
        Running(name, *arguments, cwd=cwd, environment=dict(common, RANK=str(rank)), label=f'.{rank}')
        for rank in range(count)
    ]


def parent_and_start(pid: int) -> tuple[int, int] | None:
    """Return the parent of a process and when it began, in ticks since the start of the machine; None if it is gone."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in 'ZX' else (int(fields[1]), int(fields[19]))


def parents_and_starts() -> dict[int, tuple[int, int]]:
    numbers = [int(path.name) for path in Path('/proc').iterdir() if path.name.isdigit()]
    return {pid: found for pid in numbers if (found := parent_and_start(pid))}


def every_process() -> list[Process]:
    return [(pid, start) for pid, (_, start) in parents_and_starts().items()]


def process_tree(root: int) -> list[Process]:
    """Return a process and all that descend from it; empty if it is gone."""
    known = parents_and_starts()
    tree = [root] if root in known else []
    for pid in tree:
        tree += [child for child, (parent, _) in known.items() if parent == pid]
    return [(pid, known[pid][1]) for pid in tree]


def runs(process: Process) -> bool:
    """Tell whether a process is there and not just waiting to be cleared away."""
    found = parent_and_start(process[0])
    return found is not None and found[1] == process[1]
