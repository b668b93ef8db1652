"""The tables of a benchmark: what a record says, in rows and columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .descriptions import batch_size, image_ms, images_per_second, span
from .layout import Column, Table, percent, significant
from .published import REFERENCE, published_for
from .record import UNATTRIBUTED, Ceilings, PartCost, PartTime, Ratio, Subject

WHOLE = 'whole'
MIB = 2**20


@dataclass(frozen=True)
class Work:
    """What was done, and in what time; None where it was not measured."""

    time_ms: float | None = None
    parameters: int = 0
    macs: float = 0
    moved_bytes: float = 0
    peak_memory_bytes: int = 0

    def gflop_s(self) -> float | None:
        """Return the achieved rate, two per multiply-add."""
        return 2e-6 * self.macs / self.time_ms if self.time_ms and self.macs else None

    def moved_gb_s(self) -> float | None:
        """Return the rate at which the operations read and wrote, each counted by itself."""
        return 1e-6 * self.moved_bytes / self.time_ms if self.time_ms and self.moved_bytes else None


def cost_columns(works: Sequence[Work]) -> list[Column]:
    """Return what some works cost."""
    return [
        Column('params M', [_number(work.parameters / 1e6) for work in works]),
        Column('GMACs', [_number(work.macs / 1e9) for work in works]),
        Column('peak MiB', [_number(work.peak_memory_bytes / MIB) for work in works]),
    ]


def rate_columns(works: Sequence[Work], ceilings: Sequence[Ceilings | None]) -> list[Column]:
    """Return how fast some works went, and how near that comes to what the machine can do in the dtype of each."""
    matmul = [ceiling and ceiling['matmul_gflop_s'] for ceiling in ceilings]
    copy = [ceiling and ceiling['copy_gb_s'] for ceiling in ceilings]
    columns = [Column('GFLOP/s', [_number(work.gflop_s()) for work in works])]
    if any(ceilings):
        columns += [
            Column('% matmul', [_share(work.gflop_s(), of) for work, of in zip(works, matmul, strict=True)]),
            Column('% copy', [_share(work.moved_gb_s(), of) for work, of in zip(works, copy, strict=True)]),
        ]
    return columns


def part_names(subject: Subject) -> list[str]:
    """Return the parts of a subject in their order, without what is attributed to none."""
    names = [part['name'] for part in (*subject['in_place'], *subject['alone'], *subject['cost'])]
    return [name for name in dict.fromkeys(names) if name != UNATTRIBUTED]


def milliseconds(parts: Iterable[PartTime], phase: str | None = None) -> dict[str, float]:
    """Return the medians of parts by name, of one phase or of all together."""
    times: dict[str, float] = {}
    for part in parts:
        if phase in (None, part['phase']):
            times[part['name']] = times.get(part['name'], 0) + part['time']['median_ms']
    return times


def total_work(subject: Subject, time_ms: float | None = None) -> Work:
    """Return the work of all parts of a subject together; their peaks in memory do not add up."""
    macs, moved_bytes = (sum(cost[key] for cost in subject['cost']) for key in ('macs', 'moved_bytes'))
    return Work(time_ms, subject['parameters'], macs, moved_bytes)


def part_table(subject: Subject, ceilings: Ceilings | None) -> Table:
    """Return a row for each part of a detector, then what belongs to none, then the whole."""
    in_place, alone = milliseconds(subject['in_place']), milliseconds(subject['alone'])
    forward, backward = (milliseconds(subject['in_place'], phase) for phase in ('forward', 'backward'))
    if not backward:  # of a forward pass only, the column in place says it all
        forward = {}
    if subject['in_place_whole']:
        in_place[WHOLE] = subject['in_place_whole']['median_ms']
    costs = {cost['name']: cost for cost in subject['cost']}
    parts = part_names(subject)
    works = [_part_work(costs.get(name), alone.get(name, in_place.get(name))) for name in parts]
    works += [Work(), total_work(subject, in_place.get(WHOLE))]
    rows = [*parts, UNATTRIBUTED, WHOLE]
    return Table(
        [
            Column('part', rows, text=True),
            Column('in place ms', [_number(in_place.get(name)) for name in rows]),
            Column('share %', [_share(in_place.get(name), in_place.get(WHOLE)) for name in rows]),
            Column('alone ms', [_number(alone.get(name)) for name in rows]),
            Column('forward ms', [_number(forward.get(name)) for name in parts] + ['', '']),
            Column('backward ms', [_number(backward.get(name)) for name in parts] + ['', '']),
            *cost_columns(works),
            *rate_columns(works, [subject.get('ceilings', ceilings)] * len(works)),
        ]
    )


def overview_table(subjects: Sequence[Subject]) -> Table:
    """Return a row for each of some detectors with the same parts, and a column for each part, in milliseconds."""
    forward, backward = (
        [milliseconds(subject['in_place'], phase) for subject in subjects] for phase in ('forward', 'backward')
    )
    both = list(zip(forward, backward, strict=True))
    counts = dict.fromkeys(name for subject in subjects for name in subject['counts'])
    return Table(
        [
            Column('detector', [subject['name'] for subject in subjects], text=True),
            *(
                Column(name, [_sum(*(times.get(name) for times in phases)) for phases in both])
                for name in (*part_names(subjects[0]), UNATTRIBUTED)
            ),
            Column('whole', [significant(subject['whole']['median_ms']) for subject in subjects]),
            Column('images/s', [_throughput(subject) for subject in subjects]),
            *(
                Column(f'{name}/image', [span(subject['counts'].get(name, ())) for subject in subjects])
                for name in counts
            ),
            *cost_columns([total_work(subject) for subject in subjects]),
        ]
    )


def backbone_table(subjects: Sequence[Subject], ceilings: Ceilings | None) -> Table:
    """Return a row for each backbone, its figures per image: a latency with batch 1, else a throughput."""
    single = all(batch_size(subject) == 1 for subject in subjects)
    spreads = [[subject['whole'][key] / batch_size(subject) for key in ('p10_ms', 'p90_ms')] for subject in subjects]
    works = [_image_work(subject) for subject in subjects]
    return Table(
        [
            Column('alone', [subject['name'] for subject in subjects], text=True),
            Column('latency ms' if single else 'ms/image', [significant(image_ms(subject)) for subject in subjects]),
            Column('p10 .. p90', [' .. '.join(map(significant, spread)) for spread in spreads]),
            Column('images/s', [_throughput(subject) for subject in subjects]),
            *cost_columns(works),
            *rate_columns(works, [subject.get('ceilings', ceilings) for subject in subjects]),
            Column('prepared', [', '.join(subject['prepared']) for subject in subjects], text=True),
        ]
    )


def published_table(subjects: Sequence[Subject], device: str) -> Table:
    """Return measured beside published milliseconds per image, and what compares across hardware: ratios to SHViT-S4.

    Without any published latency among the backbones, the table is empty.
    """
    rows = []
    for subject in subjects:
        published = published_for(subject['source'])
        if published and published.latency:
            figure = published.latency.gpu_ms if device.startswith('cuda') else published.latency.cpu_ms
            rows.append((subject['name'], image_ms(subject), figure, published.backbone == REFERENCE))
    measured_base, published_base = next(((here, there) for _, here, there, is_base in rows if is_base), (None, None))
    return Table(
        [
            Column('backbone', [name for name, *_ in rows], text=True),
            Column('ms/image here', [significant(here) for _, here, _, _ in rows]),
            Column('published, other hardware', [significant(there) for _, _, there, _ in rows]),
            Column(f'over {REFERENCE}, here', [_ratio(here, measured_base) for _, here, _, _ in rows]),
            Column(f'over {REFERENCE}, published', [_ratio(there, published_base) for _, _, there, _ in rows]),
        ]
    )


def ratio_table(ratios: Sequence[Ratio]) -> Table:
    """Return a row for each ratio, with its interval if the record has them; all have as many rounds."""
    intervals = [
        f'{significant(ratio["low"])} .. {significant(ratio["high"])}' if ratio['low'] and ratio['high'] else ''
        for ratio in ratios
    ]
    coverage = ratios[0]['coverage'] or 0
    return Table(
        [
            Column('subject', [ratio['subject'] for ratio in ratios], text=True),
            Column('over base', [ratio['base'] for ratio in ratios], text=True),
            Column('figure', [ratio['figure'] for ratio in ratios], text=True),
            Column('ratio', [significant(ratio['ratio']) for ratio in ratios]),
            Column(f'{coverage:.0%} interval'.replace('%', ' %'), intervals),
        ]
    )


def _part_work(cost: PartCost | None, time_ms: float | None) -> Work:
    if cost is None:
        return Work(time_ms)
    return Work(time_ms, cost['parameters'], cost['macs'], cost['moved_bytes'], cost['peak_memory_bytes'])


def _image_work(subject: Subject) -> Work:
    work, batch = total_work(subject), batch_size(subject)
    return replace(work, time_ms=image_ms(subject), macs=work.macs / batch, moved_bytes=work.moved_bytes / batch)


def _number(value: float | None) -> str:
    return significant(value) if value else ''


def _share(value: float | None, of: float | None) -> str:
    return percent(value / of) if value is not None and of else ''


def _ratio(value: float, base: float | None) -> str:
    return significant(value / base) if base else ''


def _sum(*times: float | None) -> str:
    return ' + '.join(significant(time) for time in times if time is not None)


def _throughput(subject: Subject) -> str:
    return significant(images_per_second(subject)) if batch_size(subject) > 1 else ''
