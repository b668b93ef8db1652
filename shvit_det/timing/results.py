"""The results of a benchmark as text: the tables and notes that the terminal shows and that a Markdown file has."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..common.measurement_records import conditions, origin
from .published import CPU, GPU, PUBLISHED, REFERENCE, TABLE_5, Published, published_for
from .record import UNATTRIBUTED, Ceilings, PartCost, PartTime, Ratio, Record, Subject, no_cost
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
    blocks += ['## Times', _overview(record), *_facts(subjects)]
    for subject in subjects:
        if subject['kind'] == 'detector':
            blocks += _parts(subject, ceilings)
    if settings['protocol'] == 'paper':
        blocks += _published(subjects, on_gpu=settings['device'].startswith('cuda'))
    if record['ratios']:
        blocks += ['## Ratios', *_ratios(record['ratios'])]
    blocks += ['## Notes', f'- {CONVENTIONS}']
    uncounted = [f'- {subject["name"]}: {text}' for subject in subjects if (text := _uncounted(subject, shown))]
    return [*blocks, '- Operations without a MAC formula, counted as none:', *uncounted] if uncounted else blocks


def _overview(record: Record) -> Table:
    """A row for each subject, with times per image: latencies if all have one image in a batch."""
    single = all(subject['input_shape'][0] == 1 for subject in record['subjects'])
    latency = 'training step ms' if record['settings']['mode'] == 'train' else 'latency ms'
    rows = []
    for subject in record['subjects']:
        batch, cost, times = subject['input_shape'][0], _total(subject), subject['whole']
        rows.append(
            {
                'model': subject['name'],
                latency if single else 'ms/image': significant(image_ms(subject)),
                'p10 .. p90': f'{significant(times["p10_ms"] / batch)} .. {significant(times["p90_ms"] / batch)}',
                'images/s': '' if single else significant(1e3 / image_ms(subject)),
                'params M': _number(cost['parameters'] / 1e6),
                'GMACs': _number(cost['macs'] / batch / 1e9),
                **_rates(cost, times['median_ms'], subject.get('ceilings', record['ceilings'])),
            }
        )
    return Table(rows, text=['model'])


def _facts(subjects: Sequence[Subject]) -> list[Block]:
    """Return what the subjects are and how they were run: a line with what all have in common, a table of the rest."""
    counts = dict.fromkeys(name for subject in subjects for name in subject['counts'])
    facts = [
        {
            'config sha256': (subject['config_sha256'] or '')[:8],
            'weights': subject['weights'],
            'input': 'x'.join(map(str, subject['input_shape'])),
            **{f'{name}/image': _range(subject['counts'].get(name, [])) for name in counts},
            'prepared': ', '.join(subject['prepared']),
            'min ms/run': significant(subject['whole']['min_ms']),
            'runs': str(subject['whole']['runs']),
            'warm-up runs': f'{subject["warmup_runs"]}{"" if subject["warmup_stable"] else ", NOT stable"}',
            'compile s': _number(subject['compile_s']),
        }
        for subject in subjects
    ]
    common = {name: value for name, value in facts[0].items() if all(own[name] == value for own in facts)}
    line = ', '.join(f'{name} {value}' for name, value in common.items() if value)
    blocks: list[Block] = [f'- {"all" if len(subjects) > 1 else subjects[0]["name"]}: {line}']
    if len(common) < len(facts[0]):
        rows = [
            {'model': subject['name'], **{name: value for name, value in own.items() if name not in common}}
            for subject, own in zip(subjects, facts, strict=True)
        ]
        blocks.append(Table(rows, text=['model', 'config sha256', 'weights', 'input', 'prepared']))
    return blocks


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


def _parts(subject: Subject, ceilings: Ceilings | None) -> list[Block]:
    """A row for each part of a detector, the unattributed time and the whole run; below, what timing them costs."""
    assert subject['in_place_whole'] is not None
    bare, hooked = subject['whole']['median_ms'], subject['in_place_whole']['median_ms']
    in_place, alone = _milliseconds(subject['in_place']) | {WHOLE: hooked}, _milliseconds(subject['alone'])
    forward, backward = (
        _milliseconds(part for part in subject['in_place'] if part['phase'] == phase and part['name'] != UNATTRIBUTED)
        for phase in ('forward', 'backward')
    )
    if not backward:  # then the column in place has the same times
        forward = {}
    costs = {cost['name']: cost for cost in subject['cost']} | {WHOLE: _total(subject)}
    names = dict.fromkeys(part['name'] for part in (*subject['in_place'], *subject['alone'], *subject['cost']))
    names.pop(UNATTRIBUTED, None)
    rows = []
    for name in (*names, UNATTRIBUTED, WHOLE):
        cost = costs.get(name, no_cost(name))
        rows.append(
            {
                'part': name,
                'in place ms': _number(in_place.get(name)),
                'share %': _share(in_place.get(name), hooked),
                'alone ms': _number(alone.get(name)),
                'forward ms': _number(forward.get(name)),
                'backward ms': _number(backward.get(name)),
                'params M': _number(cost['parameters'] / 1e6),
                'GMACs': _number(cost['macs'] / 1e9),
                'peak MiB': _number(cost['peak_memory_bytes'] / 2**20),
                **_rates(cost, alone.get(name, in_place.get(name)), subject.get('ceilings', ceilings)),
            }
        )
    return [
        f'## Parts of {subject["name"]}',
        Table(rows, text=['part']),
        f'- without hooks {significant(bare)} ms per run, with the parts timed in place {significant(hooked)} ms: '
        f'a difference of {percent(hooked / bare - 1)} %',
    ]


def _milliseconds(parts: Iterable[PartTime]) -> dict[str, float]:
    """Return the medians by part, of all its phases together."""
    times: dict[str, float] = {}
    for part in parts:
        times[part['name']] = times.get(part['name'], 0.0) + part['time']['median_ms']
    return times


def _total(subject: Subject) -> PartCost:
    """Return the cost of all parts of a subject together, but for the peaks in memory, which do not add up."""
    total = no_cost(WHOLE, subject['parameters'])
    for cost in subject['cost']:
        total['macs'] += cost['macs']
        total['moved_bytes'] += cost['moved_bytes']
    return total


def _rates(cost: PartCost, time_ms: float | None, ceilings: Ceilings | None) -> dict[str, str]:
    """Return the rates that were reached, and their shares of the machine's ceilings."""
    gflop_s = 2e-6 * cost['macs'] / time_ms if time_ms else None
    copied_gb_s = 1e-6 * cost['moved_bytes'] / time_ms if time_ms else None
    return {
        'GFLOP/s': _number(gflop_s),
        '% matmul': _share(gflop_s, ceilings and ceilings['matmul_gflop_s']),
        '% copy': _share(copied_gb_s, ceilings and ceilings['copy_gb_s']),
    }


