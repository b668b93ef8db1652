"""The report of a benchmark, for the terminal and as Markdown."""

from collections.abc import Sequence

from .descriptions import CONVENTIONS, between, conditions, hooks_cost, identity, origin, span, speed, uncounted, warmup
from .layout import Block, Heading, Lines, Warnings, as_markdown, as_text, percent, significant
from .published import CPU, GPU, PUBLISHED, REFERENCE, TABLE_5, Published, published_for
from .record import Record, Subject
from .statistics import MIN_INTERVAL_ROUNDS
from .tables import backbone_table, overview_table, part_names, part_table, published_table, ratio_table

ALONE = ('backbone', 'part')
SHOWN = 4  # uncounted operations of a subject in the terminal
RATIO_MEANING = 'Ratios are medians of one interleaved run; above 1 the subject is slower.'


def terminal_report(record: Record) -> str:
    """Return all that a benchmark found, for a terminal of 120 columns."""
    return as_text(_blocks(record, SHOWN))


def markdown_report(record: Record) -> str:
    """Return all that a benchmark found, as Markdown."""
    return f'# Benchmark\n\n{command_block(record)}\n\n{as_markdown(_blocks(record, None))}\n'


def command_block(record: Record) -> str:
    """Return the command that made a record, as Markdown."""
    return f'```sh\n{record["command"]}\n```'


def markdown_tables(record: Record) -> str:
    """Return the tables of a benchmark for a page of documents: one row for each subject, details folded away."""
    detectors, backbones = of_kind(record, 'detector'), of_kind(record, *ALONE)
    pieces = [as_markdown([Warnings(record['warnings'])])]
    if len(detectors) == 1:
        pieces.append(as_markdown(detector_blocks(detectors[0], record, None)[1:]))
    elif detectors:
        pieces.append(as_markdown(overview_blocks(detectors, record)))
        pieces.extend(_folded(subject['name'], detector_blocks(subject, record, None)[1:]) for subject in detectors)
    pieces.append(as_markdown(backbone_blocks(backbones, record, SHOWN)))
    pieces.append(as_markdown(ratio_blocks(record)))
    return '\n\n'.join(filter(None, pieces))


def of_kind(record: Record, *kinds: str) -> list[Subject]:
    """Return the detectors, or what was measured alone, of a record."""
    return [subject for subject in record['subjects'] if subject['kind'] in kinds]


def detector_blocks(subject: Subject, record: Record, shown: int | None) -> list[Block]:
    """Return what one detector is, how fast, and where its time goes."""
    training = record['settings']['mode'] == 'train'
    lines = [identity(subject), speed(subject, training), hooks_cost(subject), warmup(subject)]
    return [
        Heading(subject['name']),
        Lines(list(filter(None, lines))),
        part_table(subject, record['ceilings']),
        Lines(list(filter(None, [uncounted(subject, shown)]))),
    ]


def overview_blocks(subjects: Sequence[Subject], record: Record) -> list[Block]:
    """Return one table for all detectors that have the same parts, and how much timing the parts cost."""
    alike: dict[tuple[str, ...], list[Subject]] = {}
    for subject in subjects:
        alike.setdefault(tuple(part_names(subject)), []).append(subject)
    costs = [
        subject['in_place_whole']['median_ms'] / subject['whole']['median_ms'] - 1
        for subject in subjects
        if subject['in_place_whole']
    ]
    phases = ', forward + backward' if record['settings']['mode'] == 'train' else ''
    line = f'Medians in ms of one run{phases}; the whole is timed with nothing hooked in.'
    if costs:
        line += f' Timing the parts in place cost {between(percent(min(costs)), percent(max(costs)))} % of it.'
    return [*(overview_table(group) for group in alike.values()), Lines([line])]


