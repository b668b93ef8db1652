"""Annotation files with one problem each."""

import copy
import io
import math
from pathlib import Path

import cv2
import numpy as np
from coco_files import HEIGHT, WIDTH, coco_content, compressed, encoded, rectangle
from PIL import Image

from shvit_det.data.checking.findings import KINDS

ALL = 6  # objects


def annotation(index: int, **changes):
    """Return a change of one annotation; a value of ``...`` removes the key."""

    def change(content):
        content['annotations'][index].update(changes)
        for key in [key for key, value in changes.items() if value is ...]:
            del content['annotations'][index][key]

    return change


def image(index: int, **changes):
    def change(content):
        content['images'][index].update(changes)

    return change


def category(index: int, **changes):
    def change(content):
        content['categories'][index].update(changes)

    return change


def added(section: str, entry):
    """Return a change that appends an entry, or a copy of the entry with that number."""

    def change(content):
        content[section].append(copy.deepcopy(content[section][entry]) if isinstance(entry, int) else entry)

    return change


def both(*changes):
    def change(content):
        for each in changes:
            each(content)

    return change


def boxes_as(convert):
    """Return a change that writes all boxes by another convention, those of large objects at the far corner."""

    def change(content):
        for each in content['annotations']:
            x, y, width, height = 0.65 * WIDTH, 0.65 * HEIGHT, WIDTH / 3, HEIGHT / 3
            each['bbox'] = convert(x, y, width, height)

    return change


def polygons_as_fractions(content):
    for each in content['annotations']:
        each['segmentation'] = [[number / 100 for number in SQUARE]]


SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]


def every(section: str, **changes):
    def change(content):
        for entry in content[section]:
            entry.update(changes)

    return change


def rewritten(section: str, *keys: str, write=str):
    """Return a change of every entry of a section: what is there under the keys is written in another way."""

    def change(content):
        for entry in content[section]:
            entry.update({key: write(entry[key]) for key in keys if key in entry})

    return change


def only_polygons(content):
    for entry in content['annotations']:
        entry.update(iscrowd=0, segmentation=[rectangle(*entry['bbox'])])


def points(polygon):
    return [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]


def texts(values):
    return [str(value) for value in values]


def bytes_as_text(content):
    mask = content['annotations'][3]['segmentation']
    mask['counts'] = str(mask['counts'].encode())


# What means the same as COCO's form: the kind of finding, what the content has in COCO's form, and how it is written.
FORMS = {
    'iscrowd is text': ('annotation_form', None, rewritten('annotations', 'iscrowd')),
    'iscrowd is a word': (
        'annotation_form', None, rewritten('annotations', 'iscrowd', write=('False', 'true').__getitem__),
    ),
    'iscrowd is null': ('annotation_form', only_polygons, every('annotations', iscrowd=None)),
    'iscrowd is a list': ('annotation_form', None, rewritten('annotations', 'iscrowd', write=lambda crowd: [crowd])),
    'ignore is text': ('annotation_form', every('annotations', ignore=0), rewritten('annotations', 'ignore')),
    'box of text': ('annotation_form', None, rewritten('annotations', 'bbox', write=texts)),
    'box is text': ('annotation_form', None, rewritten('annotations', 'bbox')),
    'box in a list': ('annotation_form', None, rewritten('annotations', 'bbox', write=lambda box: [box])),
    'area is text': ('annotation_form', None, rewritten('annotations', 'area')),
    'area is a list': ('annotation_form', None, rewritten('annotations', 'area', write=lambda area: [area])),
    'ids are text': ('annotation_form', None, rewritten('annotations', 'id', 'image_id', 'category_id')),
    'ids with a point': ('annotation_form', None, rewritten('annotations', 'image_id', write=lambda own: f'{own}.0')),
    'image ids with zeros': ('annotation_form', None, rewritten('annotations', 'image_id', write='{:012}'.format)),
    'one image id is text': ('image_form', None, both(image(0, id='3'), annotation(1, image_id='3'))),
    'image sizes are text': ('image_form', None, rewritten('images', 'width', 'height')),
    'one category id is text': ('category_form', None, both(category(0, id='1'), annotation(0, category_id='1'))),
    'one polygon': ('mask_form', only_polygons, rewritten('annotations', 'segmentation', write=lambda mask: mask[0])),
    'points': (
        'mask_form', only_polygons, rewritten('annotations', 'segmentation', write=lambda mask: points(mask[0])),
    ),
    'lists of points': (
        'mask_form', only_polygons,
        rewritten('annotations', 'segmentation', write=lambda mask: [points(polygon) for polygon in mask]),
    ),
    'polygons of text': (
        'mask_form', only_polygons,
        rewritten('annotations', 'segmentation', write=lambda mask: [texts(polygon) for polygon in mask]),
    ),
    'polygons are text': ('mask_form', only_polygons, rewritten('annotations', 'segmentation')),
    'lists in lists': ('mask_form', only_polygons, rewritten('annotations', 'segmentation', write=lambda mask: [mask])),
    'RLE in a list': (
        'mask_form', None,
        rewritten('annotations', 'segmentation', write=lambda mask: [mask] if isinstance(mask, dict) else mask),
    ),
    'bytes of an RLE': ('mask_form', None, bytes_as_text),
    'RLE of floats': (
        'mask_form', None,
        annotation(5, segmentation=dict(size=['30', '40'], counts=[100.0, 150.0, WIDTH * HEIGHT - 250.0])),
    ),
}  # fmt: skip

