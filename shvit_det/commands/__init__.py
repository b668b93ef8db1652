"""The commands of ``shvit-det``: a module with a ``main()`` for each.

The files in ``tools/`` run the same modules, in a checkout without an installation; ``doctor`` has no file there.

This file needs the standard library only, so that the list of commands and the doctor work where torch is broken.
"""

import importlib
import shlex
import sys
from pathlib import Path

PROGRAM = 'shvit-det'
COMMANDS = {
    'train': 'train a detector or a classifier',
    'init': 'write a config for your own data',
    'test': 'test a checkpoint',
    'predict': 'predict pictures and videos',
    'benchmark': 'time a detector by part, or backbones',
    'export': 'write a model for another runtime',
    'compare-export': 'compare exported files with PyTorch',
    'check-data': 'look for what is wrong with annotations and images',
    'browse': 'show data as training sees them, and their statistics',
    'convert-data': 'write a data set in another layout: COCO, YOLO, Pascal VOC, LabelMe',
    'convert-checkpoint': 'write a checkpoint under other names',
    'make-sample': 'draw the sample set',
    'doctor': 'check the installation and the machine',
}


def run(name: str) -> None:
    """Run a command with the arguments of this process, and end as :func:`.cli.run` says."""
    main = importlib.import_module(f'{__name__}.{name.replace("-", "_")}').main
    if name == 'doctor':  # it cannot use what the others share, which imports torch
        main()
        return
    from . import cli

    cli.run(main)


def command_line() -> str:
    """Return the command that was typed, without the folder of the tool."""
    program = Path(sys.argv[0])
    started = f'python tools/{program.name}' if program.suffix == '.py' else sys.argv[0]
    return f'{started} {shlex.join(sys.argv[1:])}'
