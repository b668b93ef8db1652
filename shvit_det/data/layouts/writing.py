"""Data sets written in another layout: a new folder with labels and copies of the pictures."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ...common.atomic_files import replacing_folder
from ...common.durations import counted
from ...common.errors import UsageError
from ..sample_images import SUPERSAMPLING, has_hole, trace_polygons
from .labels import Labels, Losses, Split, content_of


def convert_data(source: str | Path, target: str | Path, layout: str, to: str) -> list[str]:
    """Read a data set and write it in another layout, completely or not at all; return lines for the user.

    Args:
        source: The folder of the data set.
        target: A folder that does not exist or is empty.
        layout: That of the source, or ``'auto'``.
        to: ``'coco'``, ``'yolo'`` or ``'labelme'``.

    Raises:
        UsageError: If the source cannot be read, or the target is not empty or cannot be written.
    """
    from .reading import read_labels  # here, because it imports every layout

    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f'{target} exists and is not an empty folder: name a new one')
    labels = read_labels(source, layout)
    read = list(labels.lines())
    labels.losses, labels.notes = Losses(), []
    return [*read, *write_labels(labels, target, to)]


def write_labels(labels: Labels, target: Path, to: str) -> list[str]:
    """Write a data set into a new folder, completely or not at all; return lines for the user.

    Raises:
        UsageError: If the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(target, replace=target.exists()) as folder:
            num_objects = WRITERS[to](labels, folder)
    except OSError as error:
        raise UsageError(f'cannot write {error.filename or target}: {error.strerror or error}') from error
    pictures, objects = counted(labels.totals[0], 'picture'), counted(num_objects, 'object')
    written = f'written: {pictures}, {objects} in {target} ({to} layout)'
    return [*labels.notes, *labels.losses.lines(), written]


def copy_pictures(split: Split, folder: Path) -> dict[Any, str]:
    """Copy the pictures of a split into a new folder; return their names there by id, no two with the same stem."""
    folder.mkdir(parents=True)
    names: dict[Any, str] = {}
    taken: set[str] = set()
    for image in split.content['images']:
        path = split.path_of(image)
        stem, number = path.stem, 1
        while stem.lower() in taken:
            number += 1
            stem = f'{path.stem}_{number}'
        taken.add(stem.lower())
        names[image['id']] = f'{stem}{path.suffix}'
        shutil.copyfile(path, folder / names[image['id']])
    return names


def pictures_with_objects(
    labels: Labels, split: Split, folder: Path, layout: str
) -> Iterator[tuple[Path, dict[str, Any], dict[str, dict[str, Any]]]]:
    """Copy the pictures of a split; yield each new path with the entry and the objects but crowds, by their places."""
    names = copy_pictures(split, folder)
    objects: dict[Any, dict[str, dict[str, Any]]] = {image_id: {} for image_id in names}
    for each in split.objects:
        place = f'object {each["id"]} of {names[each["image_id"]]}'
        if each.get('iscrowd'):
            labels.losses.add(f'crowds and difficult objects left out, which {layout} has no word for', place)
        else:
            objects[each['image_id']][place] = each
    for image in split.content['images']:
        yield folder / names[image['id']], image, objects[image['id']]


def write_coco(labels: Labels, folder: Path) -> int:
    """Write ``annotations/instances_SPLIT.json`` and ``images/SPLIT/``; return how many objects."""
    (folder / 'annotations').mkdir()
    for split in labels.splits.values():
        names = copy_pictures(split, folder / 'images' / split.name)
        images = [{**each, 'file_name': names[each['id']]} for each in split.content['images']]
        content = content_of(images, split.objects, labels.classes)
        (folder / 'annotations' / f'instances_{split.name}.json').write_text(json.dumps(content), encoding='utf-8')
    return labels.totals[1]


def write_yolo(labels: Labels, folder: Path) -> int:
    """Write ``data.yaml``, ``images/SPLIT/`` and ``labels/SPLIT/``; return how many objects.

    Polygons are written if every object has an outline, else boxes: those who read YOLO's files want one kind.
    """
    polygons = labels.has_masks
    without, number = labels.without_outline()
    if not polygons and without < number:
        labels.notes.append(f'outlines left out: {number - without} of {number}, since the other objects have none')
    written = 0
    for split in labels.splits.values():
        label_folder = folder / 'labels' / split.name
        label_folder.mkdir(parents=True)
        for picture, image, objects in pictures_with_objects(labels, split, folder / 'images' / split.name, 'YOLO'):
            size, lines = (image['width'], image['height']), []
            for place, each in objects.items():
                points = outline_of(each, place, labels.losses) if polygons else centred(each['bbox'])
                text = ' '.join(f'{value:.6f}' for value in np.clip(points / size, 0, 1).ravel())
                lines.append(f'{each["category_id"] - 1} {text}\n')
            (label_folder / f'{picture.stem}.txt').write_text(''.join(lines), encoding='utf-8')
            written += len(lines)
    settings = {name: f'images/{name}' for name in labels.splits} | {'names': dict(enumerate(labels.classes))}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / 'data.yaml').write_text(text, encoding='utf-8')
    return written


