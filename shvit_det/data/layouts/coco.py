"""COCO's layout as it is, and as CVAT, Roboflow, Label Studio and the converters of LabelMe export it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...common.image_files import is_truncated
from ..checking.annotation_file import SECTIONS, NotCocoError, Use, image_sizes, read_annotations
from ..checking.cleaning import clean
from ..checking.content_checks import check_content
from ..checking.findings import Finding, Repair, short
from ..checking.image_checks import DecodeSettings, check_images
from ..checking.image_presence import listed_files, with_slashes
from ..checking.mask_checks import mask_faults
from .labels import SPLIT_NAMES, SPLITS, Labels, Losses, Split, content_of, split_folders

MAIN = 'instances'  # how the files begin that stand beside those of captions and keypoints
TRIED = 20  # images by which the folder of a file's images is recognised


def annotation_files(folder: Path) -> list[Path]:
    """Return the JSON files that may be annotations of COCO, without looking into them."""
    folders = [folder, folder / 'annotations', *split_folders(folder).values()]
    files = sorted(path for each in folders for path in each.glob('*.json') if path.is_file())
    beside = {path.parent for path in files if path.name.startswith(MAIN)}
    return [path for path in files if path.name.startswith(MAIN) or path.parent not in beside]


def is_layout(folder: Path) -> bool:
    """Tell whether a folder has an annotation file of COCO; all files of LabelMe are taken for what the first is."""
    files = annotation_files(folder)
    return any('coco' in path.name or path.name.startswith(MAIN) or is_coco(path) for path in files[:20])


def is_coco(path: Path) -> bool:
    try:
        read_annotations(path)
    except NotCocoError:
        return False
    return True


def read(folder: Path) -> Labels:
    losses = Losses()
    contents: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in annotation_files(folder):
        try:
            content = read_annotations(path)
        except NotCocoError as error:
            if path.name.startswith(MAIN) or 'coco' in path.name:
                raise
            losses.add('files left out', str(error))
            continue
        name = split_of(path) or ''
        if name in contents:
            what = name or 'train, since their names say no split'
            raise UsageError(f'{contents[name][0]} and {path} would both be {what}: move one of them elsewhere')
        contents[name] = (path, content)
    if not contents:
        raise UsageError(f'{folder} has no annotation file of COCO')
    if '' in contents:
        if 'train' in contents:
            with_name, without = contents['train'][0], contents[''][0]
            raise UsageError(f'{without} stands beside {with_name}, and its name says no split: train, val or test')
        contents = {'train': contents.pop(''), **contents}
    num_images, num_objects = (sum(len(each[key]) for _, each in contents.values()) for key in SECTIONS[:2])
    splits = [read_split(name, folder, *contents[name], losses) for name in SPLITS if name in contents]
    root = root_category(splits)
    notes = [] if root is None else [f'category left out, a root that no object has: {root}']
    kept = [
        {each['id']: each['name'] for each in split.content['categories'] if each['name'] != root} for split in splits
    ]
    classes = tuple(dict.fromkeys(name for names in kept for name in names.values()))
    if not classes:
        raise UsageError(f'{contents[splits[0].name][0]} lists no category')
    for split, names in zip(splits, kept, strict=True):
        if tuple(names.values()) != classes:
            split.source = None  # mmdet numbers the categories of each file in their order there
        ids = {old: classes.index(name) + 1 for old, name in names.items()}
        objects = [{**each, 'category_id': ids[each['category_id']]} for each in split.objects]
        split.content = content_of(split.content['images'], objects, classes)
    by_name = {split.name: split for split in splits}
    return Labels(folder, 'coco', classes, by_name, (num_images, num_objects), notes, losses)


def split_of(path: Path) -> str | None:
    """Return the split that the name of an annotation file says, or else that of its folder; None if neither does."""
    words = [*re.split('[^a-z]+', path.stem.lower()), path.parent.name.lower()]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def read_split(name: str, folder: Path, path: Path, content: dict[str, Any], losses: Losses) -> Split:
    """Return the split of an annotation file, without what is broken in it."""
    images = image_folder(folder, path, content)
    objects = [each for each in content['annotations'] if type(each) is dict]
    masks = all(each.get('segmentation') for each in objects if not each.get('iscrowd'))
    use = Use(masks=masks, evaluated=True)
    findings, sizes = check_images(content, images, DecodeSettings(), headers_only=True)
    for index in sizes:
        image = content['images'][index]
        if is_truncated(images / with_slashes(image['file_name'])):
            text = f'image file {image["file_name"]} is truncated'
            findings.append(Finding('image_truncated', text, 'images', index, image.get('id')))
    findings += check_content(content, use, path)
    cleaned = clean(content, findings, use, path, file_sizes=sizes)
    for finding in findings:
        if finding.repair == Repair.NONE:
            raise UsageError(finding.message)
        if finding.repair != Repair.KEEP:
            losses.add(f'{finding.kind} in {path.name}, {finding.repair}', finding.message)
    if not masks:  # then nothing above has looked at the outlines that some objects have
        cleaned.content['annotations'] = list(with_usable_outlines(cleaned.content, path, losses))
    return Split(name, images, cleaned.content, None if cleaned.is_changed else path)


def with_usable_outlines(content: dict[str, Any], path: Path, losses: Losses) -> Iterator[dict[str, Any]]:
    """Yield the objects of a cleaned file, those with a broken outline without it."""
    sizes = image_sizes(content)
    for each in content['annotations']:
        if each.get('segmentation'):
            fault = next(mask_faults(each, sizes[each['image_id']], Use(masks=True)), None)
            if fault is not None:
                losses.add(f'outlines in {path.name} left out, which are broken', f'object {each["id"]} {fault.text}')
                each = {**each, 'segmentation': []}
        yield each


def image_folder(folder: Path, path: Path, content: dict[str, Any]) -> Path:
    """Return the folder that the file names in an annotation file are relative to, of those that are usual."""
    names = [with_slashes(name) for name in listed_files(content).values()]
    if not names:
        first = f' with a usable file name, the first: {short(content["images"][0])}' if content['images'] else ''
        raise UsageError(f'{path} lists no image{first}')
    names = names[:: max(1, len(names) // TRIED)]
    candidates = list(dict.fromkeys(possible_folders(folder, path)))
    best = max(candidates, key=lambda each: sum((each / name).is_file() for name in names))
    if not any((best / name).is_file() for name in names):
        places = ', '.join(str(each) for each in candidates)
        raise UsageError(f'the images of {path}, such as {names[0]}, are in none of {places}')
    return best


def possible_folders(folder: Path, path: Path) -> Iterator[Path]:
    yield from (path.parent, folder)
    own = path.stem.rpartition('_')[2]  # train2017 of instances_train2017, and CVAT's default
    split = split_of(path)
    names = [own, *(name for name, meant in SPLIT_NAMES.items() if meant == split)]
    bases = (folder, *(folder / name for name in ('images', 'JPEGImages', 'data')), path.parent / 'images')
    for base in bases:
        yield from (each for each in (base, *(base / name for name in names)) if each.is_dir())


def root_category(splits: list[Split]) -> str | None:
    """Return the category that only holds the others together, as Roboflow writes one, if no object has it."""
    every = {each['name']: each.get('supercategory') for split in splits for each in split.content['categories']}
    roots = [name for name, parent in every.items() if str(parent).lower() == 'none']
    if len(roots) != 1 or len(every) == 1:
        return None
    for split in splits:
        ids = {each['id'] for each in split.content['categories'] if each['name'] == roots[0]}
        if any(each['category_id'] in ids for each in split.objects):
            return None
    return roots[0]
