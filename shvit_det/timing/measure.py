"""The measuring itself: warm-up until stable, then interleaved rounds."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..common.garbage_collection import collector_paused
from .clock import Clock
from .settings import Settings
from .spans import Recorder
from .statistics import MIN_INTERVAL_ROUNDS, is_stable
from .subjects import Subject

MAX_WARMUP_RUNS = 30
MAX_WARMUP_SECONDS = 60.0

Key = tuple[str, str]
Progress = Callable[[str], None]


class Measurement:
    """The times of one subject in seconds; those of one round stand at the same place in every list."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.warmup: list[float] = []
        self.whole: list[float] = []
        self.in_place: list[dict[Key, float]] = []
        self.alone: dict[str, list[float]] = {}
        self._prepare_alone: dict[str, Callable[[], Callable[[], Any]]] = {}

    @property
    def stable(self) -> bool:
        """Whether the warm-up ended because the times had settled."""
        return is_stable(self.warmup)

    @property
    def compile_seconds(self) -> float | None:
        """What the first run took longer than the last of the warm-up, if the subject is compiled."""
        return self.warmup[0] - self.warmup[-1] if self.subject.settings.compile is not None else None

    def warm_up(self, meter: 'Meter') -> None:
        """Run until the times are stable; a part that runs alone once more, since it may choose its kernels anew."""
        self.warmup.append(meter.time(self.subject.run()))  # in which compiling may take minutes
        start = time.monotonic()
        while not self.stable and len(self.warmup) < MAX_WARMUP_RUNS:
            self.warmup.append(meter.time(self.subject.run(len(self.warmup))))
            if time.monotonic() - start > MAX_WARMUP_SECONDS:
                break
        self._prepare_alone = self.subject.alone()
        only = self.subject.settings.only
        if only is not None and self.subject.kind == 'detector':
            self._prepare_alone = {only: self._prepare_alone[only]}
        for prepare in self._prepare_alone.values():
            meter.time(prepare())

    def add_round(self, meter: 'Meter', number: int) -> None:
        """Measure everything once: the whole, the whole by part, each part alone."""
        subject = self.subject
        if subject.settings.only in (None, 'backbone'):
            self.whole.append(meter.time(subject.run(number)))
            if subject.kind == 'detector' or subject.settings.train:
                self.in_place.append(meter.time_parts(subject, number))
        for part, prepare in self._prepare_alone.items():
            self.alone.setdefault(part, []).append(meter.time(prepare()))

    def keep(self, rounds: int) -> None:
        """Leave out what was measured after the first so many rounds."""
        del self.whole[rounds:], self.in_place[rounds:]
        for times in self.alone.values():
            del times[rounds:]


class Meter:
    """Times single runs.

    Args:
        clock: Where the time comes from.
        device: What the runs run on.
        flush: Whether a GPU's L2 cache is overwritten before each run.
    """

    def __init__(self, clock: Clock, device: torch.device, flush: bool = False) -> None:
        self.clock = clock
        self._recorder = Recorder(clock)
        self._on_gpu = device.type == 'cuda'
        self._cache = None
        if flush:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._cache = torch.empty(size, dtype=torch.uint8, device=device)

    def time(self, run: Callable[[], Any]) -> float:
        """Return the seconds that one run takes."""
        self._settle()
        start = self.clock.mark()
        run()
        return self.clock.seconds([start, self.clock.mark()])[-1]

    def time_parts(self, subject: Subject, number: int) -> dict[Key, float]:
        """Return the seconds of each part of one run of a subject; they add up to the run."""
        run = subject.run(number)
        with subject.recorded(self._recorder):
            self._settle()
            self._recorder.begin()
            run()
            return self._recorder.end()

    def _settle(self) -> None:
        if self._cache is not None:
            self._cache.zero_()
        if self._on_gpu:
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the run before may be overwritten
        self.clock.synchronize()


def measure(
    subjects: Sequence[Subject],
    meter: Meter,
    settings: Settings,
    progress: Progress,
    cut_short: Callable[[list[Measurement], int], None] = lambda measurements, rounds: None,
) -> list[Measurement]:
    """Warm all subjects up and measure them in turn, a round after the other, without garbage collection in a run.

    Args:
        subjects: What is measured.
        meter: What measures it.
        settings: How long: ``runs`` rounds, or ``seconds`` for each subject and at least five rounds.
        progress: Is told now and then what is going on.
        cut_short: Gets the rounds so far, and their number, when an error ends the measuring after the first of them.
    """
    measurements = [Measurement(subject) for subject in subjects]
    with collector_paused():
        for measurement in measurements:
            progress(f'warming up {measurement.subject.name}')
            measurement.warm_up(meter)
            gc.collect()
        start = time.monotonic()
        limit = settings.seconds * len(subjects)
        for number in itertools.count():
            elapsed = time.monotonic() - start
            is_filled = number >= MIN_INTERVAL_ROUNDS and elapsed >= limit
            if is_filled if settings.runs is None else number >= settings.runs:
                break
            progress(f'round {number + 1}, {elapsed:.0f} s')
            try:
                for measurement in _rotated(measurements, number):
                    measurement.add_round(meter, number)
                    gc.collect()
            except BaseException:
                if number:
                    for measurement in measurements:
                        measurement.keep(number)
                    cut_short(measurements, number)
                raise
    return measurements


def _rotated(measurements: Sequence[Measurement], number: int) -> Iterator[Measurement]:
    """Yield all of them, beginning with another one in each round, since what ran before leaves its trace."""
    for index in range(len(measurements)):
        yield measurements[(index + number) % len(measurements)]
