"""What a run leaves for the eye: a table of average precisions and a picture of its curves."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

AP_COLUMNS = {'mAP': 'AP', 'mAP_50': 'AP50', 'mAP_75': 'AP75', 'mAP_s': 'APs', 'mAP_m': 'APm', 'mAP_l': 'APl'}


def coco_table(metrics: Mapping[str, float]) -> str:
    """Return the COCO average precisions among ``metrics`` (mmdet's names) as a table, one row per kind of output."""
    rows = []
    for kind in ('bbox', 'segm'):
        values = [metrics.get(f'coco/{kind}_{key}') for key in AP_COLUMNS]
        if values[0] is not None:
            cells = ['  none' if value is None or value < 0 else f'{value:6.3f}' for value in values]
            rows.append(f'{kind:<6}' + '  '.join(cells))
    header = ' ' * 6 + '  '.join(f'{name:>6}' for name in AP_COLUMNS.values())
    return '\n'.join([header, *rows]) if rows else 'no average precision was measured'


def read_runs(work_dir: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield what each run in a work dir logged, in order of time; a torn last line of a killed run is left out."""
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = []
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
        yield records


def last_metrics(work_dir: Path) -> dict[str, float]:
    """Return the metrics of the newest evaluation that a work dir's logs hold; empty if there was none."""
    metrics: dict[str, float] = {}
    for record in chain.from_iterable(read_runs(work_dir)):
        found = {name: value for name, value in record.items() if name.startswith('coco/')}
        metrics = found or metrics
    return metrics


def read_curves(work_dir: Path) -> dict[str, dict[int, float]]:
    """Return losses and average precisions by name, each as values by iteration.

    A run that starts at an iteration which an earlier run had passed takes its place from there on: a resumed run goes
    on with the curve, one from the beginning replaces it.
    """
    curves: dict[str, dict[int, float]] = {}
    for records in read_runs(work_dir):
        first = next((record['step'] for record in records if 'loss' in record), None)
        if first is not None:
            curves = {name: {i: v for i, v in points.items() if i < first} for name, points in curves.items()}
        iteration = 0
        for record in records:
            if 'loss' in record:
                iteration = record['step']
            for name, value in record.items():
                if ('loss' in record and 'loss' in name) or name in ('coco/bbox_mAP', 'coco/segm_mAP'):
                    curves.setdefault(name, {})[iteration] = value
    return {name: points for name, points in curves.items() if points}


def plot_curves(work_dir: Path) -> Path | None:
    """Draw the curves of a work dir into ``curves.png`` there and return its path; None if nothing was logged yet."""
    curves = read_curves(work_dir)
    if not curves:
        return None

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout='constrained')
    loss_axes, precision_axes = figure.subplots(1, 2)
    for name, points in curves.items():
        axes = precision_axes if name.startswith('coco/') else loss_axes
        x, y = zip(*sorted(points.items()), strict=True)
        label = name.removeprefix('coco/').removesuffix('_mAP')
        axes.plot(x, y, label=label, linewidth=2 if name == 'loss' else 1, marker='o' if len(x) < 20 else None)
    loss_axes.set(xlabel='iteration', ylabel='loss', title='training loss', ylim=(0, None))
    precision_axes.set(xlabel='iteration', ylabel='AP', title='validation AP (0.50:0.95)', ylim=(0, 1))
    for axes in (loss_axes, precision_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize='small')
    path = work_dir / 'curves.png'
    FigureCanvasAgg(figure).print_png(str(path))
    return path
