"""YOLO's layout: a ``data.yaml``, and beside the folders of images those of text files with boxes or polygons.

Darknet, the first YOLO, has an ``obj.data`` in place of it, and its text files beside the images.

A line has the class and either the centre, width and height of a box or the corners of a polygon, as parts of the width
and height of the picture.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import UsageError, first_line
from .labels import PICTURES, Labels, Losses, SplitBuilder, labels_of, pictures_in, split_folders, split_of_list

KEYS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
NAMES_ALONE = 'classes.txt'  # what Label Studio writes in place of data.yaml
SLACK = 0.01  # how far coordinates may be beyond the picture


def stripped_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return list(filter(None, map(str.strip, path.read_text(encoding='utf-8').splitlines())))


def settings_of(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the file with the names of the classes, and what it says as a ``data.yaml``; None if there is none."""
    main = folder / 'data.yaml'
    if main.is_file() and 'names' in (settings := read_yaml(main)):
        return main, settings
    for path in sorted((*folder.glob('*.yaml'), *folder.glob('*.yml'))):
        with suppress(UsageError):  # of another program
            if 'names' in (settings := read_yaml(path)):
                return path, settings
    for path in sorted(folder.glob('*.data')):
        if 'names' in (settings := read_darknet(path)):
            return path, settings
    names = folder / NAMES_ALONE
    if names.is_file() and (folder / 'labels').is_dir():
        return names, {'names': stripped_lines(names), 'train': 'images'}
    return None


def is_layout(folder: Path) -> bool:
    return settings_of(folder) is not None


def read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f'cannot read {path}: {first_line(error)}') from error
    return content if isinstance(content, Mapping) else {}


def read_darknet(path: Path) -> dict[str, Any]:
    """Return what darknet's ``obj.data`` says, under the keys of a ``data.yaml``."""
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    values = {key.strip(): value.strip() for key, equals, value in (line.partition('=') for line in lines) if equals}
    splits = {split_of_list(key): value for key, value in values.items()}
    settings: dict[str, Any] = {split: value for split, value in splits.items() if split is not None}
    if 'names' in values:
        names = next((each for each in places_of(values['names'], path, path.parent) if each.is_file()), None)
        if names is None:
            raise UsageError(f'{path} names {values["names"]}, which does not exist')
        settings['names'] = stripped_lines(names)
    return settings


def read(folder: Path) -> Labels:
    found = settings_of(folder)
    if found is None:
        raise UsageError(f'{folder} has no data.yaml or obj.data with the names of the classes')
    path, settings = found
    classes = class_names(settings['names'], path)
    places = named_places(settings) or usual_places(folder)
    if not places:
        raise UsageError(f'{path} names no pictures, and there is no folder images beside it: it needs train: FOLDER')
    losses, notes = Losses(), list[str]()
    has_keypoints = 'kpt_shape' in settings
    if has_keypoints:
        notes.append('keypoints are left out, and the boxes of their objects are read')
    builders = [SplitBuilder(name, folder, losses) for name in KEYS if name in places]
    for builder in builders:
        pictures = [each for place in places[builder.name] for each in pictures_at(place, path, settings, losses)]
        for picture in dict.fromkeys(pictures):
            builder.add_image(picture)
            if (labels := label_file(picture)).is_file():
                read_objects(builder, labels, classes, has_keypoints)
        report_labels_alone(pictures, losses)
    return labels_of(builders, 'yolo', classes, notes)


