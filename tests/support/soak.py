"""Train on the sample set for hours and note what the run holds: memory, handles, semaphores.

    python tests/support/soak.py --minutes 120 --work-dir work_dirs/soak --json work_dirs/soak/soak.json

The run is that of the demo with an evaluation after every second epoch, in a process of its own with one thread and
with its loaders' workers, and ends by SIGTERM. Linux only: all figures come from /proc.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from processes import ROOT, Process, process_tree, runs

from shvit_det.common.environment import describe_environment
from shvit_det.training.resuming import last_checkpoint

CONFIG = 'configs/mask_rcnn_shvit_s1_sample.py'
SHARED_MEMORY = Path('/dev/shm')
WARM_UP_MINUTES = 10.0
EVERY_S = 30.0
TERMINATED_STATUS = 143
END_S = 300.0  # how long a run may take to save and to end
MEMORY = ('Rss', 'Pss', 'Private_Clean', 'Private_Dirty')

Figures = dict[str, float]


def shared_by(pid: int) -> set[tuple[str, str]]:
    """Return name and inode of what a process has mapped or opened of /dev/shm, also without a name there any more."""
    found = set()
    for line in Path(f'/proc/{pid}/maps').read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and Path(fields[5]).is_relative_to(SHARED_MEMORY):
            found.add((Path(fields[5].removesuffix(' (deleted)')).name, fields[4]))
    for handle in Path(f'/proc/{pid}/fd').iterdir():
        try:
            target, inode = str(handle.readlink()), str(handle.stat().st_ino)
        except FileNotFoundError:  # closed meanwhile
            continue
        if Path(target).is_relative_to(SHARED_MEMORY):
            found.add((Path(target.removesuffix(' (deleted)')).name, inode))
    return found


def measure(tree: Iterable[Process]) -> Figures:
    """Return what several processes hold together; one that ends meanwhile is left out.

    Returns:
        In MiB ``rss`` (shared pages count in each process), ``pss`` (they count once in all) and ``uss`` (they do not
        count); the numbers of ``handles``, ``threads`` and ``children``; of ``semaphores`` and pieces of
        ``shared_memory``, each counted once.
    """
    total = dict.fromkeys(('rss', 'pss', 'uss', 'handles', 'threads', 'children'), 0.0)
    shared: set[tuple[str, str]] = set()
    for number, (pid, _) in enumerate(tree):
        folder = Path(f'/proc/{pid}')
        try:
            lines = (folder / 'smaps_rollup').read_text().splitlines()[1:]
            kib = {name.rstrip(':'): int(value) for name, value, *_ in map(str.split, lines)}
            status = dict(line.split(':', 1) for line in (folder / 'status').read_text().splitlines())
            handles = len(list((folder / 'fd').iterdir()))
            shared |= shared_by(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        rss, pss, clean, dirty = (kib[name] / 1024 for name in MEMORY)
        found = dict(rss=rss, pss=pss, uss=clean + dirty, handles=handles, threads=int(status['Threads']))
        for name, value in dict(found, children=min(number, 1)).items():
            total[name] += value
    semaphores = {item for item in shared if item[0].startswith('sem.')}
    return dict(total, semaphores=len(semaphores), shared_memory=len(shared - semaphores))


def left_in_shared_memory(before: set[str]) -> list[str]:
    """Return the files in /dev/shm that were not there before and that no living process has open."""
    new = {path.name for path in SHARED_MEMORY.iterdir()} - before
    for path in Path('/proc').iterdir():
        if new and path.name.isdigit():
            try:
                new -= {name for name, _ in shared_by(int(path.name))}
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return sorted(name for name in new if (SHARED_MEMORY / name).exists())


def summary(samples: list[Figures], warm_up_s: float) -> dict[str, Figures]:
    """Return, by figure, what became of it after the warm-up.

    Returns:
        ``start`` and ``end`` are medians of the first and of the last quarter of the samples, ``maximum`` is over all
        of them, ``slope_per_hour`` is that of the straight line with the least squares.
    """
    kept = [sample for sample in samples if sample['seconds'] >= warm_up_s] or samples
    quarter = max(1, len(kept) // 4)
    table = {}
    for name in kept[0].keys() - {'seconds'}:
        values = [sample[name] for sample in kept]
        hours = [sample['seconds'] / 3600 for sample in kept]
        slope = statistics.linear_regression(hours, values).slope if len(kept) > 1 else 0.0
        table[name] = dict(
            start=statistics.median(values[:quarter]),
            end=statistics.median(values[-quarter:]),
            slope_per_hour=slope,
            maximum=max(values),
        )
    return {name: table[name] for name in samples[0] if name in table}


def watch(process: subprocess.Popen, minutes: float, every_s: float) -> tuple[list[Figures], set[Process]]:
    """Measure a process and its descendants until the time is up or it ends; return figures and who was seen."""
    samples: list[Figures] = []
    seen: set[Process] = set()
    begin = time.monotonic()
    while process.poll() is None and (now := time.monotonic() - begin) < minutes * 60:
        if now >= len(samples) * every_s:
            tree = process_tree(process.pid)
            seen.update(tree)
            samples.append(dict(seconds=now, **measure(tree)))
        time.sleep(min(1.0, every_s / 10))
    seen.update(process_tree(process.pid))
    return samples, seen


def soak(folder: Path, minutes: float, every_s: float, warm_up_minutes: float) -> dict:
    """Train in ``folder``, end the run when the time is up, and return all that was found; ``faults`` are sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in SHARED_MEMORY.iterdir()}
    options = ['--seed', '0', '--work-dir', 'run']
    changes = ['train_cfg.max_epochs=1000000', 'train_cfg.val_interval=2']
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'train.py'),
        str(ROOT / CONFIG),
        *options,
        '--cfg-options',
        *changes,
    ]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    log = folder / 'soak.log'
    with log.open('w') as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=paths),
        )
        try:
            samples, seen = watch(process, minutes, every_s)
            ended_early = process.poll() is not None
            process.send_signal(signal.SIGTERM)
            status = process.wait(END_S)
        finally:
            process.kill()
            process.wait()
    time.sleep(2)  # what the run has told to end may need a moment
    text = log.read_text()
    faults = ['the run ended before the time was up'] if ended_early else []
    if status != TERMINATED_STATUS:
        faults.append(f'the exit status is {status}, not {TERMINATED_STATUS}: {text[-1000:]}')
    if alive := sorted(pid for pid, start in seen if runs((pid, start))):
        faults.append(f'processes that outlived the run: {alive}')
    if left := left_in_shared_memory(before):
        faults.append(f'left in {SHARED_MEMORY}: {left}')
    last = last_checkpoint(folder / 'run')
    state = torch.load(last, weights_only=False, mmap=True)['meta'] if last else {}
    warm_up_s = min(warm_up_minutes, minutes / 3) * 60
    return dict(
        config=CONFIG,
        changes=changes,
        minutes=minutes,
        warm_up_minutes=warm_up_s / 60,
        epochs=state.get('epoch'),
        iterations=state.get('iter'),
        evaluations=text.count('bbox_mAP: '),
        checkpoints=text.count('Saving checkpoint'),
        exit_status=status,
        faults=faults,
        figures=summary(samples, warm_up_s),
        environment=describe_environment(torch.device('cpu')),
        samples=samples,
    )


