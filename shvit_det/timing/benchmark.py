"""The benchmark behind ``tools/benchmark.py``: from the names of models to a record."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from typing import Any

import torch

from ..common.environment import describe_environment
from ..common.errors import UsageError
from .ceilings import measure_ceilings
from .clocks import CPUClock, clock_for
from .cost import CostCounter, count_parameters
from .detector_parts import modules_by_part
from .measurement import FORWARD, Key, Measurement, Meter, PartTimer, measure
from .model_builder import build_models
from .record import FORMAT, PartCost, PartTime, Ratio, Record, Subject
from .settings import Settings, dtype_name
from .statistics import BUSY_SPREAD, ratio_by_round, spread, summarize
from .timed_model import TimedModel


def benchmark(
    sources: Sequence[str],
    settings: Settings,
    checkpoint: str | None = None,
    options: Mapping[str, Any] | None = None,
    command: str = '',
    progress: Callable[[str], None] = lambda _: None,
    save: Callable[[Record], None] = lambda _: None,
) -> Record:
    """Time detectors by part, or backbones, and compare them with the first.

    Args:
        sources: Configs, ``mmdet::a/config.py``, ``timm:NAME`` or ``shvit:ARCH``, with prefixes; the first is the base
            of the ratios.
        settings: How all of them are run.
        checkpoint: Weights of the first one; random ones without.
        options: ``--cfg-options``, for the first one.
        command: The command, for the record.
        progress: Is told now and then what is going on.
        save: Gets the record; if an error ends the measuring, that of the rounds so far.

    Raises:
        UsageError: If one of them cannot be built, or cannot run on such images.
    """
    with _torch_set_as(settings):
        environment = describe_environment(settings.device)
        progress('measuring the ceilings of this machine')
        ceilings = {settings.dtype: measure_ceilings(settings.device, settings.dtype)}
        models = build_models(sources, settings, checkpoint, options)
        for dtype in {model.settings.dtype for model in models} - {settings.dtype}:
            ceilings[dtype] = measure_ceilings(settings.device, dtype)
        facts = []
        for model in models:
            progress(f'counting the operations of {model.name}')
            facts.append(_prepare(model))
        meter = Meter(clock_for(settings.device), settings.device, settings.flush)

        def finish(measurements: Sequence[Measurement], warnings: Sequence[str] = ()) -> Record:
            subjects = [_subject(m, fact) for m, fact in zip(measurements, facts, strict=True)]
            for model, subject in zip(models, subjects, strict=True):
                if model.settings.dtype is not settings.dtype:
                    subject['dtype'] = dtype_name(model.settings.dtype)
                    subject['ceilings'] = ceilings[model.settings.dtype]
            of_models = [warning for model in models for warning in model.warnings]
            record = Record(
                format=FORMAT,
                command=command,
                date=datetime.now(timezone.utc).date().isoformat(),
                environment=environment,
                settings={**settings.as_record(), **_images(models[0])},
                ceilings=ceilings[settings.dtype],
                subjects=subjects,
                ratios=list(_ratios(measurements)),
                warnings=[*warnings, *of_models, *_doubts(subjects, len(models[0].batches))],
            )
            save(record)
            return record

        def cut_short(measurements: Sequence[Measurement], rounds: int) -> None:
            finish(measurements, [f'an error or a signal ended the measuring after {rounds} rounds'])

        return finish(measure(models, meter, settings, progress, cut_short))


@contextmanager
def _torch_set_as(settings: Settings) -> Iterator[None]:
    """Set torch's threads and use of TensorFloat-32 inside a ``with`` block."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with ExitStack() as restoring:
        restoring.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(settings.threads)
        for backend in backends if settings.tf32 is not None else ():
            restoring.callback(setattr, backend, 'allow_tf32', backend.allow_tf32)
            backend.allow_tf32 = settings.tf32
        yield


