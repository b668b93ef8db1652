"""Checks that the dependencies work together: our import, mmcv's ops, configs that inherit, resuming, weights."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..common.dependencies import CHECKOUT, PACKAGES
from .finding import Finding, Status, pip, replace
from .packages import BY_NAME
from .probe_process import Outcome


def install_everything() -> str:
    """Return the command that installs everything in the tested releases."""
    checkout = (CHECKOUT / 'constraints.txt').is_file()
    if checkout and sys.prefix == sys.base_prefix:  # an environment of its own is better than the system's
        return f'make -C {shlex.quote(str(CHECKOUT))} setup'
    if checkout:
        return pip('install', '-c', str(CHECKOUT / 'constraints.txt'), f'{CHECKOUT}[lite]')
    return pip('install', *(package.tested for package in PACKAGES))


def any_broken(outcomes: Mapping[str, Outcome]) -> bool:
    """Tell whether a package cannot be imported; its own line has the command then."""
    return any(outcomes[package.module].error for package in PACKAGES)


def check_import(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that all of the package can be imported."""
    outcome = outcomes['shvit_det']
    if not outcome.error:
        yield Finding(Status.OK, f'{outcome.facts["version"]}, can be imported')
    else:
        command = '' if any_broken(outcomes) else install_everything()
        yield Finding(Status.FAIL, f'cannot be imported: {outcome.error}', command)


def check_ops(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that mmcv's ops work, and say whether they are compiled."""
    if outcomes['shvit_det'].error:
        return  # nothing can be said of them
    outcome = outcomes['ops']
    lite = replace(('mmcv', 'mmcv-lite', 'onedl-mmcv'), BY_NAME['mmcv'].tested)
    unloaded = [text for text in outcomes['shvit_det'].warnings if 'compiled ops' in text]
    if outcome.error:
        yield Finding(Status.FAIL, f'do not work: {outcome.error}', lite)
    elif outcome.facts['cuda']:
        yield Finding(Status.FAIL, f'work on a CPU only: {outcome.facts["cuda"]}', lite)
    elif unloaded:
        yield Finding(Status.WARN, f'replaced by torchvision: {unloaded[0].partition(", so that")[0]}', lite)
    else:
        yield Finding(Status.OK, 'not compiled; torchvision stands in' if outcome.facts['stand_in'] else 'compiled')


def check_kernels(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Say which kernels deployed models use on this processor, or why none."""
    outcome = outcomes['kernels']
    if outcomes['shvit_det'].error or outcome.error:
        return
    reason = outcome.facts['reason']
    found = f'none, deployed models use oneDNN: {reason}' if reason else f'for {outcome.facts["instruction_set"]}'
    yield Finding(Status.OK, found)


def check_step(step: str, good: str, causes: tuple[str, ...], outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that a step of the probe succeeds; where it fails, the tested releases of ``causes`` repair it."""
    if outcomes['shvit_det'].error:
        return
    if not (error := outcomes[step].error):
        yield Finding(Status.OK, good)
    else:
        command = pip('install', *(BY_NAME[cause].tested for cause in causes))
        yield Finding(Status.FAIL, error, '' if any_broken(outcomes) else command)


def check_weights(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that downloaded weights are what their names say."""
    outcome = outcomes['weights']
    if outcomes['shvit_det'].error:
        return
    if outcome.error:
        yield Finding(Status.FAIL, f'cannot be looked at: {outcome.error}')
        return
    files = outcome.facts['files']
    for path, wrong in files.items():
        if wrong:
            yield Finding(Status.FAIL, f'{path}: {wrong}', f'rm {shlex.quote(path)}')
    good = [Path(path).name for path, wrong in files.items() if not wrong]
    if good or not files:
        found = ', '.join(good) if good else f'none in {outcome.facts["folder"]}: downloaded when they are needed'
        yield Finding(Status.OK, found)
