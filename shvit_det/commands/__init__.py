"""The commands of ``shvit-det``: a module with a ``main()`` for each, which the file of its name in ``tools/`` runs.

``shvit_det`` looks here before it imports anything else, so this file needs the standard library only.
"""

import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = 'shvit-det'
COMMANDS = {
    'train': 'train a detector or a classifier',
    'test': 'test a checkpoint',
    'predict': 'predict pictures and videos',
    'benchmark': 'time a detector by part, or backbones',
    'export': 'write a model for another runtime',
    'compare-export': 'hold exported files against PyTorch',
    'check-data': 'look for what is wrong with annotations and images',
    'convert-checkpoint': 'write a checkpoint under other names',
    'make-sample': 'draw the sample set',
    'doctor': 'check the stack and the machine',
}
WITHOUT_STACK = ('doctor',)  # it has to run where nothing below us can be imported


def run(name: str) -> None:
    """Run a command with the arguments of this process and end as all of them do; see :func:`..engine.cli.run`."""
    main = importlib.import_module(f'{__name__}.{name.replace("-", "_")}').main
    if name in WITHOUT_STACK:
        main()
        return
    from . import cli

    cli.run(main)


def needs_stack(started: Sequence[str], in_full: Sequence[str]) -> bool:
    """Tell whether what this process does needs torch and the rest; the doctor and the list of commands do not.

    Args:
        started: ``sys.argv`` while ``shvit_det`` is imported. Python has ``'-m'`` in it in place of the module then.
        in_full: ``sys.orig_argv``.
    """
    if not started:
        return True
    program, *arguments = started
    module = in_full[-len(started)] if program == '-m' and len(in_full) >= len(started) else ''
    if module.endswith('shvit_det.doctor'):
        return False
    if Path(program).stem == PROGRAM or module.endswith('shvit_det'):
        return bool(arguments) and arguments[0] in COMMANDS and arguments[0] not in WITHOUT_STACK
    return True


def command_line() -> str:
    """Return what was typed to start this command, without the place of the tools."""
    program = Path(sys.argv[0])
    started = f'python tools/{program.name}' if program.suffix == '.py' else sys.argv[0]
    return f'{started} {shlex.join(sys.argv[1:])}'
