"""The measuring: the division of a run among its parts, warm-up until stable, interleaved rounds."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..common.garbage_collection import collector_paused
from ..models.pyramid import FeaturePyramid
from .clocks import CPUClock
from .detector_parts import Span, instrumented
from .record import UNATTRIBUTED
from .settings import Settings
from .statistics import MIN_INTERVAL_ROUNDS, is_stable
from .timed_model import OPTIMIZER, TimedModel

MAX_WARMUP_RUNS = 30
MAX_WARMUP_SECONDS = 60.0
FORWARD, BACKWARD = 'forward', 'backward'
UPDATE_SPANS = (Span('losses', '', 'backward'), Span(OPTIMIZER, '', 'step'), Span(OPTIMIZER, '', 'zero_grad'))

Key = tuple[str, str]  # a part and a phase


class PartTimer:
    """Divides the time of a run among the parts of a detector.

    In the backward pass, autograd runs the operations in the reverse order of their creation. So the backward pass of a
    part begins when the first node that produced an output of the part is about to run, and ends where that of another
    part begins.
    """

    def __init__(self, clock: CPUClock) -> None:
        self.clock = clock
        self._running: list[Key] = []
        self._marks: list[tuple[Key, Any]] = []

    @property
    def part(self) -> str:
        """The name of the part that is running."""
        return self._marks[-1][0][0] if self._marks else UNATTRIBUTED

    def begin(self) -> None:
        """Forget the last run and begin another."""
        self._running, self._marks = [], []
        self._enter((UNATTRIBUTED, FORWARD))

    def end(self) -> dict[Key, float]:
        """Return the seconds of each part and phase of the run, in the order in which they first ran."""
        times = self.clock.seconds([mark for _, mark in self._marks] + [self.clock.mark()])
        seconds: dict[Key, float] = {}
        for (key, _), (start, stop) in zip(self._marks, pairwise(times), strict=True):
            seconds[key] = seconds.get(key, 0.0) + stop - start
        return seconds

    @contextmanager
    def attached(self, model: TimedModel) -> Iterator[None]:
        """Note which part is running in the runs of a model inside the ``with`` block."""
        with ExitStack() as stack:
            stack.enter_context(instrumented(model.model, model.spans, self.wrap))
            if model.optim_wrapper is not None:
                stack.enter_context(instrumented(model.optim_wrapper, UPDATE_SPANS, self.wrap))
            yield

    def wrap(self, span: Span, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``method`` with its time noted for its part."""
        key = (span.part, BACKWARD if span.method == 'backward' else FORWARD)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(key)
            try:
                result = method(*args, **kwargs)
                self._watch_backward(span.part, result)
                return result
            finally:
                self._running.pop()
                self._note(self._running[-1])

        return timed

    def _enter(self, key: Key) -> None:
        self._running.append(key)
        self._note(key)

    def _note(self, key: Key) -> None:
        self._marks.append((key, self.clock.mark()))

    def _watch_backward(self, part: str, result: Any) -> None:
        for value in tree_leaves(result.peek() if isinstance(result, FeaturePyramid) else result):
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                value.grad_fn.register_prehook(lambda _: self._note((part, BACKWARD)))


class Meter:
    """Times single runs; with ``flush``, a GPU's L2 cache is overwritten before each."""

    def __init__(self, clock: CPUClock, device: torch.device, flush: bool = False) -> None:
        self.clock = clock
        self._timer = PartTimer(clock)
        self._on_gpu = device.type == 'cuda'
        self._cache = None
        if flush:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._cache = torch.empty(size, dtype=torch.uint8, device=device)

    def time(self, run: Callable[[], Any]) -> float:
        """Return the seconds that one run takes."""
        self._prepare_device()
        return self.clock.time(run)

    def time_parts(self, model: TimedModel, number: int) -> dict[Key, float]:
        """Return the seconds of each part of one run; they add up to the run."""
        run = model.run(number)
        with self._timer.attached(model):
            self._prepare_device()
            self._timer.begin()
            run()
            return self._timer.end()

    def _prepare_device(self) -> None:
        if self._cache is not None:
            self._cache.zero_()
        if self._on_gpu:
            torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may overwrite the outputs of the last run
        self.clock.synchronize()


