"""Run all checks and print what they found: exit status 0 if nothing is broken, else 1."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..common.dependencies import PACKAGES
from . import machine, packages, use
from .finding import Finding, Status
from .probe_process import Outcome, probe

Found = list[tuple[str, Finding]]  # each with the name of its check

# In the order of the report.
CHECKS: dict[str, Callable[[Mapping[str, Outcome]], Iterable[Finding]]] = {
    'python': packages.check_python,
    **{package.name: partial(packages.check_package, package) for package in PACKAGES},
    'torchvision for torch': packages.check_torchvision,
    'OpenMMLab or OneDL': packages.check_families,
    'mmpretrain.models': packages.check_transformers,
    'shvit_det': use.check_import,
    'mmcv ops': use.check_ops,
    'CPU kernels': use.check_kernels,
    'mmdet:: bases': partial(use.check_step, 'bases', 'are found', ('mmengine', 'mmdet')),
    'resuming': partial(use.check_step, 'resume', 'checkpoints of runs load', ('numpy', 'mmengine')),
    'GPU': machine.check_gpu,
    'OpenMP threads': machine.check_threads,
    'shared memory': machine.check_shared_memory,
    'disk': machine.check_disk,
    'cache': machine.check_cache,
    'weights': use.check_weights,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m shvit_det.doctor' if Path(sys.argv[0]).name == '__main__.py' else None,
        description='Check the packages that shvit_det depends on and the machine, and print the commands that repair '
        'what is wrong. Exit status 1 if something is broken.',
    )
    parser.add_argument('--json', action='store_true', help='print the same as JSON')
    arguments = parser.parse_args()
    found = list(findings(probe()))
    print(as_json(found) if arguments.json else as_text(found))
    sys.exit(int(is_broken(found)))


def findings(outcomes: Mapping[str, Outcome], checks: Mapping[str, Callable] = CHECKS) -> Iterator[tuple[str, Finding]]:
    """Run the checks; one that fails itself is reported and hides no other."""
    for name, check in checks.items():
        try:
            for finding in check(outcomes):
                yield name, finding
        except Exception as error:  # an installation can be broken in ways that nobody foresaw
            yield name, Finding(Status.WARN, f'could not be checked: {type(error).__name__}: {error}')


def as_text(found: Found) -> str:
    """Write a line for each finding, the command that repairs it below, and a summary."""
    width = max(len(name) for name, _ in found)
    lines = []
    for name, finding in found:
        lines.append(f'{finding.status.value:4}  {name:{width}}  {finding.found}')
        if finding.command:
            lines.append(f'{"":4}  {"":{width}}  $ {finding.command}')
    return '\n'.join([*lines, '', summary(found)])


def as_json(found: Found) -> str:
    entries = [{'name': name, **vars(finding), 'status': finding.status.value} for name, finding in found]
    return json.dumps({'broken': is_broken(found), 'findings': entries}, indent=2)


def summary(found: Found) -> str:
    """Count what is broken; where much is missing, name the command that installs everything at once."""
    broken, warned = (sum(finding.status is status for _, finding in found) for status in (Status.FAIL, Status.WARN))
    if not broken and not warned:
        return 'Nothing is wrong.'
    counts = f'{broken} broken, {warned} to be warned of.'
    missing = sum(finding.found == 'not installed' for _, finding in found)
    return f'{counts} All at once:\n$ {use.install_everything()}' if missing > 2 else counts


def is_broken(found: Found) -> bool:
    """Tell whether something fails; warnings do not count."""
    return any(finding.status is Status.FAIL for _, finding in found)


if __name__ == '__main__':
    main()
