"""What mmdet trains on: its CocoDataset passes over objects without a word; here they are counted."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .objects import image_sizes, is_hashable, objects_of


def trained_categories(content: Mapping[str, Any], classes: Sequence[str]) -> set[Any]:
    """Return the ids of the categories that the classes of a config name."""
    entries = [entry for entry in content['categories'] if type(entry) is dict]
    return {entry.get('id') for entry in entries if entry.get('name') in classes and is_hashable(entry.get('id'))}


def why_passed_over(annotation: Mapping[str, Any], width: int, height: int, categories: Collection[Any]) -> str | None:
    """Return why mmdet's CocoDataset does not train on an annotation without errors, or None where it does."""
    if annotation.get('ignore', False):
        return 'marked ignore'
    x, y, box_width, box_height = annotation['bbox']
    if min(x + box_width, width) <= max(x, 0) or min(y + box_height, height) <= max(y, 0):
        return 'box without area or outside the image'
    if annotation['area'] <= 0:
        return 'area not positive'
    if box_width < 1 or box_height < 1:
        return 'box narrower than a pixel'
    if annotation['category_id'] not in categories:
        return 'of a category that is no class of the config'
    return None


def passed_over(content: Mapping[str, Any], classes: Sequence[str]) -> dict[str, int]:
    """Return how many annotations mmdet passes over, by reason; of content without errors."""
    sizes = image_sizes(content)
    categories = trained_categories(content, classes)
    reasons = (
        why_passed_over(annotation, *sizes[annotation['image_id']], categories)
        for annotation in objects_of(content).values()
    )
    return dict(Counter(reason for reason in reasons if reason is not None))
