"""Run the checks, and write what they found as lines or as JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from ..common.dependencies import PACKAGES
from . import gpu, machine, packages, stack_checks
from .finding import Finding, Status
from .imports import Outcome

Check = tuple[str, Callable[[], Iterable[Finding]]]


def checks(outcomes: Mapping[str, Outcome]) -> list[Check]:
    """Return the checks in the order of the report, each under the name of its line."""
    return [
        ('python', packages.check_python),
        *((package.name, partial(packages.check_package, package, outcomes)) for package in PACKAGES),
        ('torchvision for torch', partial(packages.check_torchvision, outcomes)),
        ('OpenMMLab or OneDL', partial(packages.check_families, outcomes)),
        ('mmpretrain.models', partial(packages.check_transformers, outcomes)),
        ('shvit_det', partial(stack_checks.check_import, outcomes)),
        ('mmcv ops', partial(stack_checks.check_ops, outcomes)),
        ('mmdet:: bases', partial(stack_checks.check_bases, outcomes)),
        ('resuming', partial(stack_checks.check_resume, outcomes)),
        ('GPU', partial(gpu.check_gpu, outcomes)),
        ('OpenMP threads', partial(machine.check_threads, outcomes)),
        ('shared memory', machine.check_shared_memory),
        ('disk', machine.check_disk),
        ('cache', partial(machine.check_cache, outcomes)),
        ('weights', partial(stack_checks.check_weights, outcomes)),
    ]


def findings(to_run: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks; one that fails itself is reported as such and hides no other."""
    for name, check in to_run:
        try:
            yield from check()
        except Exception as error:  # a stack can be broken in ways that nobody foresaw
            yield Finding(name, Status.WARN, f'could not be checked: {type(error).__name__}: {error}')


def as_text(found: Sequence[Finding]) -> str:
    """Write a line for each finding, the command that mends it below, and a line that sums up."""
    width = max(len(finding.name) for finding in found)
    lines = []
    for finding in found:
        lines.append(f'{finding.status.value:4}  {finding.name:{width}}  {finding.found}')
        if finding.command:
            lines.append(f'{"":4}  {"":{width}}  $ {finding.command}')
    return '\n'.join([*lines, '', summary(found)])


def as_json(found: Sequence[Finding]) -> str:
    """Write the same as JSON."""
    entries = [
        {'name': one.name, 'status': one.status.value, 'found': one.found, 'command': one.command} for one in found
    ]
    return json.dumps({'broken': is_broken(found), 'findings': entries}, indent=2)


def summary(found: Sequence[Finding]) -> str:
    """Count what is broken; if much is, name the command that installs everything at once."""
    broken, warned = (sum(one.status is status for one in found) for status in (Status.FAIL, Status.WARN))
    if not broken and not warned:
        return 'Nothing is wrong.'
    counts = f'{broken} broken, {warned} to be warned of.'
    missing = [one for one in found if one.found == 'not installed']
    return f'{counts} All at once:\n$ {stack_checks.whole_stack()}' if len(missing) > 2 else counts


def is_broken(found: Iterable[Finding]) -> bool:
    """Whether something fails; warnings do not count."""
    return any(one.status is Status.FAIL for one in found)
