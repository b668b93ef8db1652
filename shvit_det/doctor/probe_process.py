"""Run :mod:`.probe` in a process of its own, and again after each step that ends that process."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.dependencies import PACKAGES
from .probe import STEPS as MORE_THAN_IMPORTS

STEPS = tuple(dict.fromkeys([*(package.module for package in PACKAGES), *MORE_THAN_IMPORTS]))
SOURCE = Path(__file__).with_name('probe.py')
TIMEOUT_S = 300.0  # from a slow disk the imports of torch and mmdet take more than a minute


@dataclass(frozen=True)
class Outcome:
    """How a step of the probe ended."""

    error: str = ''  # what was raised, or how the process ended; empty if all went well
    facts: dict[str, Any] = field(default_factory=dict)  # what the step found
    missing: str | None = None  # the module that was not found, if that was it
    warnings: Sequence[str] = ()  # what it warned of
    tried: bool = True  # False if the process of the probe could not be started


def probe(steps: Sequence[str] = STEPS, timeout_s: float = TIMEOUT_S) -> dict[str, Outcome]:
    """Return the outcome of every step; after one that ended the process the others go on in a new one."""
    outcomes: dict[str, Outcome] = {}
    while remaining := [step for step in steps if step not in outcomes]:
        try:
            ended, lines = _run(remaining, timeout_s)
        except OSError as error:  # a Python that may not be run again, as another user's
            untried = Outcome(f'{sys.executable} cannot be started: {error.strerror}', tried=False)
            return {**outcomes, **dict.fromkeys(remaining, untried)}
        for fields in map(json.loads, lines):
            step = fields.pop('step')
            if fields:
                outcomes[step] = Outcome(**fields)
        if unfinished := [step for step in remaining if step not in outcomes]:
            outcomes[unfinished[0]] = Outcome(f'it {ended}')  # if it ended between two steps, the next gets the blame
    return outcomes


def _run(steps: list[str], timeout_s: float) -> tuple[str, list[str]]:
    """Return how the probe ended and the complete lines that it wrote."""
    # By -c and not as a file: the folder of a file would be searched for modules, before all others.
    command = [sys.executable, '-c', SOURCE.read_text(encoding='utf-8'), *steps]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=timeout_s)
        output, status = result.stdout, result.returncode
        ended = f'ended Python with status {status}' if status >= 0 else f'ended Python by {_signal(-status)}'
    except subprocess.TimeoutExpired as expired:
        output, ended = expired.stdout or b'', f'did not end in {timeout_s:g} s'
    text = output.decode(errors='replace')
    return ended, text[: text.rfind('\n') + 1].splitlines()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f'signal {number}'
