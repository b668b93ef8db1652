"""Does the stack work together with this package: ops, configs that inherit, resuming, downloaded weights?"""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..common.dependencies import PACKAGES
from .finding import Finding, Status, pip
from .imports import Outcome

LITE = next(package.tested for package in PACKAGES if package.name == 'mmcv')
CHECKOUT = Path(__file__).parents[2]


def whole_stack() -> str:
    """Return the command that installs everything in the tested releases."""
    checkout = (CHECKOUT / 'constraints.txt').is_file()
    if checkout and sys.prefix == sys.base_prefix:  # rather an environment of its own than into the system
        return f'make -C {shlex.quote(str(CHECKOUT))} setup'
    if checkout:
        return pip('install', '-c', str(CHECKOUT / 'constraints.txt'), f'{CHECKOUT}[lite]')
    return pip('install', *(package.tested for package in PACKAGES))


def check_import(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Can the package itself be imported?"""
    outcome = outcomes['shvit_det']
    if not outcome.error:
        yield Finding('shvit_det', Status.OK, f'{outcome.facts["version"]}, can be imported')
        return
    broken = [package.name for package in PACKAGES if outcomes[package.module].error]
    command = '' if broken else whole_stack()
    yield Finding('shvit_det', Status.FAIL, f'cannot be imported: {outcome.error}', command)


def check_ops(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Do mmcv's ops work, and are they its compiled ones?"""
    if outcomes['shvit_det'].error:
        return  # nothing can be said of them
    name, outcome = 'mmcv ops', outcomes['ops']
    lite = f'{pip("uninstall", "-y", "mmcv", "mmcv-lite", "onedl-mmcv")} && {pip("install", LITE)}'
    unloaded = [text for text in outcomes['shvit_det'].warnings if 'compiled ops' in text]
    if outcome.error:
        yield Finding(name, Status.FAIL, f'do not work: {outcome.error}', lite)
    elif outcome.facts['cuda']:
        yield Finding(name, Status.FAIL, f'work on a CPU only: {outcome.facts["cuda"]}', lite)
    elif unloaded:
        yield Finding(name, Status.WARN, f'stood in for by torchvision: {unloaded[0].partition(", so that")[0]}', lite)
    else:
        how = 'not compiled; torchvision stands in' if outcome.facts['stand_in'] else 'compiled'
        yield Finding(name, Status.OK, how)


def check_bases(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Are the configs found that ours inherit from?"""
    yield from _works('mmdet:: bases', outcomes, 'bases', 'are found', ('mmengine', 'mmdet'))


def check_resume(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Can a run's checkpoint be loaded without running code from it?"""
    yield from _works('resuming', outcomes, 'resume', 'checkpoints of runs load', ('mmengine', 'numpy'))


def check_weights(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Are there downloaded weights, and are they what their names say?"""
    outcome = outcomes['weights']
    if outcomes['shvit_det'].error:
        return
    if outcome.error:
        yield Finding('weights', Status.FAIL, f'cannot be looked at: {outcome.error}')
        return
    files = outcome.facts['files']
    for path, wrong in files.items():
        if wrong:
            yield Finding('weights', Status.FAIL, f'{path}: {wrong}', f'rm {shlex.quote(path)}')
    good = [Path(path).name for path, wrong in files.items() if not wrong]
    if good or not files:
        found = ', '.join(good) if good else f'none in {outcome.facts["folder"]}: downloaded when they are needed'
        yield Finding('weights', Status.OK, found)


def _works(
    name: str, outcomes: Mapping[str, Outcome], step: str, good: str, causes: tuple[str, ...]
) -> Iterator[Finding]:
    """Report a step that needs the whole stack; where it fails the tested releases of its causes mend it."""
    if outcomes['shvit_det'].error:
        return
    if not (error := outcomes[step].error):
        yield Finding(name, Status.OK, good)
        return
    tested = [package.tested for package in PACKAGES if package.name in causes]
    broken = any(outcomes[package.module].error for package in PACKAGES)
    yield Finding(name, Status.FAIL, error, '' if broken else pip('install', *tested))
