"""The drawn sample set: shapes on textured backgrounds in COCO's format and layout, used until COCO is there.

First runs, demonstrations and tests need a data set that is small, learnable within minutes on a processor, and has
everything that COCO has: small, medium and large objects, occlusion, objects in several parts, a crowd region, images
without any object, category ids with gaps. Scores on it show that the parts fit; they say nothing about COCO.
"""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ..common.atomic_files import replacing_folder
from ..common.errors import UsageError
from . import sample_images

# The ids have gaps, as COCO's have, so that code that takes a label for an id fails.
CATEGORIES: dict[str, int] = {'disc': 1, 'square': 2, 'triangle': 3, 'star': 5, 'cross': 8}

DRAWN_BY = 'shvit_det.data.sample'  # in every marker, so it stays whatever this file is called
GENERATOR_VERSION = 1  # raise it with every change that changes a pixel or an annotation
DESCRIPTION = (
    'Shapes drawn by shvit_det, a stand-in for COCO until COCO is there. This is not COCO, and '
    'scores on it say nothing about COCO.'
)

SPLITS = ('train2017', 'val2017')
SMALLEST_IMAGE, LARGEST_IMAGE = 96, 1024  # pixels
JPEG_QUALITY = 90
MARKER = 'sample.json'  # in the folder of a complete set: what it was drawn with
OUR_FILES = re.compile(
    r'sample\.json|annotations|annotations/instances_(train|val)2017\.json'
    r'|(train|val)2017|(train|val)2017/\d{12}\.jpg'
)


def _uncompressed_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Return the lengths of runs down the columns, beginning with zeros, as COCO stores its crowds."""
    changes = np.flatnonzero(np.diff(mask.ravel(order='F'), prepend=False))
    return {'size': list(mask.shape), 'counts': np.diff(changes, prepend=0, append=mask.size).tolist()}


def annotate(item: sample_images.Item) -> dict[str, Any]:
    """Return the annotation of an item's visible part: polygons, or for a crowd run lengths.

    Area and box are those of the mask that readers will decode.
    """
    cover = sample_images.coverage(item.visible)
    segmentation: Any
    if item.is_crowd:
        segmentation = _uncompressed_rle(cover >= 0.5)
        rle = mask_utils.frPyObjects(segmentation, *cover.shape)
    else:
        segmentation = sample_images.trace_polygons(item.visible)
        rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, *cover.shape))
    return {
        'category_id': CATEGORIES[item.name],
        'bbox': mask_utils.toBbox(rle).tolist(),
        'area': float(mask_utils.area(rle)),
        'iscrowd': int(item.is_crowd),
        'segmentation': segmentation,
    }


def _draw_split(root: Path, split: str, num_images: int, image_size: int, seed: int) -> None:
    (root / split).mkdir()
    images, annotations = [], []
    for index in range(num_images):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        items = sample_images.compose_image(rng, image_size, index)
        pixels = cv2.cvtColor(sample_images.paint_image(rng, image_size, items), cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode('.jpg', pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        # No id is an index, none is 0 (COCOeval takes 0 for "not matched"), none is in both splits.
        image_id = 1009 + 6 * index + SPLITS.index(split)
        file_name = f'{image_id:012d}.jpg'
        (root / split / file_name).write_bytes(jpeg.tobytes())
        images.append({'id': image_id, 'file_name': file_name, 'width': image_size, 'height': image_size, 'license': 1})
        annotations += [
            {'id': 100 * image_id + number, 'image_id': image_id, **annotate(item)}
            for number, item in enumerate(items, start=1)
        ]
    info = dict(description=DESCRIPTION, version=str(GENERATOR_VERSION), contributor=DRAWN_BY, split=split, seed=seed)
    free = dict(id=1, name='CC0 1.0 Universal', url='https://creativecommons.org/publicdomain/zero/1.0/')
    categories = [dict(id=number, name=name, supercategory='shape') for name, number in CATEGORIES.items()]
    content = dict(info=info, licenses=[free], images=images, annotations=annotations, categories=categories)
    annotation_file = root / 'annotations' / f'instances_{split}.json'
    annotation_file.write_text(json.dumps(content, separators=(',', ':')), encoding='utf-8')


def _marker_for(num_train: int, num_val: int, image_size: int, seed: int) -> dict[str, Any]:
    """Check the parameters and return the marker of a set that is drawn with them."""
    for name, count in (('num_train', num_train), ('num_val', num_val)):
        if count < 1:
            raise UsageError(f'{name}={count} draws no image; it must be 1 or more')
    if not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
        raise UsageError(f'image_size={image_size} is out of range; choose {SMALLEST_IMAGE} to {LARGEST_IMAGE} pixels')
    if seed < 0:
        raise UsageError(f'seed={seed} is negative; it must be 0 or more')
    sizes = dict(num_train=num_train, num_val=num_val, image_size=image_size)
    return dict(drawn_by=DRAWN_BY, generator_version=GENERATOR_VERSION, **sizes, seed=seed)


def _read_marker(root: Path) -> dict[str, Any] | None:
    """Return the marker of the set in a folder; None if the folder is not one of ours."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get('drawn_by') == DRAWN_BY else None


