"""Kill a training run at random moments and resume it; its end must equal that of a run that nobody disturbed.

    python tests/support/kill_and_resume.py --kills 20

Each round trains in a work dir of its own, is killed and resumed until it ends. The tiny config has everything with a
state: random augmentation in two workers, AdamW, two schedules, averages of weights. The moments are random
places in what the run does; every third one is the next save after such a place.
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from processes import ROOT, Running

from shvit_det.checkpoint.reading import read_content
from shvit_det.training.resuming import last_checkpoint

CONFIG = ROOT / 'tests' / 'data' / 'tiny_augmented.py'
STATE = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
SIGNALS = {'kill': signal.SIGKILL, 'term': signal.SIGTERM}


def leaves(content: object, name: str = '') -> Iterator[tuple[str, object]]:
    """Yield the tensors and values in nested containers with their places."""
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        yield name, content
        return
    for key, value in items:
        yield from leaves(value, f'{name}.{key}')


def state_of(checkpoint: Path) -> dict[str, object]:
    """Return all that decides how a run would go on, by place."""
    content = read_content(checkpoint)
    state = {part: content[part] for part in STATE if part in content}
    state['meta'] = {name: content['meta'][name] for name in ('epoch', 'iter', 'seed')}
    return dict(leaves(state))


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Return the places whose values are not equal to the last bit."""
    names = sorted(set(one) ^ set(other))
    for name in set(one) & set(other):
        a, b = one[name], other[name]
        same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        if not same:
            names.append(name)
    return names


def phase(running: Running, work_dir: Path) -> str:
    """Return what a run was doing when it ended, as far as its files show it."""
    if list(work_dir.glob('*.part')):
        return 'during a save'
    doing = [line for line in running.read().splitlines() if 'Epoch(' in line or 'Saving checkpoint' in line]
    if not doing:
        return 'before the first step'
    if 'Saving checkpoint' in doing[-1]:
        return 'around a save'
    if 'Epoch(val)' in doing[-1]:
        return 'during or after an evaluation'
    return 'between steps of an epoch'


def progress(running: Running) -> int:
    """Return how many steps, evaluated images and saves a run has logged."""
    output = running.read()
    return output.count('Epoch(') + output.count('Saving checkpoint')


def wait_for_moment(running: Running, work_dir: Path, draw: random.Random, length: int) -> None:
    """Wait for a random place in what the run does, a random time after it, and every third time for the next save."""
    place, delay, in_save = draw.randrange(length), draw.uniform(0, 0.2), draw.random() < 1 / 3
    while running.alive and progress(running) < place:
        time.sleep(0.01)
    moment = time.monotonic() + delay
    while running.alive and (time.monotonic() < moment or (in_save and not list(work_dir.glob('*.part')))):
        time.sleep(0.001)


def disturb(
    folder: Path, name: str, kills: int, number: int, draw: random.Random, length: int, options: list
) -> Counter:
    """Train in ``folder/name``, end the run up to ``kills`` times and resume it each time; then let it end.

    Each time it gets through a part of what is left, at most ``length`` of :func:`progress`.

    Returns:
        How often it was ended while it did what.
    """
    work_dir, phases = folder / name, Counter()
    while True:
        resume = ['--resume'] if list(work_dir.glob('*.pth')) else []
        running = Running('train', CONFIG, '--work-dir', name, '--seed', 3, *resume, *options, cwd=folder)
        killed = False
        if phases.total() < kills:
            wait_for_moment(running, work_dir, draw, length)
            killed = running.alive
            if killed:
                running.signal(number)
        result = running.finish()
        if not result.returncode:
            return phases
        if not killed or result.returncode not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            raise AssertionError(f'status {result.returncode}: {result.stderr[-3000:]}')
        phases[phase(running, work_dir)] += 1


def undisturbed(folder: Path, options: list, name: str = 'whole') -> tuple[dict[str, object], int]:
    """Train in ``folder/name`` and return the state at the end and how much :func:`progress` that was."""
    running = Running('train', CONFIG, '--work-dir', name, '--seed', 3, *options, cwd=folder)
    result = running.finish()
    assert result.returncode == 0, result.stderr[-3000:]
    return end_of(folder / name), progress(running)


def end_of(work_dir: Path) -> dict[str, object]:
    last = last_checkpoint(work_dir)
    assert last is not None and not list(work_dir.glob('*.part'))
    return state_of(last)


def main() -> None:
    parser = argparse.ArgumentParser(description='Kill a training run at random moments and compare how it ends.')
    parser.add_argument('--kills', type=int, default=20, help='how many in all [20]')
    parser.add_argument('--each', type=int, default=4, help='how many in one run before it may end [4]')
    parser.add_argument('--signal', choices=SIGNALS, default='kill', help='SIGKILL or SIGTERM [kill]')
    parser.add_argument('--seed', type=int, default=0, help='of the moments [0]')
    parser.add_argument('--fast', action='store_true', help='train with --fast')
    parser.add_argument('--amp', action='store_true', help='train with --amp')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='changes of the config')
    arguments = parser.parse_args()
    options = [f'--{name}' for name in ('fast', 'amp') if getattr(arguments, name)]
    options += ['--cfg-options', *arguments.cfg_options] if arguments.cfg_options else []
    torch.set_num_threads(1)
    draw, phases = random.Random(arguments.seed), Counter()
    rounds = unequal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / 'runs'
        folder.mkdir()
        expected, length = undisturbed(folder, options)
        print(f'undisturbed: {length} lines of progress, {len(expected)} values compared', flush=True)
        while phases.total() < arguments.kills:
            kills = min(arguments.each, arguments.kills - phases.total())
            found = disturb(folder, f'run{rounds}', kills, SIGNALS[arguments.signal], draw, length // 2, options)
            wrong = differences(expected, end_of(folder / f'run{rounds}'))
            phases += found
            rounds += 1
            unequal += bool(wrong)
            print(f'run {rounds}, killed {dict(found)}: {len(wrong)} values differ {sorted(wrong)[:3]}', flush=True)
    print(f'{rounds} runs, {phases.total()} kills {dict(phases)}; runs that ended otherwise: {unequal}')
    raise SystemExit(unequal > 0)


if __name__ == '__main__':
    main()
