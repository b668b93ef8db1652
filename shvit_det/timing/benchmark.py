"""The benchmark behind ``tools/benchmark.py``: from names to a record."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import torch

from ..common.environment import describe_environment
from ..common.errors import UsageError
from .building import build_subjects
from .ceilings import measure_ceilings
from .clock import CPUClock, clock_for
from .cost import CostCounter, count_parameters
from .measure import Key, Measurement, Meter, measure
from .record import FORMAT, PartCost, PartTime, Ratio, Record
from .record import Subject as SubjectRecord
from .settings import Settings
from .spans import FORWARD, Recorder
from .statistics import BUSY_SPREAD, ratio_by_round, spread, summarize
from .subjects import Subject


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
        sources: Configs, ``mmdet::a/config.py``, ``timm:NAME`` or ``shvit:ARCH``, with the prefixes of their forms; the
            first is the base of the ratios.
        settings: How everything is run.
        checkpoint: Weights of the first one; random ones without.
        options: ``--cfg-options``, for the first one.
        command: What the record names as the command that made it.
        progress: Is told now and then what is going on.
        save: Gets the record as soon as there is one: also, with the rounds so far, when an error ends the measuring.

    Raises:
        UsageError: If one of them cannot be built, or cannot run on such images.
    """
    with _threads(settings.threads):
        environment = describe_environment(settings.device)
        progress('measuring the ceilings of this machine')
        ceilings = {settings.dtype: measure_ceilings(settings.device, settings.dtype)}
        subjects = build_subjects(sources, settings, checkpoint, options)
        for dtype in {subject.settings.dtype for subject in subjects} - {settings.dtype}:
            ceilings[dtype] = measure_ceilings(settings.device, dtype)
        facts = []
        for subject in subjects:
            progress(f'counting the operations of {subject.name}')
            facts.append(_prepare(subject))
        meter = Meter(clock_for(settings.device), settings.device, settings.flush)

        def finish(measurements: Sequence[Measurement], warnings: Sequence[str] = ()) -> Record:
            records = [_subject_record(m, fact) for m, fact in zip(measurements, facts, strict=True)]
            for subject, record in zip(subjects, records, strict=True):
                if subject.settings.dtype is not settings.dtype:
                    record['dtype'] = str(subject.settings.dtype).removeprefix('torch.')
                    record['ceilings'] = ceilings[subject.settings.dtype]
            of_subjects = [warning for subject in subjects for warning in subject.warnings]
            whole = Record(
                format=FORMAT,
                command=command,
                date=datetime.now(timezone.utc).date().isoformat(),
                environment=environment,
                settings={**settings.as_record(), **_images(subjects[0])},
                ceilings=ceilings[settings.dtype],
                subjects=records,
                ratios=list(_ratios(measurements)),
                warnings=[*warnings, *of_subjects, *_signs_of_trouble(records, len(subjects[0].batches))],
            )
            save(whole)
            return whole

        def cut_short(measurements: Sequence[Measurement], rounds: int) -> None:
            finish(measurements, [f'an error or a signal ended the measuring after {rounds} rounds'])

        return finish(measure(subjects, meter, settings, progress, cut_short))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(subject: Subject) -> dict[str, Any]:
    """Make a subject ready for the clock; return what is known of it without one."""
    only = subject.settings.only
    if only is not None and only not in subject.parts():
        raise UsageError(f'{subject.name} has no part {only!r}: choose from {", ".join(subject.parts())}')
    subject.first_run()
    subject.settle_detections()
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    facts = dict(counts=subject.counts(), input_shape=subject.input_shape(), parameters=parameters, cost=_cost(subject))
    if subject.settings.compile is not None:
        subject.compile()
    if subject.settings.runtime is not None:
        subject.export()
    return facts


def _cost(subject: Subject) -> list[PartCost]:
    """Count what each part of one run has to do."""
    recorder = Recorder(CPUClock())
    run = subject.run()
    counter = CostCounter(lambda: recorder.part)
    with subject.recorded(recorder), counter:
        recorder.begin()
        run()
        recorder.end()
    parameters = count_parameters(subject.modules())
    costs = sorted(counter.part_costs(parameters), key=lambda cost: subject.part_order().index(cost['name']))
    return [cost for cost in costs if subject.settings.only in (None, cost['name'])]


def _images(subject: Subject) -> dict[str, Any]:
    if subject.settings.images is not None:
        number = len(subject.batches) * subject.settings.batch
        return dict(images=f'{number} photographs', shape=None)
    images = subject.batches[0] if subject.kind == 'backbone' else subject.batches[0]['inputs'][0]
    return dict(images='synthetic', shape=list(images.shape[-2:]))


def _subject_record(measurement: Measurement, facts: Mapping[str, Any]) -> SubjectRecord:
    subject = measurement.subject
    only = subject.settings.only
    part = only if only is not None and subject.kind == 'detector' else None
    whole = measurement.whole if part is None else measurement.alone[part]
    return SubjectRecord(
        name=subject.name if part is None else f'{subject.name}: {part}',
        source=subject.source,
        kind=subject.kind if part is None else 'part',
        weights=subject.weights,
        config_sha256=subject.config_sha256,
        prepared=subject.prepared,
        parameters=facts['parameters'],
        input_shape=facts['input_shape'],
        counts=facts['counts'],
        warmup_runs=len(measurement.warmup),
        warmup_stable=measurement.stable,
        compile_s=measurement.compile_seconds,
        whole=summarize(whole),
        in_place=_in_place(measurement.in_place, subject.part_order()),
        in_place_whole=summarize([sum(run.values()) for run in measurement.in_place]) if measurement.in_place else None,
        alone=[]
        if part is not None
        else [PartTime(name=name, phase=FORWARD, time=summarize(times)) for name, times in measurement.alone.items()],
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
            theirs, ours = (_figure(measurement, figure) for measurement in (other, base))
            if theirs and ours:
                ratio, interval = ratio_by_round(theirs, ours)
                low, high, coverage = interval or (None, None, None)
                yield Ratio(
                    figure=figure,
                    subject=other.subject.name,
                    base=base.subject.name,
                    ratio=ratio,
                    low=low,
                    high=high,
                    coverage=coverage,
                )


def _figure(measurement: Measurement, figure: str) -> list[float]:
    alone = measurement.subject.kind == 'backbone'
    if figure == 'whole':
        return [] if alone else measurement.whole
    return measurement.whole if alone else measurement.alone.get('backbone', [])


def _signs_of_trouble(records: Sequence[SubjectRecord], num_batches: int) -> Iterator[str]:
    """Yield what makes the times doubtful; photographs of different sizes spread by themselves."""
    for record in records:
        if not record['warmup_stable'] and num_batches == 1:
            yield f'{record["name"]}: the times had not settled after {record["warmup_runs"]} runs of warm-up'
        if num_batches == 1 and (width := spread(record['whole'])) > BUSY_SPREAD:
            yield (
                f'{record["name"]}: the middle 80 percent of the runs span {width:.0%} of the median, as they do '
                f'on a machine that is busy with something else: repeat this when it is idle'
            )
