"""The results of a benchmark as text: the tables and notes that the terminal shows and that a Markdown file has."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..common.measurement_records import conditions, origin
from .published import CPU, GPU, PUBLISHED, REFERENCE, TABLE_5, Published, published_for
from .record import UNATTRIBUTED, Ceilings, PartCost, PartTime, Ratio, Record, Subject
from .statistics import MIN_INTERVAL_ROUNDS
from .text_tables import Block, Table, as_markdown, as_text, percent, significant

WHOLE = 'whole'
SHOWN_OPERATIONS = 4  # without a MAC formula, in the terminal
CONVENTIONS = (
    'One multiply-add is one MAC, two FLOP. GFLOP/s and shares of the ceilings are over the time alone where there is '
    'one, else in place; % copy takes the bytes that each operation by itself reads and writes.'
)
RATIO_MEANING = 'Ratios are medians of one interleaved run; above 1 the model is slower than the base.'


def terminal_report(record: Record) -> str:
    """Return all results of a benchmark, for a terminal of 120 columns."""
    return as_text(_report(record, SHOWN_OPERATIONS))


def markdown_report(record: Record, title: str = 'Benchmark') -> str:
    """Return all results of a benchmark as a Markdown page."""
    return f'# {title}\n\n```sh\n{record["command"]}\n```\n\n{as_markdown(_report(record, None))}\n'


def image_ms(subject: Subject) -> float:
    """Return the milliseconds per image; with a batch of several images, this is no latency."""
    return subject['whole']['median_ms'] / subject['input_shape'][0]


def _report(record: Record, shown: int | None) -> list[Block]:
    subjects, ceilings = record['subjects'], record['ceilings']
    settings = record['settings']
    blocks: list[Block] = [f'- {conditions(record)}', f'- {origin(record)}']
    if any(subject['kind'] == 'detector' for subject in subjects):
        asked = f'; at most {settings["detections"]} detections' if settings['detections'] is not None else ''
        blocks.append(f'- images: {settings["images"]}{asked}')
    if settings['only']:
        blocks.append(f'- only {", ".join(settings["only"])}')
    if ceilings:
        blocks.append(
            f'- ceilings of this machine: {significant(ceilings["matmul_gflop_s"])} GFLOP/s matrix product '
            f'({ceilings["matmul_by"]}), {significant(ceilings["copy_gb_s"])} GB/s copy'
        )
    others = {subject['dtype']: subject['ceilings'] for subject in subjects if 'ceilings' in subject}
    for dtype, own in others.items():
        rate = significant(own['matmul_gflop_s'])
        blocks.append(f'- ceilings in {dtype}: {rate} GFLOP/s matrix product ({own["matmul_by"]})')
    blocks += [f'- **WARNING {warning}**' for warning in record['warnings']]
    blocks += ['## Times', _overview(subjects, record)]
    blocks += _facts(subjects)
    for subject in subjects:
        if subject['kind'] == 'detector':
            blocks += [f'## Parts of {subject["name"]}', _parts(subject, ceilings)]
            blocks += [f'- {text}' for text in [_hooks(subject)] if text]
    if settings['protocol'] == 'paper':
        blocks += _published(subjects, settings['device'])
    if record['ratios']:
        blocks += ['## Ratios', *_ratios(record['ratios'])]
    blocks += ['## Notes', f'- {CONVENTIONS}']
    uncounted = [f'- {subject["name"]}: {text}' for subject in subjects if (text := _uncounted(subject, shown))]
    return [*blocks, '- Operations without a MAC formula, counted as none:', *uncounted] if uncounted else blocks


def _overview(subjects: Sequence[Subject], record: Record) -> Table:
    """A row for each subject, with times per image: latencies if all have one image in a batch."""
    batches = [subject['input_shape'][0] for subject in subjects]
    single = max(batches) == 1
    what = 'training step ms' if record['settings']['mode'] == 'train' else 'latency ms'
    quantiles = [
        ' .. '.join(significant(subject['whole'][key] / batch) for key in ('p10_ms', 'p90_ms'))
        for subject, batch in zip(subjects, batches, strict=True)
    ]
    totals = [_total(subject) for subject in subjects]
    return Table(
        {
            'model': [subject['name'] for subject in subjects],
            what if single else 'ms/image': [significant(image_ms(subject)) for subject in subjects],
            'p10 .. p90': quantiles,
            'images/s': [''] * len(subjects) if single else [significant(1e3 / image_ms(s)) for s in subjects],
            'params M': [_number(cost['parameters'] / 1e6) for cost in totals],
            'GMACs': [_number(cost['macs'] / batch / 1e9) for cost, batch in zip(totals, batches, strict=True)],
            **_rates(totals, [s['whole']['median_ms'] for s in subjects], _ceilings(subjects, record['ceilings'])),
        },
        text=['model'],
    )


def _facts(subjects: Sequence[Subject]) -> list[Block]:
    """Return what the subjects are and how they were run: a line with what all have in common, a table of the rest."""
    counts = dict.fromkeys(name for subject in subjects for name in subject['counts'])
    facts = {
        'config sha256': [(subject['config_sha256'] or '')[:8] for subject in subjects],
        'weights': [subject['weights'] for subject in subjects],
        'input': ['x'.join(map(str, subject['input_shape'])) for subject in subjects],
        **{f'{name}/image': [_range(subject['counts'].get(name, [])) for subject in subjects] for name in counts},
        'prepared': [', '.join(subject['prepared']) for subject in subjects],
        'min ms/run': [significant(subject['whole']['min_ms']) for subject in subjects],
        'runs': [str(subject['whole']['runs']) for subject in subjects],
        'warm-up runs': [f'{s["warmup_runs"]}{"" if s["warmup_stable"] else ", NOT stable"}' for s in subjects],
        'compile s': [_number(subject['compile_s']) for subject in subjects],
    }
    common = {name: values[0] for name, values in facts.items() if len(set(values)) == 1}
    line = ', '.join(f'{name} {value}' for name, value in common.items() if value)
    own = {name: values for name, values in facts.items() if name not in common}
    names = {'model': [subject['name'] for subject in subjects]}
    table = Table(names | own, text=['model', 'config sha256', 'weights', 'input', 'prepared'])
    return [f'- {"all" if len(subjects) > 1 else subjects[0]["name"]}: {line}', *([table] if own else [])]


def _hooks(subject: Subject) -> str:
    """How much slower a run is when its parts are timed; empty if they were not."""
    if subject['in_place_whole'] is None:
        return ''
    bare, hooked = subject['whole']['median_ms'], subject['in_place_whole']['median_ms']
    return (
        f'without hooks {significant(bare)} ms per run, with the parts timed in place {significant(hooked)} ms: '
        f'a difference of {percent(hooked / bare - 1)} %'
    )


def _uncounted(subject: Subject, shown: int | None) -> str:
    """The operations without a MAC formula, the most frequent first, all or ``shown`` of them."""
    counts: Counter[str] = Counter()
    for cost in subject['cost']:
        counts.update(cost['uncounted'])
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = [f'{name} {count}x' for name, count in ordered[:shown]]
    if len(names) < len(ordered):
        names.append(f'and {len(ordered) - len(names)} more')
    return ', '.join(names)


def _parts(subject: Subject, ceilings: Ceilings | None) -> Table:
    """A row for each part of a detector, then the unattributed time, then the whole run."""
    in_place, alone = _milliseconds(subject['in_place']), _milliseconds(subject['alone'])
    forward, backward = (_milliseconds(subject['in_place'], phase) for phase in ('forward', 'backward'))
    if not backward:  # then the column in place has the same times
        forward = {}
    if subject['in_place_whole']:
        in_place[WHOLE] = subject['in_place_whole']['median_ms']
    costs = {cost['name']: cost for cost in subject['cost']}
    names = dict.fromkeys(part['name'] for part in (*subject['in_place'], *subject['alone'], *subject['cost']))
    names.pop(UNATTRIBUTED, None)
    rows = [*names, UNATTRIBUTED, WHOLE]
    works = [*(costs.get(name, _total(None)) for name in rows[:-1]), _total(subject)]
    times = [alone.get(name, in_place.get(name)) for name in rows]
    return Table(
        {
            'part': rows,
            'in place ms': [_number(in_place.get(name)) for name in rows],
            'share %': [_share(in_place.get(name), in_place.get(WHOLE)) for name in rows],
            'alone ms': [_number(alone.get(name)) for name in rows],
            'forward ms': [_number(forward.get(name)) for name in names] + ['', ''],
            'backward ms': [_number(backward.get(name)) for name in names] + ['', ''],
            'params M': [_number(cost['parameters'] / 1e6) for cost in works],
            'GMACs': [_number(cost['macs'] / 1e9) for cost in works],
            'peak MiB': [_number(cost['peak_memory_bytes'] / 2**20) for cost in works],
            **_rates(works, times, _ceilings([subject] * len(rows), ceilings)),
        },
        text=['part'],
    )


def _milliseconds(parts: Iterable[PartTime], phase: str | None = None) -> dict[str, float]:
    """Return the medians by part, of one phase or of both together."""
    times: Counter[str] = Counter()
    for part in parts:
        if phase in (None, part['phase']):
            times[part['name']] += part['time']['median_ms']  # type: ignore[assignment]  # counts need not be whole
    return dict(times)


def _total(subject: Subject | None) -> PartCost:
    """Return the cost of all parts of a subject together, but for the peaks in memory, which do not add up."""
    costs = subject['cost'] if subject else []
    return PartCost(
        name=WHOLE,
        parameters=subject['parameters'] if subject else 0,
        macs=sum(cost['macs'] for cost in costs),
        moved_bytes=sum(cost['moved_bytes'] for cost in costs),
        peak_memory_bytes=0,
        uncounted={},
    )


def _ceilings(subjects: Sequence[Subject], of_record: Ceilings | None) -> list[Ceilings | None]:
    return [subject.get('ceilings', of_record) for subject in subjects]


def _rates(
    costs: Sequence[PartCost], times_ms: Sequence[float | None], ceilings: Sequence[Ceilings | None]
) -> dict[str, list[str]]:
    """Return the columns of the rates that were reached, and of their shares of the machine's ceilings."""
    columns: dict[str, list[str]] = {'GFLOP/s': [], '% matmul': [], '% copy': []}
    for cost, time_ms, ceiling in zip(costs, times_ms, ceilings, strict=True):
        gflop_s = 2e-6 * cost['macs'] / time_ms if time_ms else None
        copied_gb_s = 1e-6 * cost['moved_bytes'] / time_ms if time_ms else None
        columns['GFLOP/s'].append(_number(gflop_s))
        columns['% matmul'].append(_share(gflop_s, ceiling and ceiling['matmul_gflop_s']))
        columns['% copy'].append(_share(copied_gb_s, ceiling and ceiling['copy_gb_s']))
    return columns


