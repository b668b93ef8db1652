"""How many processors this process may use. Standard library only: the doctor needs it without the stack."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path('/')
LIMITS = (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us'))  # files of control groups, version 2 and 1


def usable_processors() -> int:
    """Return the processors that this process may keep busy: of its affinity, and of its container's quota.

    Neither Python before 3.13 nor torch asks for the first everywhere, and none of them for the second.
    """
    if hasattr(os, 'process_cpu_count'):
        count = os.process_cpu_count() or 1
    elif hasattr(os, 'sched_getaffinity'):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for folder in control_groups() for quota in quotas(folder))]))


def control_groups() -> Iterator[Path]:
    """Yield the folders of the control groups that may limit this process: its own and all that it is in."""
    try:
        lines = (ROOT / 'proc/self/cgroup').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        _, controllers, group = line.split(':', 2)
        inside = PurePosixPath(group.lstrip('/'))
        # the last is the hierarchy itself: in a container its own group, whatever that is called outside
        groups = [part for part in (inside, *inside.parents) if '..' not in part.parts]
        if not controllers or 'cpu' in controllers.split(','):
            for hierarchy in {controllers, 'cpu'} if controllers else ('',):  # version 1, 2
                yield from (ROOT / 'sys/fs/cgroup' / hierarchy / part for part in groups)


def quotas(group: Path) -> Iterator[float]:
    """Yield how many processors' time a control group may take, where its folder says so."""
    for names in LIMITS:
        try:
            limit, period = ' '.join((group / name).read_text(encoding='utf-8') for name in names).split()
        except (OSError, ValueError):
            continue
        if limit.isdigit() and period.isdigit():  # neither 'max' nor -1
            yield int(limit) / int(period)