def named_places(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the folders and lists of pictures that a ``data.yaml`` names, by split."""
    named = {name: next(filter(None, map(settings.get, keys)), None) for name, keys in KEYS.items()}
    return {name: list(map(str, each if isinstance(each, list) else [each])) for name, each in named.items() if each}


def usual_places(folder: Path) -> dict[str, list[str]]:
    """Return the folders of pictures that are usual, by split, for a ``data.yaml`` that names none, as supervision's.

    They are ``train/images`` and so on, ``images/train`` and so on, or ``images``.
    """
    images = folder / 'images'
    places = {name: path / 'images' for name, path in split_folders(folder).items() if (path / 'images').is_dir()}
    if not places and images.is_dir():
        places = split_folders(images) or {'train': images}
    return {name: [path.relative_to(folder).as_posix()] for name, path in places.items()}


def class_names(names: Any, path: Path) -> list[str]:
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise UsageError(f'names of {path} has other keys than 0 to {len(names) - 1}')
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UsageError(f'names of {path} is neither a list nor a dict of names')
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise UsageError(f'names of {path} has a name twice: {next(name for name in texts if texts.count(name) > 1)}')
    return texts


def places_of(place: str, path: Path, root: Path) -> list[Path]:
    """Return where something may be that a file of settings names."""
    places = [root / place, path.parent / place]
    if place.startswith(('../', 'data/')):  # as Roboflow and CVAT write paths, which are those of another folder
        places.append(path.parent / place.partition('/')[2])
    return places


def pictures_at(place: str, path: Path, settings: Mapping[str, Any], losses: Losses) -> list[Path]:
    """Return the pictures of a folder, or of a text file that lists them, as ``data.yaml`` names it."""
    root = path.parent / str(settings.get('path') or '')
    tried = places_of(place, path, root)
    found = next((each for each in tried if each.exists()), None)
    if found is None:
        raise UsageError(f'{path} names {place}, and there is no {" or ".join(map(str, dict.fromkeys(tried)))}')
    if found.is_dir():
        return pictures_in(found)
    pictures = []
    for line in stripped_lines(found):
        # names are relative to the list if they begin with ./, else to the root, which CVAT puts a folder above
        candidates = [base / line for base in (found.parent, root, path.parent)]
        candidates.append(path.parent / line.partition('/')[2])
        picture = next((each for each in candidates if each.is_file()), None)
        if picture is None:
            losses.add(f'pictures left out, which {found.name} lists and which do not exist', line)
        else:
            pictures.append(Path(os.path.normpath(picture)))
    return pictures


def label_file(picture: Path) -> Path:
    """Return where the labels of a picture are: in ``labels`` in place of the last ``images`` of its path."""
    folders = list(picture.parent.parts)
    if 'images' in folders:
        folders[len(folders) - 1 - folders[::-1].index('images')] = 'labels'
    return Path(*folders, f'{picture.stem}.txt')


def report_labels_alone(pictures: list[Path], losses: Losses) -> None:
    """Name the label files without a picture beside those that have one."""
    labels = {label_file(picture) for picture in pictures}
    beside = {picture.parent for picture in pictures}
    for folder in sorted({path.parent for path in labels}):
        for path in sorted(folder.glob('*.txt')):
            is_list = path.name == NAMES_ALONE or (folder in beside and path.name.startswith('README'))
            if path not in labels and not is_list and not is_picture_elsewhere(path, folder):
                losses.add('label files left out, which have no picture', path.name)


def is_picture_elsewhere(path: Path, folder: Path) -> bool:
    """Tell whether a label file has a picture that belongs to another split, as where lists of names share folders."""
    images = Path(*('images' if part == 'labels' else part for part in folder.parts))
    return any((images / path.name).with_suffix(suffix).is_file() for suffix in PICTURES)


def read_objects(builder: SplitBuilder, path: Path, classes: Sequence[str], has_keypoints: bool) -> None:
    name = builder.relative(path)
    for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), start=1):
        if not line.strip():
            continue
        place = f'{name} line {number}'
        values = numbers_of(line, len(classes), has_keypoints)
        if isinstance(values, str):
            builder.num_objects += 1
            builder.losses.add(f'labels left out: {values}', place)
            continue
        label, *numbers = values
        image = builder.image or dict(width=1, height=1)
        width, height = image['width'], image['height']
        if has_keypoints or len(numbers) == 4:
            x, y, w, h = numbers[:4]
            box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            builder.add_object(classes[int(label)], box, place=place)
        else:
            polygon = [value * (height if index % 2 else width) for index, value in enumerate(numbers)]
            builder.add_object(classes[int(label)], polygons=[polygon], place=place)


def numbers_of(line: str, num_classes: int, has_keypoints: bool) -> list[float] | str:
    """Return the label and coordinates of a line, or what is wrong with it."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return 'no numbers'
    if len(values) != 5 and not has_keypoints and (len(values) < 7 or len(values) % 2 == 0):
        return 'neither four numbers nor the corners of a polygon after the class'
    if not (len(values) >= 5 and values[0].is_integer() and 0 <= values[0] < num_classes):
        return 'a class that has no name'
    coordinates = values[1:5] if has_keypoints else values[1:]
    if not all(-SLACK <= value <= 1 + SLACK for value in coordinates):
        return 'coordinates that are no parts of the width and height, 0 to 1'
    return values