# For each problem the kind of its finding, the change that causes it, and how many objects the cleaned copy still has.
FAULTS = {
    'no image': ('file', lambda content: content.update(images=[], annotations=[]), 0),
    'classes': ('classes', category(0, name='wolf'), ALL),
    'category without name': ('category_invalid', both(category(0, name=None)), 4),
    'category that is text': ('category_invalid', added('categories', 'cow'), ALL),
    'category twice': ('category_duplicate', added('categories', 1), ALL),
    'category that no object has': ('category_unused', both(annotation(0, category_id=2), annotation(3, category_id=2)),
                                    ALL),
    'two categories, one id': ('category_id_duplicate', added('categories', dict(id=2, name='cow')), 4),
    'two categories, one name': (
        'category_name_duplicate', both(added('categories', dict(id=7, name='fox')), annotation(0, category_id=7)), ALL
    ),
    'image without id': ('image_invalid', image(0, id=None), 4),
    'image id true': ('image_invalid', image(3, id=True), ALL),
    'image without file name': ('image_invalid', image(0, file_name=''), 4),
    'file name with half a character': ('image_invalid', image(0, file_name='\ud800.jpg'), 4),
    'file name with NUL': ('image_invalid', image(0, file_name='a\0.jpg'), 4),
    'image twice': ('image_duplicate', added('images', 0), ALL),
    'two images, one id': ('image_id_duplicate', added('images', dict(coco_content()['images'][0], file_name='x')), 4),
    'one file, two ids': ('image_name_duplicate', added('images', dict(coco_content()['images'][0], id=77)), ALL),
    'image without size': ('image_size_invalid', image(0, width=None), 4),
    'image of negative size': ('image_size_invalid', image(0, height=-5), 4),
    'image of endless size': ('image_size_invalid', image(0, height=10**9), 4),
    'annotation that is a list': ('annotation_invalid', added('annotations', [1, 2]), ALL),
    'annotation without id': ('annotation_id_invalid', annotation(0, id=...), ALL),
    'annotation id is text': ('annotation_id_invalid', annotation(0, id='a'), ALL),
    'two annotations, one id': ('annotation_id_duplicate', annotation(0, id=101), ALL),
    'annotation id 0': ('annotation_id_zero', annotation(0, id=0), ALL),
    'same object twice': ('annotation_duplicate', lambda content: content['annotations'].append(
        dict(content['annotations'][0], id=500)), ALL),
    'dangling image': ('image_unknown', annotation(0, image_id=77), 5),
    'image id is a list of two': ('image_unknown', annotation(0, image_id=[3, 5]), 5),
    'dangling category': ('category_unknown', annotation(0, category_id=3), 5),
    'endless box': ('box_invalid', annotation(0, bbox=[1, 2, 2**63, 4]), 5),
    'no box': ('box_invalid', annotation(0, bbox=...), 5),
    'box of three numbers': ('box_invalid', annotation(0, bbox=[1, 2, 3]), 5),
    'box with NaN': ('box_invalid', annotation(0, bbox=[1, math.nan, 3, 4]), 5),
    'box with a word': ('box_invalid', annotation(0, bbox=[1, 'two', 3, 4]), 5),
    'box beyond floats': ('box_invalid', annotation(0, bbox=[1, 10**400, 3, 4]), 5),
    'box without width': ('box_empty', annotation(0, bbox=[1, 2, 0, 4]), 5),
    'box of negative height': ('box_empty', annotation(0, bbox=[1, 2, 5, -4]), 5),
    'low box': ('box_thin', annotation(0, bbox=[1, 2, 5, 0.5]), ALL),
    'thin box': ('box_thin', annotation(0, bbox=[1, 2, 0.5, 4]), ALL),
    'box outside': ('box_outside', annotation(0, bbox=[WIDTH, 2, 5, 4]), 5),
    'box overhanging': ('box_overhanging', annotation(0, bbox=[-5, 2, 15, 100]), ALL),
    'boxes as corners': ('box_layout', boxes_as(lambda x, y, w, h: [x, y, x + w, y + h]), ALL),
    'boxes as centres': ('box_layout', boxes_as(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]), ALL),
    'polygons as fractions': ('mask_layout', polygons_as_fractions, ALL),
    'no area': ('area_invalid', annotation(0, area=...), ALL),
    'area NaN': ('area_invalid', annotation(0, area=math.nan), ALL),
    'area 0': ('area_not_positive', annotation(0, area=0), ALL),
    'no iscrowd': ('crowd_missing', annotation(0, iscrowd=...), ALL),
    'iscrowd is text': ('crowd_invalid', annotation(0, iscrowd='no'), 5),
    'ignore is text': ('crowd_invalid', annotation(0, ignore='no'), 5),
    'all are crowds': ('no_objects', every('annotations', iscrowd=1), ALL),
    'no mask': ('mask_missing', annotation(0, segmentation=...), 5),
    'empty mask': ('mask_missing', annotation(0, segmentation=[]), 5),
    'mask is text': ('mask_invalid', annotation(0, segmentation='square'), 5),
    'polygon with NaN': ('polygon_invalid', annotation(0, segmentation=[[math.nan, *SQUARE[1:]]]), 5),
    'polygon with text': ('polygon_invalid', annotation(0, segmentation=[['a', *SQUARE[1:]]]), 5),
    'polygon of odd length': ('polygon_invalid', annotation(0, segmentation=[SQUARE, SQUARE[1:]]), ALL),
    'polygon of two points': ('polygon_short', annotation(0, segmentation=[SQUARE[:4]]), 5),
    'one polygon of two points': ('polygon_short', annotation(0, segmentation=[SQUARE[:4], SQUARE]), ALL),
    'polygon far away': ('polygon_far', annotation(0, segmentation=[[1e9, *SQUARE[1:]]]), 5),
    'RLE without counts': ('rle_invalid', annotation(3, segmentation=dict(size=[HEIGHT, WIDTH])), 5),
    'RLE without size': ('rle_invalid', annotation(3, segmentation=dict(counts=[1])), 5),
    'RLE too short': ('rle_invalid', annotation(3, segmentation=dict(size=[HEIGHT, WIDTH], counts=[7, 8])), 5),
    'RLE with negative counts': ('rle_invalid', annotation(3, segmentation=dict(size=[1, 2], counts=[3, -1])), 5),
    'RLE of garbage': ('rle_invalid', annotation(3, segmentation=dict(size=[HEIGHT, WIDTH], counts='zz~')), 5),
    'RLE turned': ('rle_size', annotation(3, segmentation=dict(compressed(1, 1, 5, 5), size=[WIDTH, HEIGHT])), 5),
}  # fmt: skip