def _refuse_to_replace(root: Path, marker: dict[str, Any], force: bool) -> None:
    """Raise ``UsageError`` if there is anything at ``root`` that must stay."""
    if not root.exists():
        return
    present = _read_marker(root)
    if present is None:
        raise UsageError(
            f'{root} exists and is not a sample set drawn by shvit_det; choose another folder, or remove that one '
            f'yourself'
        )
    paths = (path.relative_to(root).as_posix() for path in sorted(root.rglob('*')))
    strange = next((path for path in paths if not OUR_FILES.fullmatch(path)), None)
    if strange is not None:
        raise UsageError(
            f'{root} holds {strange!r}, which is not part of the sample set; move it elsewhere, or choose another '
            f'folder'
        )
    differences = ', '.join(
        f'{name}={present.get(name)} and not {value}' for name, value in marker.items() if present.get(name) != value
    )
    if differences and not force:
        raise UsageError(
            f'{root} holds a sample set drawn with {differences}; choose another folder, or replace that set: '
            f'--force of make-sample, force=True in Python'
        )


def _draw(root: Path, marker: dict[str, Any], replace: bool) -> bool:
    """Draw a set beside `root` and rename it; False if another process was there first."""
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing_folder(root, replace) as drawn:
            (drawn / 'annotations').mkdir()
            for split, count in zip(SPLITS, (marker['num_train'], marker['num_val']), strict=True):
                _draw_split(drawn, split, count, marker['image_size'], marker['seed'])
            (drawn / MARKER).write_text(json.dumps(marker, indent=1) + '\n', encoding='utf-8')
    except OSError:
        if _read_marker(root) != marker:
            raise
        return False
    return True


def draw_sample(
    root: str | Path,
    *,
    num_train: int = 400,
    num_val: int = 100,
    image_size: int = 192,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Draw the sample set into a new folder, or anew into the folder of the same set.

    The same arguments give the same annotation files and pixels (with the same numpy and OpenCV). Everything is drawn
    in a hidden folder beside ``root`` and renamed when it is complete.

    Args:
        root: Gets ``annotations/instances_{train,val}2017.json``, ``train2017/``, ``val2017/`` and the marker
            ``sample.json``.
        num_train: Images of ``train2017``.
        num_val: Images of ``val2017``.
        image_size: Height and width in pixels, 96 to 1024.
        seed: 0 or more.
        force: Replace a set that was drawn with other arguments or by another version.

    Raises:
        UsageError: If an argument is out of range; ``root`` is not a sample set, or holds other files (even with
            ``force``); or it is a different sample set and ``force`` is not given.
        OSError: If the folder cannot be written.
    """
    root = Path(root).resolve()
    marker = _marker_for(num_train, num_val, image_size, seed)
    _refuse_to_replace(root, marker, force)
    _draw(root, marker, replace=root.exists())


def ensure_sample(
    root: str | Path, *, num_train: int = 400, num_val: int = 100, image_size: int = 192, seed: int = 0
) -> bool:
    """Draw the sample set unless it is there; return whether this call drew it.

    Several processes may call it at the same moment: all return when a complete set is there, and one of them returns
    True. Arguments and errors are those of :func:`draw_sample`.
    """
    root = Path(root).resolve()
    marker = _marker_for(num_train, num_val, image_size, seed)
    if _read_marker(root) == marker:
        return False
    _refuse_to_replace(root, marker, force=False)
    return _draw(root, marker, replace=False)