class Measurement:
    """The times of one model in seconds; the times of one round have the same index in every list."""

    def __init__(self, model: TimedModel) -> None:
        self.model = model
        self.warmup: list[float] = []  # of each run before the first round
        self.whole: list[float] = []  # of each run, measured without looking at its parts
        self.in_place: list[dict[Key, float]] = []  # of each part and phase within a run, whose parts add up to it
        self.alone: dict[str, list[float]] = {}  # of each part run by itself, by replaying its calls
        self._prepare_alone: dict[str, Callable[[], Callable[[], Any]]] = {}

    @property
    def stable(self) -> bool:
        """Whether the times had settled at the end of the warm-up."""
        return is_stable(self.warmup)

    @property
    def compile_seconds(self) -> float | None:
        """The time of the first warm-up run beyond that of the last, if the model is compiled."""
        return self.warmup[0] - self.warmup[-1] if self.model.settings.compile is not None else None

    def warm_up(self, meter: Meter) -> None:
        """Run until the times are stable, and each part alone once, where it may choose other kernels."""
        self.warmup.append(meter.time(self.model.run()))  # compiling may take minutes of it, which are no warm-up
        start = time.monotonic()
        while not self.stable and len(self.warmup) < MAX_WARMUP_RUNS:
            self.warmup.append(meter.time(self.model.run(len(self.warmup))))
            if time.monotonic() - start > MAX_WARMUP_SECONDS:
                break
        self._prepare_alone = self.model.parts_alone()
        for prepare in self._prepare_alone.values():
            meter.time(prepare())

    def add_round(self, meter: Meter, number: int) -> None:
        """Measure everything once: the whole run, the run by part, each part alone."""
        model = self.model
        if model.settings.only in (None, 'backbone'):
            self.whole.append(meter.time(model.run(number)))
            if model.kind == 'detector' or model.settings.train:
                self.in_place.append(meter.time_parts(model, number))
        for part, prepare in self._prepare_alone.items():
            self.alone.setdefault(part, []).append(meter.time(prepare()))

    def drop_after(self, rounds: int) -> None:
        """Remove the times after the first so many rounds."""
        del self.whole[rounds:], self.in_place[rounds:]
        for times in self.alone.values():
            del times[rounds:]


def measure(
    models: Sequence[TimedModel],
    meter: Meter,
    settings: Settings,
    progress: Callable[[str], None],
    cut_short: Callable[[list[Measurement], int], None] = lambda measurements, rounds: None,
) -> list[Measurement]:
    """Warm all models up and measure them in turn, round after round, without garbage collection during a run.

    There are ``settings.runs`` rounds, or as many as take ``seconds`` for each model, at least five. ``cut_short`` gets
    the complete rounds, and their number, if an error ends the measuring after the first of them.
    """
    measurements = [Measurement(model) for model in models]
    with collector_paused(), ExitStack() as ending:
        gc.freeze()  # so that a collection looks only at what was made since, and not at all that is imported
        ending.callback(gc.unfreeze)
        for measurement in measurements:
            progress(f'warming up {measurement.model.name}')
            measurement.warm_up(meter)
            gc.collect()
        start = time.monotonic()
        for number in itertools.count():
            elapsed = time.monotonic() - start
            is_filled = number >= MIN_INTERVAL_ROUNDS and elapsed >= settings.seconds * len(models)
            if is_filled if settings.runs is None else number >= settings.runs:
                break
            progress(f'round {number + 1}, {elapsed:.0f} s')
            first = number % len(measurements)  # another one begins each round, since each run affects the next one
            try:
                for measurement in measurements[first:] + measurements[:first]:
                    measurement.add_round(meter, number)
                    gc.collect()
            except BaseException:
                if number:
                    for measurement in measurements:
                        measurement.drop_after(number)
                    cut_short(measurements, number)
                raise
    return measurements