FILE_KINDS = {
    kind
    for kind in KINDS
    if kind.startswith('image_')
    and kind not in {fault for fault, _, _ in (*FAULTS.values(), *FORMS.values())} | {'image_backslash'}
}

GREY = cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded('.png'), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)

LARGE = np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)


def by_pil(
    mode: str = 'RGB', kind: str = 'JPEG', orientation: int | None = None, size=(WIDTH, HEIGHT), frames: int = 1
) -> bytes:
    pixels = Image.fromarray(cv2.imdecode(np.frombuffer(encoded('.png'), np.uint8), cv2.IMREAD_COLOR)).resize(size)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    several = dict(save_all=True, append_images=[pixels.convert(mode).rotate(90)] * (frames - 1)) if frames > 1 else {}
    pixels.convert(mode).save(stream, kind, exif=exif, **several)
    return stream.getvalue()


# For each kind of file its bytes, and the kinds of findings where the annotations say that it has 40 x 30 pixels.
FILES = {
    'JPEG': (encoded('.jpg'), []),
    'PNG': (encoded('.png'), []),
    'GIF': (by_pil('P', 'GIF'), []),
    'JPEG with something behind it': (encoded('.jpg') + b'more', []),
    'nothing there': (None, ['image_missing']),
    'a folder': ('folder', ['image_unreadable']),
    'no bytes': (b'', ['image_empty']),
    'text': (b'<html>404 Not Found</html>', ['image_unreadable']),
    'truncated JPEG': (encoded('.jpg')[:-200], ['image_truncated']),
    'JPEG without its end': (encoded('.jpg')[:-2], ['image_truncated']),
    'truncated PNG': (encoded('.png')[:-200], ['image_truncated']),
    'JPEG of another size': (encoded('.jpg', LARGE), ['image_size_differs']),
    'EXIF turned': (by_pil(orientation=6), ['image_rotated']),
    'EXIF turned, boxes too': (by_pil(orientation=8, size=(HEIGHT, WIDTH)), []),
    'EXIF upside down': (by_pil(orientation=3), ['image_orientation']),
    'EXIF upright': (by_pil(orientation=1), []),
    'grey': (encoded('.jpg', GREY), ['image_grey']),
    'CMYK': (by_pil('CMYK'), ['image_cmyk']),
    '16 bits, grey': (encoded('.png', GREY.astype(np.uint16) * 256), ['image_deep']),
    '16 bits, colour': (encoded('.png', np.full((HEIGHT, WIDTH, 3), 999, np.uint16)), ['image_deep']),
    '16 bits, TIFF': (encoded('.tiff', np.full((HEIGHT, WIDTH, 3), 999, np.uint16)), ['image_deep']),
    'transparent': (by_pil('RGBA', 'PNG'), ['image_alpha']),
    'two pages': (by_pil(kind='TIFF', frames=2), ['image_pages']),
    'an animation': (by_pil('P', 'GIF', frames=2), ['image_pages']),
}


def put(path: Path, data) -> None:
    path.unlink(missing_ok=True)
    if data == 'folder':
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