def _prepare(model: TimedModel) -> dict[str, Any]:
    """Make a model ready to be timed, and return those of its facts that take no clock."""
    only = model.settings.only
    if only is not None and only not in model.parts():
        raise UsageError(f'{model.name} has no part {only!r}: choose from {", ".join(model.parts())}')
    model.first_run()
    model.fix_detections()
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    facts = dict(parameters=parameters, input_shape=model.input_shape(), counts=model.counts(), cost=_cost(model))
    if model.settings.compile is not None:
        model.compile()
    if model.settings.runtime is not None:
        model.export()
    return facts


def _cost(model: TimedModel) -> list[PartCost]:
    """Count the operations of each part in one run."""
    timer = PartTimer(CPUClock())
    run = model.run()
    counter = CostCounter(lambda: timer.part)
    with timer.attached(model), counter:
        timer.begin()
        run()
    parameters = count_parameters(modules_by_part(model.model, model.spans))
    costs = {cost['name']: cost for cost in counter.part_costs(parameters)}
    return [costs[part] for part in model.part_order() if part in costs and model.settings.only in (None, part)]


def _images(model: TimedModel) -> dict[str, Any]:
    if model.settings.images is not None:
        return dict(images=f'{len(model.batches) * model.settings.batch} photographs', shape=None)
    return dict(images='synthetic', shape=model.image_shape()[1:])


def _subject(measurement: Measurement, facts: Mapping[str, Any]) -> Subject:
    model = measurement.model
    part = model.settings.only if model.kind == 'detector' else None
    whole = measurement.whole if part is None else measurement.alone[part]
    alone = measurement.alone.items() if part is None else ()
    return Subject(
        name=model.name if part is None else f'{model.name}: {part}',
        source=model.source,
        kind=model.kind if part is None else 'part',
        weights=model.weights,
        config_sha256=model.config_sha256,
        prepared=model.prepared,
        warmup_runs=len(measurement.warmup),
        warmup_stable=measurement.stable,
        compile_s=measurement.compile_seconds,
        whole=summarize(whole),
        in_place=_in_place(measurement.in_place, model.part_order()),
        in_place_whole=summarize([sum(run.values()) for run in measurement.in_place]) if measurement.in_place else None,
        alone=[PartTime(name=name, phase=FORWARD, time=summarize(times)) for name, times in alone],
        parameters=facts['parameters'],
        input_shape=facts['input_shape'],
        counts=facts['counts'],
        cost=facts['cost'],
    )


def _in_place(runs: Sequence[Mapping[Key, float]], order: Sequence[str]) -> list[PartTime]:
    keys = sorted(dict.fromkeys(key for run in runs for key in run), key=lambda key: order.index(key[0]))
    return [
        PartTime(name=part, phase=phase, time=summarize([run.get((part, phase), 0.0) for run in runs]))
        for part, phase in keys
    ]


def _ratios(measurements: Sequence[Measurement]) -> Iterator[Ratio]:
    """Compare all others with the first: whole detectors, and the backbone alone of everything that has one."""
    base, *others = measurements
    for figure in ('whole', 'backbone alone'):
        for other in others:
            times, base_times = _times(other, figure), _times(base, figure)
            if times and base_times:
                ratio, interval = ratio_by_round(times, base_times)
                low, high, coverage = interval or (None, None, None)
                yield Ratio(
                    figure=figure,
                    subject=other.model.name,
                    base=base.model.name,
                    ratio=ratio,
                    low=low,
                    high=high,
                    coverage=coverage,
                )


def _times(measurement: Measurement, figure: str) -> list[float]:
    if measurement.model.kind == 'backbone':
        return measurement.whole if figure == 'backbone alone' else []
    return measurement.whole if figure == 'whole' else measurement.alone.get('backbone', [])


def _doubts(subjects: Sequence[Subject], num_batches: int) -> Iterator[str]:
    """Yield what makes times doubtful; with several batches, times vary anyway."""
    for subject in subjects if num_batches == 1 else ():
        if not subject['warmup_stable']:
            yield f'{subject["name"]}: the times had not settled after {subject["warmup_runs"]} runs of warm-up'
        if (width := spread(subject['whole'])) > BUSY_SPREAD:
            yield (
                f'{subject["name"]}: the middle 80 percent of the runs span {width:.0%} of the median, as they do '
                f'on a machine that is busy with something else: repeat this when it is idle'
            )
