"""``shvit-det COMMAND ...`` and ``python -m shvit_det COMMAND ...``; torchrun starts ``-m shvit_det train``."""

import sys
from pathlib import Path

from .commands import COMMANDS, PROGRAM, run
from .version import __version__

USAGE_STATUS = 2


def main() -> None:
    """Run the command that the first argument names; if there is no such command, list all and exit with 2."""
    program = PROGRAM if Path(sys.argv[0]).stem == PROGRAM else 'python -m shvit_det'
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in ('-h', '--help'):
        print(usage(program))
    elif name == '--version':
        print(f'{PROGRAM} {__version__}')
    elif name in COMMANDS:
        sys.argv = [f'{program} {name}', *sys.argv[2:]]
        run(name)
    else:
        print(usage(program), file=sys.stderr)
        if name is not None:
            print(f'\nerror: no command {name!r}: choose from {", ".join(COMMANDS)}', file=sys.stderr)
        sys.exit(USAGE_STATUS)


def usage(program: str) -> str:
    """Return the list of the commands."""
    width = max(map(len, COMMANDS))
    commands = '\n'.join(f'  {name:{width}}  {what}' for name, what in COMMANDS.items())
    return (
        f'usage: {program} COMMAND ...\n'
        f'       {program} COMMAND --help\n'
        f'       {program} --version\n\n'
        f'SHViT backbones for MMDetection. Commands:\n{commands}'
    )


if __name__ == '__main__':
    main()
