"""Tiny data sets in every layout that is read: two classes, boxes or polygons, pictures drawn by Pillow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

CLASSES = ('disc', 'box')
WIDTH, HEIGHT = 120, 80
BOXES = ((5, 5, 25, 25), (30, 10, 50, 34))  # left, top, right, bottom of the two objects in each picture


def draw_picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', (WIDTH, HEIGHT), (40 + number, 60, 80))
    draw = ImageDraw.Draw(image)
    draw.ellipse(BOXES[0], fill=(220, 180, 60))
    draw.rectangle(BOXES[1], fill=(90, 200, 150))
    image.save(path)
    return path


def corners(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def coco_file(path: Path, names: Sequence[str], masks: bool = True, roboflow: bool = False, **changes: Any) -> Path:
    """Write a COCO file that lists two objects in each picture."""
    categories = [dict(id=number, name=name, supercategory='shapes') for number, name in enumerate(CLASSES, start=1)]
    if roboflow:
        categories.insert(0, dict(id=0, name='shapes', supercategory='none'))
    images = [dict(id=number, file_name=name, width=WIDTH, height=HEIGHT) for number, name in enumerate(names)]
    annotations = [
        dict(
            id=10 * image['id'] + label + 1,
            image_id=image['id'],
            category_id=label + 1,
            bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]],
            area=(box[2] - box[0]) * (box[3] - box[1]),
            iscrowd=0,
            segmentation=[corners(box)] if masks else [],
        )
        for image in images
        for label, box in enumerate(BOXES)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories) | changes))
    return path


def roboflow_coco(root: Path, masks: bool = True) -> Path:
    """Folders ``train``, ``valid`` and ``test`` with their pictures and ``_annotations.coco.json``."""
    for split, count in (('train', 4), ('valid', 2), ('test', 1)):
        names = [draw_picture(root / split / f'{split}_{number}.jpg', number).name for number in range(count)]
        coco_file(root / split / '_annotations.coco.json', names, masks, roboflow=True)
    return root


def cvat_coco(root: Path, masks: bool = True) -> Path:
    """``annotations/instances_default.json`` and all pictures in ``images/default``."""
    names = [draw_picture(root / 'images' / 'default' / f'{number}.png', number).name for number in range(10)]
    coco_file(root / 'annotations' / 'instances_default.json', names, masks)
    return root


def label_studio_coco(root: Path) -> Path:
    """``result.json``, whose file names have the folder in them, with backslashes."""
    names = [f'images\\{draw_picture(root / "images" / f"{n}.jpg", n).name}' for n in range(5)]
    coco_file(root / 'result.json', names)
    return root


def plain_coco(root: Path) -> Path:
    """COCO's own names: ``annotations/instances_train2017.json`` and ``train2017/``, beside captions."""
    for split, count in (('train2017', 3), ('val2017', 2)):
        names = [draw_picture(root / split / f'{number:012}.jpg', number).name for number in range(count)]
        coco_file(root / 'annotations' / f'instances_{split}.json', names)
        (root / 'annotations' / f'captions_{split}.json').write_text('{"images": [], "annotations": []}')
    return root


def yolo_line(label: int, box: Sequence[float], polygon: bool) -> str:
    left, top, right, bottom = box
    if polygon:
        values = [value / (HEIGHT if index % 2 else WIDTH) for index, value in enumerate(corners(box))]
    else:
        values = [
            (left + right) / 2 / WIDTH,
            (top + bottom) / 2 / HEIGHT,
            (right - left) / WIDTH,
            (bottom - top) / HEIGHT,
        ]
    return ' '.join(map(str, [label, *values])) + '\n'


def yolo(root: Path, polygon: bool = False, yaml: str | None = None, order: str = 'images/{}') -> Path:
    """``images/train`` and ``labels/train``, or Roboflow's ``train/images`` and ``train/labels``; the last is empty."""
    for split, count in (('train', 4), ('val', 2)):
        folder = root / order.format(split)
        for number in range(count):
            picture = draw_picture(folder / f'{split}{number}.jpg', number)
            label = (root / order.format(split).replace('images', 'labels') / picture.name).with_suffix('.txt')
            label.parent.mkdir(parents=True, exist_ok=True)
            if number < count - 1:
                label.write_text(''.join(yolo_line(name, box, polygon) for name, box in enumerate(BOXES)))
    default = f'train: {order.format("train")}\nval: {order.format("val")}\nnames: [disc, box]\n'
    (root / 'data.yaml').write_text(default if yaml is None else yaml)
    return root


def voc_file(path: Path, filename: str, difficult: bool = False, folder: str = '') -> None:
    objects = ''.join(
        f'<object><name>{name}</name><difficult>{int(difficult and name == "box")}</difficult><bndbox><xmin>{box[0]}'
        f'</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>'
        for name, box in zip(CLASSES, BOXES, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<annotation><folder>{folder}</folder><filename>{filename}</filename>{objects}</annotation>', encoding='utf-8'
    )


def voc(root: Path, lists: bool = True, folder: str = '') -> Path:
    """``Annotations``, ``JPEGImages`` and lists of train and val; the last picture has a difficult object."""
    names = [draw_picture(root / 'JPEGImages' / f'{number}.jpg', number).stem for number in range(6)]
    for name in names:
        voc_file(root / 'Annotations' / f'{name}.xml', f'{name}.jpg', name == names[-1], folder)
    if lists:
        (root / 'ImageSets' / 'Main').mkdir(parents=True)
        (root / 'ImageSets' / 'Main' / 'train.txt').write_text('\n'.join(names[:3]))
        (root / 'ImageSets' / 'Main' / 'val.txt').write_text('\n'.join(names[3:5]) + '\n7\n')
    return root


def labelme(root: Path, kind: str = 'polygon') -> Path:
    for number in range(5):
        picture = draw_picture(root / f'{number}.jpg', number)
        shapes = []
        for name, box in zip(CLASSES, BOXES, strict=True):
            points = corners(box) if kind == 'polygon' else [*box]
            pairs = [points[place : place + 2] for place in range(0, len(points), 2)]
            shapes.append(dict(label=name, points=pairs, shape_type=kind, group_id=None))
        content = dict(imagePath=picture.name, shapes=shapes, imageWidth=WIDTH, imageHeight=HEIGHT)
        picture.with_suffix('.json').write_text(json.dumps(content))
    return root
