"""The check of a COCO data set before a run: what would end in a traceback, or in silent training on nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError


def read_annotations(path: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file.

    Raises:
        UsageError: If the file does not exist or is not COCO JSON.
    """
    if not path.is_file():
        raise UsageError(
            f'no annotation file {path}: name the folder of a COCO-layout data set with --data-root DIR, '
            f'or draw the sample set with tools/make_sample.py'
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise UsageError(f'{path} is not COCO JSON: {error}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UsageError(f'{path} is not COCO JSON: it has no list {key!r}')
    return content


def check_categories(content: dict[str, Any], classes: Sequence[str], path: Path) -> None:
    """Compare the classes of a config with the categories of an annotation file.

    mmdet numbers the categories in the order of the file and ignores those that it does not know: with no match it
    trains on nothing, with some missing or in another order it gives objects the names of others.

    Raises:
        UsageError: If a class is not in the file, or their order differs.
    """
    in_file = [str(category.get('name')) for category in content['categories']]
    missing = [name for name in classes if name not in in_file]
    if len(missing) == len(classes):
        raise UsageError(
            f'none of the classes of the config ({_first(classes)}) is a category of {path} ({_first(in_file)}): '
            f'set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    if missing:
        raise UsageError(
            f'{len(missing)} of the {len(classes)} classes of the config are no category of {path} '
            f'({_first(missing)}): set metainfo=dict(classes=...) of the datasets to the names in the file'
        )
    ordered = [name for name in in_file if name in classes]
    if ordered != list(classes):
        raise UsageError(
            f'the classes of the config are in another order ({_first(classes)}) than the categories of {path} '
            f'({_first(ordered)}), and labels would get the wrong names: use the order of the file'
        )


def check_images(content: dict[str, Any], folder: Path, path: Path) -> None:
    """Look for every image that the annotation file lists.

    Raises:
        UsageError: If the folder or an image does not exist.
    """
    if not folder.is_dir():
        raise UsageError(
            f'no image folder {folder}: name the folder of a COCO-layout data set with --data-root DIR, '
            f'or draw the sample set with tools/make_sample.py'
        )
    names = [str(image.get('file_name')) for image in content['images']]
    # one listing per folder: a question per file takes minutes on a network drive with all of COCO
    subfolders = {(folder / name).parent for name in names}
    present = {path for subfolder in subfolders if subfolder.is_dir() for path in subfolder.iterdir()}
    missing = [name for name in names if folder / name not in present]
    if missing:
        raise UsageError(
            f'{len(missing)} of the {len(names)} images that {path} lists are not in {folder} (the first: {missing[0]})'
        )


def _first(names: Sequence[str], count: int = 4) -> str:
    return ', '.join(names[:count]) + (', ...' if len(names) > count else '')