def table_of(record: dict) -> str:
    """Return the figures as lines of text."""
    names = ('start', 'end', 'slope_per_hour', 'maximum')
    lines = [f'{"":15}' + ''.join(f'{name:>16}' for name in names)]
    for figure, values in record['figures'].items():
        label = f'{figure}, MiB' if figure in ('rss', 'pss', 'uss') else figure
        lines.append(f'{label:15}' + ''.join(f'{values[name]:16.2f}' for name in names))
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description='Train for hours and note what the run holds.')
    parser.add_argument('--minutes', type=float, default=120, help='how long [120]')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'), help='[work_dirs/soak]')
    parser.add_argument('--json', type=Path, help='write the figures and all samples into this file')
    parser.add_argument('--every', type=float, default=EVERY_S, help=f'seconds between two samples [{EVERY_S:g}]')
    parser.add_argument(
        '--warm-up', type=float, default=WARM_UP_MINUTES,
        help=f'minutes that do not count, at most a third of all [{WARM_UP_MINUTES:g}]',
    )  # fmt: skip
    arguments = parser.parse_args()
    record = soak(arguments.work_dir.resolve(), arguments.minutes, arguments.every, arguments.warm_up)
    print(table_of(record))
    print(', '.join(f'{name}: {record[name]}' for name in ('iterations', 'evaluations', 'checkpoints', 'exit_status')))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + '\n')
    for fault in record['faults']:
        print(f'fault: {fault}')
    raise SystemExit(bool(record['faults']))


if __name__ == '__main__':
    main()