def _published(subjects: Sequence[Subject], device: str) -> list[Block]:
    """Return measured beside published times, whose ratios to SHViT-S4 compare across hardware."""
    found = [(subject, row) for subject in subjects if (row := published_for(subject['source']))]
    timed = [(subject, row, row.latency) for subject, row in found if row.latency]
    here = [image_ms(subject) for subject, *_ in timed]
    there = [latency.gpu_ms if device.startswith('cuda') else latency.cpu_ms for *_, latency in timed]
    bases = zip(here, there, timed, strict=True)
    base = next(((own, other) for own, other, (_, row, _) in bases if row.backbone == REFERENCE), (None, None))
    blocks: list[Block] = [
        Table(
            {
                'backbone': [subject['name'] for subject, *_ in timed],
                'ms/image here': [significant(own) for own in here],
                'published, other hardware': [significant(other) for other in there],
                f'over {REFERENCE}, here': [_ratio(own, base[0]) for own in here],
                f'over {REFERENCE}, published': [_ratio(other, base[1]) for other in there],
            },
            text=['backbone'],
        )
    ]
    if timed:
        hardware = GPU if device.startswith('cuda') else CPU
        blocks.append(f'- Published: {TABLE_5}, on {hardware}; only the ratios to {REFERENCE} compare across hardware.')
    classifiers = dict.fromkeys(row for _, row in found if row.classifier and not row.latency)
    return ['## Published times', *blocks, *map(_classifier_line, classifiers)] if timed or classifiers else []


