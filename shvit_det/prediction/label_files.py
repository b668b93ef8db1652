"""Predictions as a data set with labels, to correct in an annotation tool or to train on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..data.layouts.labels import PICTURES, Labels, Split, content_of
from ..data.layouts.writing import WRITERS, write_labels
from .inputs import Input


def check_labels(layout: str | None, out: Path) -> None:
    """Check that a data set of predictions can be written.

    Raises:
        UsageError: If the layout is none that is written, or there is one of an earlier run, which may be corrected.
    """
    if layout is None:
        return
    if layout not in WRITERS:
        raise UsageError(f'--labels is {", ".join(WRITERS)}, but got {layout}')
    if (out / layout).exists():
        raise UsageError(f'{out / layout} exists, and labels in it may be corrected ones: choose another --out')


def save_labels(results: Path, classes: Sequence[str], layout: str) -> list[str]:
    """Write the pictures of a file of results as a data set in a folder beside it; return lines for the user.

    Frames, pages and downloads in the results, which are no files, are left out. The folder has the name of the layout.

    Raises:
        UsageError: If it cannot be written.
    """
    content = json.loads(results.read_text(encoding='utf-8'))
    images = [image for image in content['images'] if is_picture(image)]
    left_out = len(content['images']) - len(images)
    lines = []
    if left_out:
        lines.append(f'frames, pages, downloads and pictures of other kinds, which get no labels, left out: {left_out}')
    if not images:
        return lines
    kept = {image['id'] for image in images}
    objects = [each for each in content['annotations'] if each['image_id'] in kept]
    split = Split('train', Path(), content_of(images, objects, classes))
    labels = Labels(results.parent, 'coco', tuple(classes), {'train': split}, (len(images), len(objects)))
    return [*lines, *write_labels(labels, results.parent / layout, layout)]


def is_picture(image: dict[str, Any]) -> bool:
    """Tell whether an entry of the results is a whole file that annotation tools read."""
    item = Input(image['file_name'])
    return not item.is_url and 'frame_index' not in image and item.path.suffix.lower() in PICTURES
