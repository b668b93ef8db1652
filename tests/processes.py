"""Run the tools as processes without importing torch and mmdet anew, which takes several seconds, for each.

A server process imports them once; every tool runs in a fork of it, with its own working folder, arguments, output and
exit status.
"""

import multiprocessing
import os
import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(
    [
        'shvit_det.engine.train',
        'shvit_det.engine.evaluate',
        'shvit_det.data.sample',
        'shvit_det.timing.benchmark',
        'shvit_det.export.comparing',
        'shvit_det.export.exporting',
    ]
)


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def _main(path: str, arguments: list[str], cwd: str, output: str, errors: str) -> None:
    os.chdir(cwd)
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def tool(name: str, *arguments: object, cwd: Path, timeout: float = 300) -> Result:
    """Run ``tools/NAME.py`` with the arguments in a folder and return how it ended and what it printed."""
    output, errors = cwd.parent / f'{cwd.name}.stdout', cwd.parent / f'{cwd.name}.stderr'
    for file in (output, errors):
        file.unlink(missing_ok=True)
    path = str(ROOT / 'tools' / f'{name}.py')
    process = _context.Process(
        target=_main, args=(path, [str(a) for a in arguments], str(cwd), str(output), str(errors))
    )
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f'{name} {arguments} did not end in {timeout} s: {output.read_text()[-2000:]}')
    return Result(process.exitcode or 0, output.read_text(), errors.read_text())