def centred(box: Sequence[float]) -> NDArray[np.float64]:
    """Return the centre of a box, and its width and height (2, 2)."""
    left, top, width, height = box
    return np.array([[left + width / 2, top + height / 2], [width, height]])


def outline_of(each: Mapping[str, Any], place: str, losses: Losses) -> NDArray[np.float64]:
    """Return the outline of an object as one polygon (N, 2), as YOLO wants it: several parts are joined by lines."""
    parts = polygons_of(each['segmentation'], place, losses)
    if not parts:
        left, top, width, height = each['bbox']
        parts = [[left, top, left + width, top, left + width, top + height, left, top + height]]
        losses.add('outlines of less than 4 pixels, written as rectangles', place)
    if len(parts) > 1:
        losses.add('outlines of several parts, joined by lines', place)
    joined, *others = (np.array(part, np.float64).reshape(-1, 2) for part in parts)
    for points in others:
        distances = np.linalg.norm(joined[:, None] - points[None], axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        turned = np.roll(points, -int(there), axis=0)
        joined = np.concatenate([joined[: here + 1], turned, turned[:1], joined[here:]])
    return joined


def polygons_of(segmentation: Any, place: str, losses: Losses) -> list[list[float]]:
    """Return the polygons of an object; none if it has no mask, or one in run lengths of less than 4 pixels."""
    if not segmentation or not isinstance(segmentation, dict):
        return segmentation or []
    if isinstance(segmentation['counts'], list):
        segmentation = mask_utils.frPyObjects(segmentation, *segmentation['size'])
    mask: NDArray[np.uint8] = mask_utils.decode(segmentation)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return polygons_of_part(part, (columns[0], rows[0]), place, losses)


def polygons_of_part(part: NDArray[np.uint8], corner: tuple[int, int], place: str, losses: Losses) -> list[list[float]]:
    """Return the polygons of a mask; ``part`` is what is around its object, with the upper left pixel at ``corner``."""
    fine = np.pad(part.repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1), 1).astype(np.bool_)
    polygons = trace_polygons(fine)
    if has_hole(fine):
        losses.add('outlines with holes, which are filled', place)
    if polygons and cv2.connectedComponents(part, connectivity=8)[0] - 1 > len(polygons):
        losses.add('outlines with parts of less than 4 pixels, which are left out', place)
    start = np.array(corner) - 1 / SUPERSAMPLING
    return [(np.array(polygon).reshape(-1, 2) + start).ravel().tolist() for polygon in polygons]


def write_labelme(labels: Labels, folder: Path) -> int:
    """Write ``SPLIT/`` with pictures and a JSON file beside each; return how many objects."""
    written = 0
    for split in labels.splits.values():
        for picture, image, objects in pictures_with_objects(labels, split, folder / split.name, 'LabelMe'):
            shapes = []
            for place, each in objects.items():
                label = labels.classes[each['category_id'] - 1]
                shapes += shapes_of(each, label, place, labels.losses)
            content = dict(
                version='5.0.1',
                flags={},
                shapes=shapes,
                imagePath=picture.name,
                imageData=None,
                imageHeight=image['height'],
                imageWidth=image['width'],
            )
            text = json.dumps(content, indent=2, ensure_ascii=False)
            picture.with_suffix('.json').write_text(text, encoding='utf-8')
            written += len(objects)
    return written


def shapes_of(each: Mapping[str, Any], label: str, place: str, losses: Losses) -> list[dict[str, Any]]:
    """Return the shapes of an object: its polygons, a group if there are several, or a rectangle if there are none."""
    parts = polygons_of(each.get('segmentation'), place, losses)
    common: dict[str, Any] = dict(label=label, group_id=each['id'] if len(parts) > 1 else None, flags={})
    if parts:
        return [dict(common, points=np.reshape(part, (-1, 2)).tolist(), shape_type='polygon') for part in parts]
    left, top, width, height = each['bbox']
    return [dict(common, points=[[left, top], [left + width, top + height]], shape_type='rectangle')]


WRITERS: dict[str, Callable[[Labels, Path], int]] = {'coco': write_coco, 'yolo': write_yolo, 'labelme': write_labelme}
