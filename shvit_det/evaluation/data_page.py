"""The page that shows the data of a config or a folder: images as training sees them, and statistics of the set."""

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import set_random_seed
from numpy.typing import NDArray

from ..common.durations import counted
from ..common.errors import UsageError
from ..common.output_paths import check_output_folder
from ..configuration.build_errors import build_from_config
from ..configuration.changing import set_data_root, use_checked_datasets
from ..configuration.coco_set_checks import check_before_run, draw_sample_set
from ..configuration.detector_or_classifier import task_of
from ..configuration.own_data import Settings, default_base, own_config
from ..configuration.reading import load_config, name_of
from ..data.layouts.reading import read_labels, with_validation
from ..prediction.drawing import draw
from ..prediction.image_reader import to_picture
from . import html_page as html
from .pictures import arrays_of, names_and_colors, places_in

LONGEST_SIDE = 640  # pixels of a picture in the page
GRID = 16  # rows and columns into which images are divided, to count where objects are
# Names of bins with what they begin at
OBJECT_BINS = {'none': 0, '1': 1, '2': 2, '3 to 5': 3, '6 to 10': 6, '11 to 20': 11, '21 to 50': 21, 'over 50': 51}
SIDE_BINS = {'0 to 8': 0, '8 to 16': 8, '16 to 32': 16, '32 to 64': 32, '64 to 96': 64, '96 to 128': 96,
             '128 to 256': 128, '256 to 512': 256, '512 and more': 512}  # fmt: skip
RATIO_BINS = {'1:4 and narrower': 0, '1:4 to 1:2': 1 / 4, '1:2 to 1:1': 1 / 2, '1:1 to 2:1': 1, '2:1 to 4:1': 2,
              '4:1 and wider': 4}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """What a data set of I images holds; N objects are counted."""

    num_ignored: int  # objects that are not trained on or scored, such as crowds; they count nowhere else
    per_image: NDArray[Any]  # (I,), the number of objects
    label: NDArray[Any]  # (N,), the class of each object
    side: NDArray[Any]  # (N,), of a square as large as the box of the object, in pixels
    ratio: NDArray[Any]  # (N,), of the width of the box to its height
    positions: NDArray[Any]  # (16, 16), how many objects have their centre in each cell of a grid over their image


def statistics(infos: Iterable[Mapping[str, Any]]) -> Statistics:
    """Return the statistics of what mmdet's data sets load.

    Args:
        infos: For each image ``width``, ``height`` and ``instances``: ``bbox`` (left, top, right, bottom in pixels),
            ``bbox_label`` and ``ignore_flag``.
    """
    per_image, labels, boxes, ignored = [], [], [], 0
    positions = np.zeros((GRID, GRID), int)
    for info in infos:
        objects = [each for each in info['instances'] if not each.get('ignore_flag')]
        ignored += len(info['instances']) - len(objects)
        per_image.append(len(objects))
        for each in objects:
            left, top, right, bottom = each['bbox']
            labels.append(each['bbox_label'])
            boxes.append((right - left, bottom - top))
            centre = ((left + right) / 2 / info['width'], (top + bottom) / 2 / info['height'])
            column, row = (min(max(int(GRID * place), 0), GRID - 1) for place in centre)
            positions[row, column] += 1
    width, height = np.array(boxes, float).reshape(-1, 2).T
    side, ratio = np.sqrt(width * height), width / height.clip(1e-6)
    return Statistics(ignored, np.array(per_image, int), np.array(labels, int), side, ratio, positions)


def counts(values: NDArray[Any], bins: Mapping[str, float]) -> dict[str, int]:
    """Return how many values lie in each bin, from its start to that of the next; the last has no end."""
    places = np.searchsorted(list(bins.values()), values, side='right') - 1
    return dict(zip(bins, np.bincount(places.clip(0), minlength=len(bins)).tolist(), strict=True))