def _published(subjects: Sequence[Subject], on_gpu: bool) -> list[Block]:
    """Return measured beside published times, whose ratios to SHViT-S4 compare across hardware."""
    found = [(subject, row) for subject in subjects if (row := published_for(subject['source']))]
    times = [
        (subject['name'], row.backbone, image_ms(subject), row.latency.gpu_ms if on_gpu else row.latency.cpu_ms)
        for subject, row in found
        if row.latency
    ]
    classifiers = dict.fromkeys(row for _, row in found if row.classifier and not row.latency)
    if not times and not classifiers:
        return []
    base = next(((here, there) for _, backbone, here, there in times if backbone == REFERENCE), (None, None))
    rows = [
        {
            'backbone': name,
            'ms/image here': significant(here),
            'published, other hardware': significant(there),
            f'over {REFERENCE}, here': _ratio(here, base[0]),
            f'over {REFERENCE}, published': _ratio(there, base[1]),
        }
        for name, _, here, there in times
    ]
    blocks: list[Block] = ['## Published times', Table(rows, text=['backbone'])]
    if rows:
        hardware = GPU if on_gpu else CPU
        blocks.append(f'- Published: {TABLE_5}, on {hardware}; only the ratios to {REFERENCE} compare across hardware.')
    return [*blocks, *map(_classifier_line, classifiers)]


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
    rows = [
        {
            'model': ratio['subject'],
            'over base': ratio['base'],
            'figure': ratio['figure'],
            'ratio': significant(ratio['ratio']),
            f'{100 * (coverage or 0):.0f} % interval': _interval(ratio),
        }
        for ratio in ratios
    ]
    return [Table(rows, text=['model', 'over base', 'figure']), f'- {RATIO_MEANING} {certainty}']


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
