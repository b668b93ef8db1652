"""LabelMe's layout: a JSON file beside each picture, with polygons and rectangles."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...common.errors import UsageError, first_line
from .labels import SPLITS, Labels, Losses, SplitBuilder, labels_of, pictures_in, split_folders


def is_layout(folder: Path) -> bool:
    """Tell whether the first JSON file in a folder is LabelMe's."""
    try:
        content = json.loads(label_files(folder)[0].read_text(encoding='utf-8'))
    except (IndexError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and 'shapes' in content


def label_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*.json') if path.is_file())


def read(folder: Path) -> Labels:
    """Read a data set of LabelMe, in folders ``train``, ``val`` and ``test`` or in one."""
    losses = Losses()
    folders = {name: each for name, each in split_folders(folder).items() if label_files(each)} or {'train': folder}
    if not any(label_files(each) for each in folders.values()):
        raise UsageError(f'{folder} has no JSON files of LabelMe')
    builders = [SplitBuilder(name, folder, losses) for name in SPLITS if name in folders]
    for builder in builders:
        labelled = {read_file(builder, path) for path in label_files(folders[builder.name])}
        for picture in pictures_in(folders[builder.name]):
            if picture.resolve() not in labelled:
                losses.add('pictures left out, which have no JSON file of LabelMe', builder.relative(picture))
    return labels_of(builders, 'labelme')


def read_file(builder: SplitBuilder, path: Path) -> Path | None:
    """Add the picture and the objects of a file of LabelMe; return the picture's path, None if the file is broken."""
    place = builder.relative(path)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        shapes = list(content['shapes'])
        picture = path.parent / str(content.get('imagePath') or path.with_suffix('.jpg').name).replace('\\', '/')
        if '\0' in str(picture):
            raise ValueError('its imagePath has a zero byte')
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        is_broken = isinstance(error, ValueError | RecursionError)
        reason = first_line(error) if is_broken else 'it has no list of shapes'
        builder.num_images += 1
        builder.losses.add('JSON files left out, which are not of LabelMe', f'{place}: {reason}')
        return None
    if not picture.is_file() and (path.parent / picture.name).is_file():
        picture = path.parent / picture.name  # the file was moved together with its picture
    builder.add_image(picture)
    # several polygons of one group are parts of one object
    grouped: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for number, shape in enumerate(shapes, start=1):
        where = f'{place} shape {number}'
        kind, name, points = parse_shape(shape)
        if kind == 'polygon' and len(points) >= 6:
            group = shape.get('group_id')
            grouped[name, where if group is None else f'{place} group {group}'].append(points)
        elif kind == 'rectangle' and len(points) == 4:
            builder.add_object(name, points, place=where)
        else:
            builder.num_objects += 1
            fault = f'of the kind {kind}' if kind not in ('polygon', 'rectangle') else 'without a name or enough points'
            builder.losses.add(f'shapes left out, {fault}', where)
    for (name, where), polygons in grouped.items():
        builder.add_object(name, polygons=polygons, place=where)
    return picture.resolve()


def parse_shape(shape: Any) -> tuple[str, str, list[float]]:
    """Return the kind, the label and the points of a shape, [x, y, x, y, ...]; without points if it is broken."""
    if not isinstance(shape, dict):
        return 'polygon', '', []
    kind, name = str(shape.get('shape_type') or 'polygon'), str(shape.get('label') or '').strip()
    try:
        points = [float(value) for x, y in shape['points'] for value in (x, y)]
    except (KeyError, TypeError, ValueError):
        points = []
    return kind, name, points if name else []