def browse(
    source: str,
    out: str,
    number: int = 24,
    seed: int = 0,
    data_root: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a page that shows the training data of a detector's config, and return its path.

    For a data set in a folder, this is the config that ``shvit-det init`` writes: of the smallest Mask R-CNN if all
    objects have outlines, otherwise of the smallest RetinaNet. Nothing is written into that folder.

    Args:
        source: The config file, or the folder of a data set that
            :func:`~shvit_det.data.layouts.reading.read_labels` reads.
        out: The folder for ``index.html``.
        number: How many images are shown, taken at equal distances from the whole data set.
        seed: Of the random numbers of the augmentation.
        data_root: Another folder of the layout that the config expects.
        cfg_options: Changes of single values, dotted names.

    Raises:
        UsageError: If the data cannot be used, or the folder cannot be written; nothing has been written then.
        RunError: If an image cannot be read, or the page cannot be written.
    """
    if number < 1:
        raise UsageError(f'--number is {number}: it takes at least one picture')
    if not 0 <= seed < 1 << 32:
        raise UsageError(f'--seed is {seed}: it takes a whole number from 0 to {(1 << 32) - 1}')
    if not os.path.isdir(source):  # noqa: PTH112  (Path raises for a text that is too long)
        config = load_config(source, cfg_options)
        if data_root is not None:
            set_data_root(config, data_root)
        return _write_page(config, name_of(source), [f'Config {source}.'], out, number, seed)
    if data_root is not None:
        raise UsageError(f'--data-root is for a config, and {source} is a folder: name the folder of the data alone')
    labels = with_validation(read_labels(source))
    base = default_base(labels)
    with tempfile.TemporaryDirectory() as scratch:  # of the config and of annotation files in COCO's form
        path = Path(scratch, 'config.py')
        own_config(base, source, Settings(), path.parent, labels=labels).write(path)
        notes = [f'Data set {source}, as {base} sees it.', *labels.lines()]
        return _write_page(load_config(str(path), cfg_options), Path(source).resolve().name, notes, out, number, seed)


def _write_page(config: Config, name: str, notes: list[str], out: str, number: int, seed: int) -> Path:
    task = task_of(config)
    if task.scope != 'mmdet':
        raise UsageError(f'boxes and masks are shown, and this is a {task.noun}, whose data have none')
    if config.get('train_dataloader') is None:
        raise UsageError('this config has no train_dataloader, whose data are shown')
    task.register()
    draw_sample_set(config)
    check_before_run(task, config, ('train',))
    use_checked_datasets(config)
    check_output_folder(Path(out), 'the folder of the page', '--out')
    set_random_seed(seed)
    scope, node = config.get('default_scope', task.scope), copy.deepcopy(config.train_dataloader.dataset)
    key = 'train_dataloader.dataset'
    dataset = build_from_config(DATASETS, node, config, key, scope, f'cannot build {key} of this config: ')
    cards = [_card(dataset, index) for index in html.spread(len(dataset), number)]
    inner = {id(each): each for each, _ in places_in(dataset)}  # the innermost data sets, each once
    parts = [
        *(html.paragraph(note, soft=True) for note in notes),
        html.links({'pictures': 'Pictures', 'statistics': 'Statistics'}, 'Parts of the page'),
        '<h2 id="pictures">Pictures</h2>',
        html.paragraph(f'{len(cards)} of {len(dataset)} images as the pipeline hands them to the model, seed {seed}.'),
        f'<div class="cards">{"".join(cards)}</div>',
        '<h2 id="statistics">Statistics</h2>',
        html.paragraph('Of the annotations, before any augmentation; sizes and ratios are those of the boxes.'),
        *(_section(each, number) for number, each in enumerate(inner.values())),
    ]
    return html.write_page(Path(out), f'Training data of {name}', parts)


def _card(dataset: Any, index: int) -> str:
    sample = dataset[index]
    inputs = sample.get('inputs') if isinstance(sample, Mapping) else None
    objects = None if inputs is None else getattr(sample.get('data_samples'), 'gt_instances', None)
    if not isinstance(inputs, torch.Tensor) or objects is None or not {'bboxes', 'labels'} <= {*objects.keys()}:
        raise UsageError(
            'the pipeline of this data set hands over no image with boxes and labels, as LoadAnnotations and '
            'PackDetInputs do: what it makes cannot be shown'
        )
    boxes, masks = arrays_of(objects.bboxes, objects.get('masks'))
    picture = to_picture(inputs.permute(1, 2, 0).numpy())
    if masks is not None:
        masks = _in_the_corner(masks, *picture.shape[:2])
    picture, masks, factor = html.fitting(picture, masks, LONGEST_SIDE)
    drawn = draw(picture, boxes * factor, objects.labels.numpy(), None, masks, *names_and_colors(dataset))
    name = Path(sample['data_samples'].get('img_path') or f'{index}').name
    height, width = inputs.shape[1:]
    text = f'{name}, {width} x {height}, {counted(len(boxes), "object")}'
    return html.image(drawn, text, text)


def _in_the_corner(masks: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Return masks in the size of a picture, unscaled: a pipeline may have forgotten to scale them."""
    whole = np.zeros((len(masks), height, width), bool)
    inside = masks[:, :height, :width]
    whole[:, : inside.shape[1], : inside.shape[2]] = inside
    return whole


def _section(dataset: Any, number: int) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        found = statistics(dataset.load_data_list())  # also the images that training leaves out
    names = list(dataset.metainfo.get('classes') or ())
    source = Path(getattr(dataset, 'ann_file', '') or f'data set {number + 1}').name
    text = (
        f'{len(found.per_image)} images with {len(found.label)} objects of {counted(len(names), "class")}; '
        f'{(found.per_image == 0).sum()} images have no object. Crowds and ignored objects, {found.num_ignored}, are '
        f'not counted. The data set hands over {len(dataset)} of these images.'
    )
    top = f'<h3>{escape(source)}</h3>{html.paragraph(text)}'
    if not len(found.label):
        return top
    rows = [_class_row(found, label, name) for label, name in enumerate(names)]
    charts: dict[str, tuple[Mapping[str, float], Any]] = {
        'Objects per image': (OBJECT_BINS, found.per_image),
        'Size: side of a square of the same area, pixels': (SIDE_BINS, found.side),
        'Aspect ratio, width to height': (RATIO_BINS, found.ratio),
    }
    figures = [
        f'<figure><figcaption>{escape(title)}</figcaption>'
        + html.bars([(name, count, str(count)) for name, count in counts(values, bins).items()])
        + '</figure>'
        for title, (bins, values) in charts.items()
    ]
    figures.append(html.heat_map(found.positions, 'Where the centres of objects lie in their images'))
    head = ['class', 'objects', 'share', 'images', 'median size', 'median ratio']
    table = html.table(head, rows, 'Classes', is_sorted=True)
    return f'{top}{table}<div class="charts">{"".join(figures)}</div>'


def _class_row(found: Statistics, label: int, name: str) -> list[str]:
    own = found.label == label
    count = int(own.sum())
    if not count:
        return [name, '0', *[html.number(None)] * 4]
    images = len(np.unique(np.repeat(np.arange(len(found.per_image)), found.per_image)[own]))
    share = f'{100 * count / len(found.label):.1f}%'
    size, ratio = (float(np.median(values[own])) for values in (found.side, found.ratio))
    return [name, str(count), share, str(images), html.number(size, 0), html.number(ratio, 2)]
