"""Annotation files: read as pycocotools reads them, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...common.garbage_collection import collector_paused

SECTIONS = ('images', 'annotations', 'categories')
WHERE_TO_GET_DATA = (
    'name the folder of a COCO-layout data set with --data-root DIR, or draw the sample set with shvit-det make-sample'
)


def read_annotations(path: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file.

    Raises:
        UsageError: If the file does not exist or is not COCO JSON.
    """
    return parse_annotations(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an annotation file.

    Raises:
        UsageError: If it does not exist or cannot be read.
    """
    require_annotations(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f'cannot read {path}: {error.strerror}') from error


def require_annotations(path: Path) -> None:
    """Raise ``UsageError`` if an annotation file does not exist."""
    if not path.is_file():
        raise UsageError(f'no annotation file {path}: {WHERE_TO_GET_DATA}')


def parse_annotations(data: bytes, path: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file from its bytes; ``path`` is for the sentence.

    Raises:
        UsageError: If it is not JSON in UTF-8, or lacks one of the three lists.
    """
    try:
        # not json.loads(data), which takes UTF-16 and byte-order marks too: pycocotools does not
        with collector_paused():
            content = json.loads(data.decode('utf-8'))
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise UsageError(f'{path} is not COCO JSON: {error}') from error
    except RecursionError as error:
        raise UsageError(f'{path} is not COCO JSON: its lists are nested too deeply') from error
    for section in SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise UsageError(f'{path} is not COCO JSON: it has no list {section!r}')
    return content
