"""The forms in which a source can be timed: prefixes such as ``deployed:`` change how this one subject is run."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from .runtimes import RUNTIMES, check_installed
from .settings import DTYPES, Settings

DEPLOYED, COMPILED, CHANNELS_LAST, PLAIN = 'deployed', 'compiled', 'channels_last', 'plain'
FORMS = (DEPLOYED, COMPILED, CHANNELS_LAST, PLAIN, *DTYPES, *RUNTIMES)
BACKBONES = ('timm', 'shvit')
PREFIX = re.compile(r'(\w[\w-]+):(?!:)')  # mmdet::a/config.py has two colons


def split_forms(named: str) -> tuple[list[str], str]:
    """Return the prefixes of what the user named, in their order and without colons, and the source after them.

    Raises:
        UsageError: If a prefix is unknown, stands twice, or does not go with another one or with the source.
    """
    forms: list[str] = []
    source = named
    while (match := PREFIX.match(source)) and match[1] not in BACKBONES and not Path(source).is_file():
        if match[1] not in FORMS:
            choices = ', '.join(f'{form}:' for form in (*FORMS, *BACKBONES))
            raise UsageError(f'no prefix {match[1]}: as in {named}, choose from {choices}')
        if match[1] in forms:
            raise UsageError(f'{named} has the prefix {match[1]}: twice')
        forms.append(match[1])
        source = source[match.end() :]
    _check_together(forms, source, named)
    return forms, source


def _check_together(forms: Sequence[str], source: str, named: str) -> None:
    dtypes = [form for form in forms if form in DTYPES]
    runtimes = [form for form in forms if form in RUNTIMES]
    for several in (dtypes, runtimes):
        if len(several) > 1:
            raise UsageError(f'{named} has both {several[0]}: and {several[1]}:, leave out one')
    if DEPLOYED in forms and PLAIN in forms:
        raise UsageError(f'{named} cannot be both {DEPLOYED}: and {PLAIN}:, leave out one')
    if runtimes:
        others = [form for form in forms if form not in runtimes + dtypes]
        if others:
            raise UsageError(f'{named}: {runtimes[0]}: compiles and lays out by itself, leave out {others[0]}:')
        if source.partition(':')[0] not in BACKBONES:
            raise UsageError(f'{named}: {runtimes[0]}: is for a backbone alone, timm:NAME or shvit:ARCH')


def settings_in(forms: Sequence[str], settings: Settings) -> Settings:
    """Return the settings of one subject, those of all with the changes that its prefixes make.

    What is asked of PyTorch for all subjects (its deployed form, compilation, layout) is not asked of other runtimes.

    Raises:
        UsageError: If these settings are not for this form, or a runtime is not installed.
    """
    dtype = next((form for form in forms if form in DTYPES), None)
    changes: dict[str, Any] = {} if dtype is None else dict(dtype=DTYPES[dtype])
    if DEPLOYED in forms:
        changes.update(deploy=True, convert=dtype is not None)
    if PLAIN in forms:
        changes.update(plain=True)
    if COMPILED in forms:
        changes.update(compile=settings.compile or 'default')
    if CHANNELS_LAST in forms:
        changes.update(channels_last=True)
    runtime = next((form for form in forms if form in RUNTIMES), None)
    if runtime is not None:
        changes.update(runtime=runtime, fold=True, deploy=False, compile=None, channels_last=False)
    own = replace(settings, **changes)
    if runtime is not None:
        kind = RUNTIMES[runtime]
        if own.device.type != 'cpu':
            raise UsageError(f'{runtime}: runs on the CPU, not on {own.device}')
        if own.dtype not in kind.dtypes:
            choices = ' or '.join(str(choice).removeprefix('torch.') for choice in kind.dtypes)
            raise UsageError(f'{runtime}: runs in {choices}, not in {str(own.dtype).removeprefix("torch.")}')
        check_installed(runtime)
    return own
