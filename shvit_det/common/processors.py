"""How many processors this process may use. Standard library only, since the doctor needs it where torch is broken."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path('/')
LIMITS = (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us'))  # files of control groups, version 2 and 1


def usable_processors() -> int:
    """Return how many processors this process may use, by its affinity and the quota of its container.

    Python before 3.13 and torch do not ask for the affinity on every system, and neither asks for the quota.
    """
    if hasattr(os, 'process_cpu_count'):
        count = os.process_cpu_count() or 1
    elif hasattr(os, 'sched_getaffinity'):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for folder in control_groups() for quota in quotas(folder))]))


def control_groups() -> Iterator[Path]:
    """Yield the folders of the control groups that may limit this process: its own and those around it."""
    try:
        lines = (ROOT / 'proc/self/cgroup').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        _, controllers, group = line.split(':', 2)
        inside = PurePosixPath(group.lstrip('/'))
        # the last is the root of the hierarchy: in a container its own group, whatever its name is outside
        groups = [part for part in (inside, *inside.parents) if '..' not in part.parts]
        if not controllers or 'cpu' in controllers.split(','):
            for hierarchy in {controllers, 'cpu'} if controllers else ('',):  # version 1, 2
                yield from (ROOT / 'sys/fs/cgroup' / hierarchy / part for part in groups)


def quotas(group: Path) -> Iterator[float]:
    """Yield the number of processors that the quota of a control group amounts to, where its folder has one."""
    for names in LIMITS:
        try:
            limit, period = ' '.join((group / name).read_text(encoding='utf-8') for name in names).split()
        except (OSError, ValueError):
            continue
        if limit.isdigit() and period.isdigit():  # neither 'max' nor -1
            yield int(limit) / int(period)
