"""What a check found, and the commands that are printed under it."""

import enum
import importlib.util
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path


class Status(enum.Enum):
    """Only FAIL makes the doctor fail."""

    OK = 'OK'
    WARN = 'WARN'
    FAIL = 'FAIL'


@dataclass(frozen=True)
class Finding:
    """One line of the report, without the name of the check."""

    status: Status
    found: str  # what was found, in a few words
    # what repairs it, or installs what is optional; empty where nothing has to be repaired, or where the command of
    # another finding does it
    command: str = ''


def python() -> str:
    """Return how this Python is called: by its path, unless it is what ``python`` means in the shell."""
    usual = shutil.which('python')
    return 'python' if usual and Path(usual).parent == Path(sys.executable).parent else shlex.quote(sys.executable)


def pip(action: str, *arguments: str) -> str:
    """Return the command that runs pip for this Python, or uv where there is no pip."""
    quoted = ' '.join(shlex.quote(argument) for argument in arguments)
    if sys.prefix == sys.base_prefix and Path(sysconfig.get_path('stdlib'), 'EXTERNALLY-MANAGED').exists():
        return f'{python()} -m venv .venv && .venv/bin/python -m pip {action} {quoted}'  # pip refuses the system's
    if importlib.util.find_spec('pip') is not None:
        return f'{python()} -m pip {action} {quoted}'
    if shutil.which('uv'):
        options = f'--python {shlex.quote(sys.executable)}'
        return f'uv pip {action} {options} {quoted}'.replace(' -y ', ' ')
    return f'{python()} -m ensurepip && {python()} -m pip {action} {quoted}'


def replace(old: tuple[str, ...], *new: str) -> str:
    """Return the command that uninstalls packages and installs others."""
    return f'{pip("uninstall", "-y", *old)} && {pip("install", *new)}'
