"""A data set in any of the layouts, recognised by its files, and its division where it has no part for validation."""

import random
from pathlib import Path
from types import ModuleType

from ...common.durations import counted
from ...common.errors import UsageError
from . import coco, labelme, voc, yolo
from .labels import Labels, Split, content_of

AUTO = 'auto'
LAYOUTS: dict[str, ModuleType] = {'yolo': yolo, 'voc': voc, 'coco': coco, 'labelme': labelme}  # in the order of trial
WANTED = (
    'COCO (_annotations.coco.json in train and valid, or annotations/instances_*.json), YOLO (data.yaml or obj.data), '
    'Pascal VOC (Annotations/*.xml) or LabelMe (a JSON file beside each picture)'
)
VAL_PART = 0.2  # of the pictures, where nobody has divided them
SEED = 0


def read_labels(folder: str | Path, layout: str = AUTO) -> Labels:
    """Read a data set from a folder.

    Args:
        layout: ``'coco'``, ``'yolo'``, ``'voc'``, ``'labelme'``, or ``'auto'`` for the one that its files show.

    Raises:
        UsageError: If there is no such folder, no layout is recognised, or nothing in it can be used.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f'{folder} is a file: name the folder of the data set')
    if not folder.is_dir():
        raise UsageError(f'no such folder of a data set: {folder}')
    try:
        if layout == AUTO:
            layout = next((name for name, module in LAYOUTS.items() if module.is_layout(folder)), '')
            if not layout:
                raise UsageError(f'{folder} has none of the layouts that are read: {WANTED}')
        labels: Labels = LAYOUTS[layout].read(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'cannot read the data set in {folder}: {error}') from error
    labels.folder = folder  # as the user names it
    left_out = next(labels.losses.lines(), '')
    if not any(split.content['images'] for split in labels.splits.values()):
        raise UsageError(f'not one picture of {folder} can be used; {left_out}')
    if not any(split.objects for split in labels.splits.values()):
        raise UsageError(f'not one object of {folder} can be used; {left_out or "none is labelled"}')
    return labels


def with_validation(labels: Labels) -> Labels:
    """Return a data set that has a part for validation: its own, or a fifth of the pictures, always the same.

    Raises:
        UsageError: If there is no part for training, or it has one picture alone.
    """
    train = labels.splits.get('train')
    if train is None or not train.objects:
        raise UsageError(f'{labels.folder} has no object to train on: it needs a part named train')
    val = labels.splits.get('val')
    if val is not None and val.content['images']:
        return labels
    images = train.content['images']
    if len(images) < 2:
        raise UsageError(f'{labels.folder} has one picture to train on: a second is needed for validation')
    number = max(1, round(VAL_PART * len(images)))
    drawn = set(random.Random(SEED).sample(range(len(images)), number))
    splits = {}
    for name, is_val in (('train', False), ('val', True)):
        chosen = [image for index, image in enumerate(images) if (index in drawn) == is_val]
        ids = {image['id'] for image in chosen}
        objects = [each for each in train.objects if each['image_id'] in ids]
        splits[name] = Split(name, train.images, content_of(chosen, objects, labels.classes))
    labels.splits = {**splits, **{name: split for name, split in labels.splits.items() if name == 'test'}}
    labels.notes.append(
        f'there is no part for validation: {number} of {counted(len(images), "picture")}, drawn with seed {SEED}, are '
        f'val, and the others train'
    )
    return labels
