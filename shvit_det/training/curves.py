"""The losses and scores of a run, drawn as curves."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.runner import Runner

LARGEST_NUM_POINTS = 200  # of a curve of losses: each point is a mean
MAIN = re.compile(r'((bbox|segm|proposal)_)?m?AP|PQ|mIoU|top\d')  # after the last slash of a metric's name
PREFIX = re.compile(r'coco/|accuracy/')  # those of the metrics that our configs have

VALIDATION_LOSS = 'val_loss'  # how the names of the losses of validation images begin

Curve = dict[int, float]  # values by iteration


def loss_curves(runner: Runner) -> dict[str, Curve]:
    """Return the losses of a run by name; mmengine's message hub has those of each iteration, and resumes them."""
    curves = {}
    for name, history in runner.message_hub.log_scalars.items():
        stage, _, name = name.partition('/')
        values = history.data[0]
        if stage != 'train' or 'loss' not in name or not len(values):
            continue
        parts = np.array_split(values, min(len(values), LARGEST_NUM_POINTS))
        first = max(runner.iter - len(values), 0)
        last = first + np.cumsum([len(part) for part in parts]) * (runner.iter - first) / len(values)
        curves[name] = {round(x): float(part.mean()) for x, part in zip(last, parts, strict=True)}
    return curves


def validation_losses(evaluations: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the losses of the validation images by name, where ``ValidationLossHook`` has computed them."""
    return {name: curve for name, curve in curves_of(evaluations).items() if name.startswith(VALIDATION_LOSS)}


def score_curves(evaluations: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the main scores of a run by name, or all of them where no name is known as that of a main one."""
    scores = {name: curve for name, curve in curves_of(evaluations).items() if not name.startswith(VALIDATION_LOSS)}
    return {name: curve for name, curve in scores.items() if MAIN.fullmatch(name.rpartition('/')[2])} or scores


def curves_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    names = dict.fromkeys(name for each in evaluations for name in each['scores'])
    return {
        name: {each['iter']: each['scores'][name] for each in evaluations if name in each['scores']} for name in names
    }


def plot_curves(work_dir: Path, losses: dict[str, Curve], scores: dict[str, Curve]) -> Path | None:
    """Draw curves into ``curves.png`` of a work dir and return its path; None if there is nothing to draw."""
    if not losses and not scores:
        return None

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.13, top=0.92)  # matplotlib's own layouts draw all twice
    loss_axes, score_axes = figure.subplots(1, 2, sharex=True)
    for axes, curves in ((loss_axes, losses), (score_axes, scores)):
        for name, points in curves.items():
            x, y = zip(*sorted(points.items()), strict=True)
            marker = 'o' if len(x) < 20 else None
            label = PREFIX.sub('', name).removesuffix('_mAP')
            width = 1 if axes is loss_axes and name not in ('loss', VALIDATION_LOSS) else 2
            trained = next((line for line in axes.lines if f'val_{line.get_label()}' == name), None)
            style: dict[str, Any] = {} if trained is None else dict(color=trained.get_color(), linestyle='--')
            axes.plot(x, y, label=label, linewidth=width, marker=marker, **style)
        axes.set(xlabel='iteration')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize='small')
    loss_axes.set(
        ylabel='loss',
        title='loss' if any(name.startswith(VALIDATION_LOSS) for name in losses) else 'training loss',
        ylim=(0, None),
    )
    score_axes.set(ylabel='score', title='validation')
    values = [value for points in scores.values() for value in points.values()]
    if scores and all(0 <= value <= 1 for value in values):
        score_axes.set(ylim=(0, 1))
    elif any(name.startswith('accuracy/') for name in scores):
        score_axes.set(ylabel='accuracy (%)', ylim=(0, 100))
    path = work_dir / 'curves.png'
    FigureCanvasAgg(figure).print_png(str(path))
    return path