def _classifier_line(row: Published) -> str:
    own = row.classifier
    reference = next(other.classifier for other in PUBLISHED if other.backbone == REFERENCE)
    assert own and reference
    gpu_ratio = significant(reference.gpu_images_s / own.gpu_images_s)
    cpu_ratio = significant(reference.cpu_onnx_images_s / own.cpu_onnx_images_s)
    return (
        f'- {row.backbone} is published as an ImageNet classifier at 256x256 only: {REFERENCE} has {gpu_ratio} times '
        f'its images/s on a GPU ({reference.gpu_images_s:.0f} to {own.gpu_images_s:.0f}) and {cpu_ratio} times with '
        f'ONNX Runtime on a CPU ({reference.cpu_onnx_images_s:.0f} to {own.cpu_onnx_images_s:.0f}).'
    )


def _ratios(ratios: Sequence[Ratio]) -> list[Block]:
    coverage = ratios[0]['coverage']
    certainty = (
        f'There are no intervals: fewer than {MIN_INTERVAL_ROUNDS} rounds say too little.'
        if coverage is None
        else f'About {100 * coverage:.0f} % of such intervals hold the true ratio.'
    )
    table = Table(
        {
            'model': [ratio['subject'] for ratio in ratios],
            'over base': [ratio['base'] for ratio in ratios],
            'figure': [ratio['figure'] for ratio in ratios],
            'ratio': [significant(ratio['ratio']) for ratio in ratios],
            f'{100 * (coverage or 0):.0f} % interval': [_interval(ratio) for ratio in ratios],
        },
        text=['model', 'over base', 'figure'],
    )
    return [table, f'- {RATIO_MEANING} {certainty}']


def _interval(ratio: Ratio) -> str:
    """Return the interval of a ratio; empty without one."""
    low, high = ratio['low'], ratio['high']
    return f'{significant(low)} .. {significant(high)}' if low and high else ''


def _range(values: Sequence[int]) -> str:
    low, high = min(values, default=''), max(values, default='')
    return f'{low}' if low == high else f'{low} .. {high}'


def _number(value: float | None) -> str:
    return significant(value) if value else ''


def _share(value: float | None, of: float | None) -> str:
    return percent(value / of) if value and of else ''


def _ratio(value: float, base: float | None) -> str:
    return significant(value / base) if base else ''
