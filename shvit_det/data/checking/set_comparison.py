"""Comparisons of data sets with each other: what an evaluator scores with what is predicted, training with the rest."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .annotation_file import entries_by_id, entries_by_place, is_hashable
from .findings import Finding, short
from .image_presence import image_paths, is_file, with_slashes

Content = Mapping[str, Any]


def repeated_image(scored: Sequence[Content]) -> Any:
    """Return the id of an image that two of the data sets list, or None: an evaluator would mix up the two."""
    counts = Counter(key for content in scored for key in _listed_images(content))
    return min((key for key, count in counts.items() if count > 1), key=repr, default=None)


def scoring_difference(evaluator: Content, scored: Sequence[Content], masks: bool = False) -> str | None:
    """Return how the ground truth of an evaluator differs from the data sets that it scores; None if it does not.

    Data sets without objects have their images compared only: test sets are often given out that way.

    ``masks`` compares masks too, where both files have polygons or both have run lengths.
    """
    wanted = {key: value for content in scored for key, value in _listed_images(content).items()}
    given = _listed_images(evaluator)
    lacking, extra = ([key for key in one if key not in other] for one, other in ((wanted, given), (given, wanted)))
    if lacking:
        return f'lacks {len(lacking)} ({_named(lacking[0], wanted)}) of the {len(wanted)} images'
    if extra:
        return f'has {len(extra)} images ({_named(extra[0], given)}) that are none'
    if others := [key for key in wanted if wanted[key] != given[key]]:
        names = f'{_named(others[0], given)} in place of {wanted[others[0]]}'
        return f'has others ({names}) under {len(others)} of the {len(wanted)} ids'
    objects, scored_objects = _objects(*scored), _objects(evaluator)
    lost, added = (objects - scored_objects).total(), (scored_objects - objects).total()
    texts = [f'lacks {lost} of the {objects.total()} objects'] if lost else []
    texts += [f'has {added} objects that are none'] if added else []
    if masks and not texts:
        pairs = zip(_sorted_masks(*scored), _sorted_masks(evaluator), strict=True) if objects else ()
        others_masks = sum(type(one) is type(other) and one != other for one, other in pairs)
        texts += [f'has other masks for {others_masks} of the {objects.total()} objects'] if others_masks else []
    return ' and '.join(texts) if objects and texts else None


def _listed_images(content: Content) -> dict[Any, str]:
    """Return the names of the image files, without folders, by image id."""
    images = entries_by_id(content['images'])
    return {key: with_slashes(str(image.get('file_name', ''))).rpartition('/')[2] for key, image in images.items()}


def _named(image_id: Any, images: Mapping[Any, str]) -> str:
    return f'id {short(image_id)}, {images[image_id]}'


def _objects(*contents: Content) -> Counter[tuple]:
    return Counter(seen for content in contents for seen, _ in _seen(content))


def _sorted_masks(*contents: Content) -> list[Any]:
    """Return the masks of all objects, in an order that is the same for all files with these objects."""
    found = [(repr(seen), repr(mask), mask) for content in contents for seen, mask in _seen(content)]
    return [mask for _, _, mask in sorted(found, key=lambda each: each[:2])]


def _seen(content: Content) -> Iterator[tuple[tuple, Any]]:
    """Yield what an evaluator sees of each object: image, name of the category, crowd or not, box; and its mask."""
    names = {key: category.get('name') for key, category in entries_by_id(content['categories']).items()}
    for entry in entries_by_place(content['annotations']).values():
        category, box = entry.get('category_id'), entry.get('bbox')
        name = names.get(category) if is_hashable(category) else None
        sides = box if type(box) is list else [box]
        values = (entry.get('image_id'), name, entry.get('iscrowd'), *sides)
        yield tuple(value if is_hashable(value) else repr(value) for value in values), entry.get('segmentation')


def shared_images(
    training: Iterable[tuple[Content, Path]], content: Content, folder: Path, by_content: bool
) -> Iterator[Finding]:
    """Look for images of a data set that the training splits have too: the same file, or a copy of it.

    Args:
        training: The contents of the annotation files that are trained on, and their folders.
        content, folder: Those of the data set.
        by_content: Compare every image with every other, by size and hash; otherwise only those of the same name.
    """
    others = {index: os.path.normpath(path) for index, path in image_paths(content, folder.resolve()).items()}
    trained_on = {
        os.path.normpath(path) for each, place in training for path in image_paths(each, place.resolve()).values()
    }
    names = {os.path.split(path)[1] for path in others.values() if path not in trained_on}
    by_size: dict[int | None, list[str]] = {}
    for path in trained_on:
        if names and (by_content or os.path.split(path)[1] in names):
            by_size.setdefault(_file_size(path), []).append(path)
    by_size.pop(None, None)
    hash_of = functools.cache(_hash_of)
    for index, path in others.items():
        copies = [path] if path in trained_on else by_size.get(_file_size(path), [])
        copy = next((copy for copy in copies if copy == path or hash_of(copy) == hash_of(path)), None)
        if copy is not None:
            image_id = content['images'][index].get('id')
            text = f'image {short(image_id)}, {path}, is trained on' + ('' if copy == path else f' as {copy}')
            yield Finding('leaked_image', text, 'images', index, image_id)


def _file_size(path: str) -> int | None:
    """Return the size of a file in bytes; None if there is no such file, or nothing is in it."""
    return Path(path).stat().st_size or None if is_file(path) else None


def _hash_of(path: str) -> bytes:
    return hashlib.blake2b(Path(path).read_bytes()).digest()
