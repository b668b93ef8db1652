"""The sentences around a benchmark's tables: on what, of what, how fast."""

from collections import Counter
from collections.abc import Sequence

from .layout import percent, significant
from .record import Record, Subject

PACKAGES = ('torch', 'mmdet', 'mmcv', 'timm')  # whose versions stand beside a result
CONVENTIONS = (
    'One multiply-add is one MAC, two FLOP. GFLOP/s and shares of the ceilings are over the time alone where there is '
    'one, else in place; % copy takes the bytes that each operation by itself reads and writes.'
)


def batch_size(subject: Subject) -> int:
    """Return the number of images in one run."""
    return subject['input_shape'][0]


def image_ms(subject: Subject) -> float:
    """Return the milliseconds per image; of a batch of several that is no latency."""
    return subject['whole']['median_ms'] / batch_size(subject)


def images_per_second(subject: Subject) -> float:
    """Return the throughput."""
    return 1000 / image_ms(subject)


def conditions(record: Record) -> str:
    """Return under what a benchmark was measured: hardware, threads, batch, shape, numbers."""
    settings, environment = record['settings'], record['environment']
    on_gpu = settings['device'].startswith('cuda')
    model = environment['gpu' if on_gpu else 'cpu']['model']
    parts = [
        f'{"GPU" if on_gpu else "CPU"}{f" {model}" if model else ""}',
        '' if on_gpu else counted(settings['threads'], 'thread'),
        f'batch {settings["batch"]}',
        '{}x{}'.format(*settings['shape']) if settings['shape'] else settings['images'],
        settings['dtype'],
        'channels-last' if settings['channels_last'] else '',
        'compiled' if settings['compile'] else '',
        'training' if settings['mode'] == 'train' else '',
    ]
    return ', '.join(filter(None, parts))


def origin(record: Record) -> str:
    """Return the rest of where and when a benchmark was made: cores, versions, date, commit."""
    settings, environment = record['settings'], record['environment']
    cpu, versions, source = environment['cpu'], environment['versions'], environment['source']
    on_gpu = settings['device'].startswith('cuda')
    parts = [
        f'CPU {cpu["model"]}, {counted(settings["threads"], "thread")}' if on_gpu else '',
        counted(cpu['usable_cores'], 'core'),
        *(
            versions[name] if ' ' in versions[name] else f'{name} {versions[name]}'
            for name in PACKAGES
            if versions.get(name)
        ),
        record['date'],
        f'commit {source["commit"][:10]}{" with changes" if source["changed"] else ""}' if source else '',
    ]
    return ', '.join(filter(None, parts))


def identity(subject: Subject) -> str:
    """Return what a detector is: its config, weights, input, what it found, what was done to it first."""
    batch, *shape = subject['input_shape']
    source = '' if subject['source'] == subject['name'] else subject['source']
    sha256 = f'sha256 {subject["config_sha256"][:8]}' if subject['config_sha256'] else ''
    origins = ', '.join(filter(None, (source, sha256)))
    parts = [
        f'{subject["name"]} ({origins})' if origins else subject['name'],
        f'weights {subject["weights"]}',
        f'batch {batch}',
        f'input {"x".join(map(str, shape))}',
        *(f'{span(values)} {name}' for name, values in subject['counts'].items()),
        f'prepared: {", ".join(subject["prepared"])}' if subject['prepared'] else 'not prepared',
    ]
    return ', '.join(parts)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, ``1 core`` or ``2 cores``."""
    return f'{number} {noun}{"" if number == 1 else "s"}'


def span(values: Sequence[int]) -> str:
    """Return the number that all have, or the range of the numbers; of none, nothing."""
    return between(str(min(values)), str(max(values))) if values else ''


def between(low: str, high: str) -> str:
    """Return a range, or what both ends are."""
    return low if low == high else f'{low} .. {high}'


def speed(subject: Subject, training: bool) -> str:
    """Return the latency of a single image, or the throughput of a larger batch; neither is the other's inverse."""
    times, batch = subject['whole'], batch_size(subject)
    spread = f'p10 {significant(times["p10_ms"])} .. p90 {significant(times["p90_ms"])}'
    spread += f', min {significant(times["min_ms"])}, {times["runs"]} runs'
    run_ms = significant(times['median_ms'])
    if batch == 1:
        return f'{"training step" if training else "latency"} {run_ms} ms ({spread})'
    images_s, per_image_ms = significant(images_per_second(subject)), significant(image_ms(subject))
    run = 'training step' if training else 'batch'
    return (
        f'throughput {images_s} images/s, {per_image_ms} ms per image; {run} of {batch} images {run_ms} ms ({spread})'
    )


def hooks_cost(subject: Subject) -> str:
    """Return how much slower the run is with its parts timed; empty if they were not."""
    if subject['in_place_whole'] is None:
        return ''
    bare, hooked = subject['whole']['median_ms'], subject['in_place_whole']['median_ms']
    return (
        f'with nothing hooked in {significant(bare)} ms, with the parts timed in place {significant(hooked)} ms: '
        f'a difference of {percent(hooked / bare - 1)} %'
    )


def warmup(subject: Subject) -> str:
    """Return how a subject was warmed up, and compiled."""
    stable = 'stable' if subject['warmup_stable'] else 'NOT stable'
    text = f'warm-up {counted(subject["warmup_runs"], "run")}, {stable}'
    return text if subject['compile_s'] is None else f'{text}; compiled in {significant(subject["compile_s"])} s'


def uncounted(subject: Subject, shown: int | None = None) -> str:
    """Return the operations without a MAC formula, the most frequent first, all or ``shown`` of them; or nothing."""
    counts: Counter[str] = Counter()
    for cost in subject['cost']:
        counts.update(cost['uncounted'])
    if not counts:
        return ''
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = [f'{name} {count}x' for name, count in ordered[:shown]]
    if len(names) < len(ordered):
        names.append(f'and {len(ordered) - len(names)} more')
    return f'operations without a MAC formula, counted as none: {", ".join(names)}'