def backbone_blocks(subjects: Sequence[Subject], record: Record, shown: int | None) -> list[Block]:
    """Return how fast the backbones are, and under the paper's protocol what it reports of them."""
    if not subjects:
        return []
    unstable = [subject['name'] for subject in subjects if not subject['warmup_stable']]
    compiled = [f'{subject["name"]} {significant(s)} s' for subject in subjects if (s := subject['compile_s'])]
    runs = span([subject['warmup_runs'] for subject in subjects])
    stable = f'NOT stable: {", ".join(unstable)}' if unstable else 'stable'
    lines = [f'warm-up {runs} runs, {stable}']
    if compiled:
        lines.append(f'compiled in: {", ".join(compiled)}')
    lines += [f'{subject["name"]}: {text}' for subject in subjects if (text := uncounted(subject, shown))]
    blocks: list[Block] = [backbone_table(subjects, record['ceilings']), Lines(lines)]
    return blocks + _published_blocks(subjects, record) if record['settings']['protocol'] == 'paper' else blocks


def ratio_blocks(record: Record) -> list[Block]:
    """Return the comparisons of a record."""
    ratios = record['ratios']
    if not ratios:
        return []
    coverage = ratios[0]['coverage']
    certainty = (
        f'There are no intervals: fewer than {MIN_INTERVAL_ROUNDS} rounds say too little.'
        if coverage is None
        else f'About {100 * coverage:.0f} % of such intervals hold the true ratio.'
    )
    return [ratio_table(ratios), Lines([f'{RATIO_MEANING} {certainty}'])]


def _published_blocks(subjects: Sequence[Subject], record: Record) -> list[Block]:
    device = record['settings']['device']
    table = published_table(subjects, device)
    rows = dict.fromkeys(filter(None, (published_for(subject['source']) for subject in subjects)))
    lines = [_classifier_line(row) for row in rows if row.classifier and not row.latency]
    if table.filled():
        lines.insert(
            0,
            f'Published: {TABLE_5}, on {GPU if device.startswith("cuda") else CPU}; '
            f'only the ratios to {REFERENCE} compare across hardware.',
        )
    return [table, Lines(lines)]


def _classifier_line(row: Published) -> str:
    own = row.classifier
    reference = next(other.classifier for other in PUBLISHED if other.backbone == REFERENCE)
    assert own and reference
    gpu_ratio = significant(reference.gpu_images_s / own.gpu_images_s)
    cpu_ratio = significant(reference.cpu_onnx_images_s / own.cpu_onnx_images_s)
    return (
        f'{row.backbone} is published as an ImageNet classifier at 256x256 only: {REFERENCE} has {gpu_ratio} times its '
        f'images/s on a GPU ({reference.gpu_images_s:.0f} to {own.gpu_images_s:.0f}) and {cpu_ratio} times with '
        f'ONNX Runtime on a CPU ({reference.cpu_onnx_images_s:.0f} to {own.cpu_onnx_images_s:.0f}).'
    )


def _blocks(record: Record, shown: int | None) -> list[Block]:
    detectors, backbones = of_kind(record, 'detector'), of_kind(record, *ALONE)
    settings, ceilings = record['settings'], record['ceilings']
    lines = [conditions(record), origin(record)]
    if detectors:
        asked = f'; at most {settings["detections"]} detections' if settings['detections'] is not None else ''
        lines.append(f'images: {settings["images"]}{asked}')
    if settings['only']:
        lines.append(f'only {", ".join(settings["only"])}')
    if ceilings:
        lines.append(
            f'ceilings of this machine: {significant(ceilings["matmul_gflop_s"])} GFLOP/s matrix product '
            f'({ceilings["matmul_by"]}), {significant(ceilings["copy_gb_s"])} GB/s copy'
        )
    others = {subject['dtype']: subject['ceilings'] for subject in record['subjects'] if 'ceilings' in subject}
    for dtype, own in others.items():
        lines.append(f'in {dtype}: {significant(own["matmul_gflop_s"])} GFLOP/s matrix product ({own["matmul_by"]})')
    blocks: list[Block] = [Lines(lines), Warnings(record['warnings'])]
    for subject in detectors:
        blocks += detector_blocks(subject, record, shown)
    if backbones:
        blocks += [Heading('Alone'), *backbone_blocks(backbones, record, shown)]
    if record['ratios']:
        blocks += [Heading('Ratios'), *ratio_blocks(record)]
    return [*blocks, Lines([CONVENTIONS])]


def _folded(title: str, blocks: Sequence[Block]) -> str:
    return f'<details><summary>{title}</summary>\n\n{as_markdown(blocks)}\n\n</details>'
