"""The picture of a benchmark: where detectors spend their time, how fast backbones are, and what that buys."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch, Rectangle

from ..common.atomic_files import saving
from .benchmark_report import ALONE, of_kind
from .descriptions import batch_size, conditions, image_ms
from .labels import GAPS, place_labels
from .layout import significant
from .published import published_for
from .record import UNATTRIBUTED, PartTime, Record, Subject

# Paul Tol's muted scheme, which colour-blind readers can tell apart, and two more for long detectors.
COLORS = (
    '#332288',
    '#88CCEE',
    '#44AA99',
    '#DDCC77',
    '#CC6677',
    '#117733',
    '#AA4499',
    '#999933',
    '#882255',
    '#EE7733',
    '#BBCC33',
)
GREY = '#BBBBBB'
HATCH = '///'
BAR_INCHES = 0.45
LABEL_SIZE = 8
CENTRED: dict[str, Any] = dict(ha='center', va='center')

Point = tuple[str, float, float]  # a backbone, its ms per image, its AP
Segment = tuple[Axes, Rectangle, float]  # a part of a bar, and its ms


def save_plot(record: Record, path: str | Path) -> None:
    """Draw a benchmark into a PNG file."""
    figure = draw_plot(record)
    with saving(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))


def draw_plot(record: Record) -> Figure:
    """Return a picture of a benchmark: detectors by part, backbones, and their time against published AP."""
    detectors, backbones = of_kind(record, 'detector'), of_kind(record, *ALONE)
    points = _accuracy_points(backbones)
    rows = [len(subjects) for subjects in (detectors, backbones) if subjects]
    heights = [1.6 + BAR_INCHES * count for count in rows]
    if points:
        heights[-1] = max(heights[-1], 4.5)
    figure = Figure(figsize=(12, sum(heights) + 0.5), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(conditions(record), fontsize='medium')
    panels = iter(figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0])
    segments: list[Segment] = []
    if detectors:
        segments = _draw_detectors(next(panels), detectors)
    if backbones:
        columns = next(panels).subplots(1, 2 if points else 1, squeeze=False)[0]
        _draw_backbones(columns[0], backbones)
        if points:
            _draw_accuracy(columns[1], points, batch_size(backbones[0]))
    figure.canvas.draw()  # places everything, so that labels can be measured
    _label_segments(segments)
    if points:
        _label_points(columns[1], points)
    return figure


def part_colors(subjects: Sequence[Subject]) -> dict[str, str]:
    """Return one colour for each part, the same wherever it occurs."""
    names = dict.fromkeys(part['name'] for subject in subjects for part in subject['in_place'])
    names.pop(UNATTRIBUTED, None)
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)} | {UNATTRIBUTED: GREY}


def _draw_detectors(panel: SubFigure, subjects: Sequence[Subject]) -> list[Segment]:
    """Draw a stacked bar for each detector and return its segments, each with its milliseconds."""
    axes = panel.subplots()
    colors = part_colors(subjects)
    segments = []
    for row, subject in enumerate(subjects):
        left = 0.0
        for part in _in_order(subject['in_place']):
            width = part['time']['median_ms']
            bars = axes.barh(
                row,
                width,
                left=left,
                height=0.62,
                color=colors[part['name']],
                edgecolor='white',
                linewidth=0.6,
                hatch=HATCH if part['phase'] == 'backward' else None,
            )
            segments.append((axes, bars[0], width))
            left += width
        axes.annotate(
            significant(left), (left, row), (5, 0), textcoords='offset points', va='center', fontsize=LABEL_SIZE
        )
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    if any(part['phase'] == 'backward' for subject in subjects for part in subject['in_place']):
        handles.append(Patch(facecolor='#666666', edgecolor='white', hatch=HATCH, label='backward'))
    panel.legend(handles=handles, loc='outside lower center', ncols=6, frameon=False, fontsize='small')
    axes.set(title='detectors, parts in place', xlabel='ms per run (median)')
    _name_rows(axes, subjects)
    return segments


def _in_order(parts: Sequence[PartTime]) -> list[PartTime]:
    """Return the parts with the backward phase of each beside its forward phase, and what belongs to none last."""
    names = list(dict.fromkeys(part['name'] for part in parts))
    return sorted(parts, key=lambda part: (part['name'] == UNATTRIBUTED, names.index(part['name'])))


def _draw_backbones(axes: Axes, subjects: Sequence[Subject]) -> None:
    """Draw a bar for each backbone, with whiskers from the 10th to the 90th percentile."""
    for row, subject in enumerate(subjects):
        median, batch = image_ms(subject), batch_size(subject)
        low, high = (subject['whole'][key] / batch for key in ('p10_ms', 'p90_ms'))
        axes.barh(row, median, height=0.62, color=COLORS[2])
        axes.errorbar(median, row, xerr=[[median - low], [high - median]], color='black', capsize=3, linewidth=1)
        axes.annotate(
            significant(median), (high, row), (5, 0), textcoords='offset points', va='center', fontsize=LABEL_SIZE
        )
    batch = batch_size(subjects[0])
    axes.set(
        title=f'backbones, {"latency" if batch == 1 else f"batch {batch}"}', xlabel='ms per image (median, p10 to p90)'
    )
    _name_rows(axes, subjects)


def _name_rows(axes: Axes, subjects: Sequence[Subject]) -> None:
    axes.set_yticks(range(len(subjects)), [subject['name'] for subject in subjects])
    axes.set_ylim(len(subjects) - 0.5, -0.5)  # the first on top
    axes.margins(x=0.12)  # for the figures beside the bars
    axes.set_xlim(0, None)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)


def _accuracy_points(subjects: Sequence[Subject]) -> list[Point]:
    """Return name, measured ms per image and published AP of the backbones that have one; a single one is none."""
    points: list[Point] = []
    for subject in subjects:
        row = published_for(subject['source'])
        if row and row.accuracy and row.accuracy.box_ap is not None:
            names = [name for name, *_ in points]
            label = subject['name'] if row.backbone in names else row.backbone  # two forms of one backbone
            points.append((label, image_ms(subject), row.accuracy.box_ap))
    return points if len(points) > 1 else []


def _draw_accuracy(axes: Axes, points: Sequence[Point], batch: int) -> None:
    times, precisions = [time for _, time, _ in points], [precision for *_, precision in points]
    axes.scatter(times, precisions, color=COLORS[0], zorder=3)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set(
        title='measured time against published accuracy',
        xlabel=f'backbone {"latency" if batch == 1 else f"at batch {batch}"}, measured (ms per image)',
        ylabel='Mask R-CNN box AP, published (1x schedule)',
        xlim=(0, 1.15 * max(times)),
    )


def _label_segments(segments: Sequence[Segment]) -> None:
    """Write the milliseconds into the segments that are wide enough."""
    for axes, bar, value in segments:
        color = bar.get_facecolor()
        red, green, blue, _ = to_rgba(color)
        text = axes.text(
            bar.get_x() + bar.get_width() / 2,
            bar.get_y() + bar.get_height() / 2,
            significant(value),
            **CENTRED,
            color='white' if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else 'black',
            fontsize=LABEL_SIZE,
            bbox=dict(facecolor=color, edgecolor='none', pad=1),  # covers the hatch
        )
        if text.get_window_extent().width + 6 > bar.get_window_extent().width:
            text.remove()


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Name the points, with a line to each name that stands far from its point."""
    middles, sizes = [], []
    for name, time, precision in points:
        x, y = axes.transData.transform((time, precision))
        text = axes.text(time, precision, name, fontsize=LABEL_SIZE)
        box = text.get_window_extent()
        text.remove()
        middles.append((x, y))
        sizes.append((box.width, box.height))
    places = place_labels(middles, sizes, axes.get_window_extent().extents)
    for (name, time, precision), middle, place, (width, _) in zip(points, middles, places, sizes, strict=True):
        far = math.dist(middle, place) > width / 2 + 2 * GAPS[0]
        axes.annotate(
            name,
            (time, precision),
            (place[0] - middle[0], place[1] - middle[1]),
            textcoords='offset pixels',
            fontsize=LABEL_SIZE,
            arrowprops=dict(arrowstyle='-', color=GREY) if far else None,
            **CENTRED,
        )
