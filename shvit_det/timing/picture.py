"""The picture of a benchmark: detectors by part, backbones, and their time against published accuracy."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from ..common.atomic_files import saving
from ..common.measurement_records import conditions
from .published import published_for
from .record import UNATTRIBUTED, PartTime, Record, Subject
from .results import image_ms
from .text_tables import significant

# Light colours that colour-blind readers can tell apart, on which black figures can be read.
COLORS = ('#77AADD', '#EE8866', '#EEDD88', '#FFAABB', '#99DDFF', '#44BB99', '#BBCC33', '#CCAACC', '#AAAA00', '#CCBB99')
GREY = '#DDDDDD'
HATCH = '///'
MARKERS = 'osD^vP*X<>'
BAR_INCHES = 0.45
LABEL_SIZE = 8
LABELLED_SHARE = 0.035  # of the longest bar: narrower segments have no room for their figure

Point = tuple[str, float, float]  # a backbone, its ms per image, its AP


def save_picture(record: Record, path: str | Path) -> None:
    """Draw a benchmark into a PNG file."""
    figure = draw_picture(record)
    with saving(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))


def draw_picture(record: Record) -> Figure:
    """Return the picture of a benchmark."""
    detectors = [subject for subject in record['subjects'] if subject['kind'] == 'detector']
    others = [subject for subject in record['subjects'] if subject['kind'] != 'detector']
    points = _accuracy_points(others)
    heights = [1.6 + BAR_INCHES * len(subjects) for subjects in (detectors, others) if subjects]
    if points:
        heights[-1] = max(heights[-1], 4.5)
    figure = Figure(figsize=(13, sum(heights) + 0.5), dpi=120, layout='constrained')
    figure.suptitle(conditions(record), fontsize='medium')
    panels = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if detectors:
        _draw_detectors(next(panels), detectors)
    if others:
        columns = next(panels).subplots(1, 2 if points else 1, squeeze=False)[0]
        _draw_backbones(columns[0], others)
        if points:
            _draw_accuracy(columns[1], points, others[0]['input_shape'][0])
    return figure


def part_colors(subjects: Sequence[Subject]) -> dict[str, str]:
    """Return a colour for each part, grey for the unattributed time, in the order of a run."""
    names = dict.fromkeys(part['name'] for subject in subjects for part in subject['in_place'])
    names.pop(UNATTRIBUTED, None)
    return dict(zip(names, cycle(COLORS))) | {UNATTRIBUTED: GREY}  # there are always enough colours


def _draw_detectors(panel: SubFigure, subjects: Sequence[Subject]) -> None:
    """Draw a bar for each detector, with a segment for each part and phase."""
    axes = panel.subplots()
    colors = part_colors(subjects)
    longest = max(sum(part['time']['median_ms'] for part in subject['in_place']) for subject in subjects)
    for row, subject in enumerate(subjects):
        left = 0.0
        for part in _in_order(subject['in_place']):
            width, hatch = part['time']['median_ms'], HATCH if part['phase'] == 'backward' else None
            color = colors[part['name']]
            bar = axes.barh(row, width, 0.62, left, color=color, edgecolor='white', linewidth=0.6, hatch=hatch)
            if width > LABELLED_SHARE * longest:
                axes.bar_label(bar, [significant(width)], label_type='center', fontsize=LABEL_SIZE)
            left += width
        _write_beside(axes, left, row, left)
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    if any(part['phase'] == 'backward' for subject in subjects for part in subject['in_place']):
        handles.append(Patch(facecolor='#888888', edgecolor='white', hatch=HATCH, label='backward'))
    panel.legend(handles=handles, loc='outside lower center', ncols=6, frameon=False, fontsize='small')
    axes.set(title='detectors, parts in place', xlabel='ms per run (median)')
    _name_rows(axes, subjects)


def _in_order(parts: Sequence[PartTime]) -> list[PartTime]:
    """Return the parts with the backward phase of each beside its forward phase, and the unattributed time last."""
    names = list(dict.fromkeys(part['name'] for part in parts))
    return sorted(parts, key=lambda part: (part['name'] == UNATTRIBUTED, names.index(part['name'])))


def _draw_backbones(axes: Axes, subjects: Sequence[Subject]) -> None:
    """Draw a bar for each backbone, with whiskers from the 10th to the 90th percentile."""
    batch = subjects[0]['input_shape'][0]
    for row, subject in enumerate(subjects):
        median, own_batch = image_ms(subject), subject['input_shape'][0]
        low, high = (subject['whole'][key] / own_batch for key in ('p10_ms', 'p90_ms'))
        axes.barh(row, median, 0.62, color=COLORS[0], xerr=[[median - low], [high - median]], capsize=3)
        _write_beside(axes, high, row, median)
    what = 'latency' if batch == 1 else f'batch {batch}'
    axes.set(title=f'backbones, {what}', xlabel='ms per image (median, p10 to p90)')
    _name_rows(axes, subjects)


def _write_beside(axes: Axes, x: float, row: int, value: float) -> None:
    axes.annotate(significant(value), (x, row), (5, 0), textcoords='offset points', va='center', fontsize=LABEL_SIZE)


def _name_rows(axes: Axes, subjects: Sequence[Subject]) -> None:
    axes.set_yticks(range(len(subjects)), [subject['name'] for subject in subjects])
    axes.set_ylim(len(subjects) - 0.5, -0.5)  # the first on top
    axes.margins(x=0.12)  # for the figures beside the bars
    axes.set_xlim(0, None)
    _style(axes, 'x')


def _style(axes: Axes, grid: str) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _accuracy_points(subjects: Sequence[Subject]) -> list[Point]:
    """Return the backbones with a published AP, if there are at least two."""
    rows = [(subject, published_for(subject['source'])) for subject in subjects]
    points = [(subject['name'], image_ms(subject), row.box_ap) for subject, row in rows if row and row.box_ap]
    return points if len(points) > 1 else []


def _draw_accuracy(axes: Axes, points: Sequence[Point], batch: int) -> None:
    for index, (name, time_ms, box_ap) in enumerate(points):
        color, marker = f'C{index % 10}', MARKERS[index % len(MARKERS)]
        axes.scatter([time_ms], [box_ap], s=45, color=color, marker=marker, alpha=0.7, zorder=3, label=name)
    axes.margins(y=0.15)
    axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=LABEL_SIZE, frameon=False)
    axes.set(
        title='measured time against published accuracy',
        xlabel=f'backbone {"latency" if batch == 1 else f"at batch {batch}"}, measured (ms per image)',
        ylabel='Mask R-CNN box AP, published (1x schedule)',
        xlim=(0, 1.15 * max(time_ms for _, time_ms, _ in points)),
    )
    _style(axes, 'both')
