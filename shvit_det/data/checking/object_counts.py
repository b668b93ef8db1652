"""How many objects of an annotation file a run trains on or scores, and why the others not."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .annotation_file import entries_by_id, image_sizes

CROWD = 'crowd (iscrowd=1)'

Reason = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class ObjectCounts:
    """What a run does with the objects of an annotation file.

    Attributes:
        crowd: Those marked ``iscrowd``: detections in them count neither as right nor as wrong.
        ignored: Those that mmdet's ``CocoDataset`` and its ``filter_cfg`` pass over without a message, by reason.
    """

    total: int
    crowd: int
    ignored: dict[str, int]

    @property
    def used(self) -> int:
        """How many are trained on, or scored."""
        return self.total - self.crowd - sum(self.ignored.values())

    def as_phrase(self, used: str) -> str:
        """Return the counts as part of a sentence; ``used`` is what is done with the objects, as 'trained on'."""
        phrase = f'{self.used} of {self.total} objects are {used}'
        reasons = {CROWD: self.crowd, **self.ignored}
        left_out = ', '.join(f'{count} {reason}' for reason, count in reasons.items() if count)
        return phrase + (f' (not: {left_out})' if left_out else '')


def count_objects(content: Mapping[str, Any], classes: Sequence[str] | None, min_size: float = 0) -> ObjectCounts:
    """Count the objects of content without errors; arguments as for :func:`reason_not_used`."""
    reasons = Counter(map(reason_not_used(content, classes, min_size), content['annotations']))
    del reasons[None]
    crowd = reasons.pop(CROWD, 0)
    return ObjectCounts(len(content['annotations']), crowd, dict(reasons))  # type: ignore[arg-type]


def reason_not_used(content: Mapping[str, Any], classes: Sequence[str] | None, min_size: float = 0) -> Reason:
    """Return the function that tells why an object of content without errors is neither trained on nor scored, or None.

    ``classes`` are those of the config, None for all categories. Images smaller than ``min_size`` pixels are left out.
    """
    sizes = image_sizes(content)
    entries = entries_by_id(content['categories']).items()
    categories = {key for key, entry in entries if classes is None or entry.get('name') in classes}

    def reason(annotation: Mapping[str, Any]) -> str | None:
        if annotation.get('ignore', False):
            return 'marked ignore'
        x, y, box_width, box_height = annotation['bbox']
        width, height = sizes[annotation['image_id']]
        if min(x + box_width, width) <= max(x, 0) or min(y + box_height, height) <= max(y, 0):
            return 'box without area or outside the image'
        if annotation['area'] <= 0:
            return 'area not positive'
        if box_width < 1 or box_height < 1:
            return 'box narrower than a pixel'
        if annotation['category_id'] not in categories:
            return 'of a category that is no class of the config'
        if width < min_size or height < min_size:
            return f'in an image smaller than {min_size} pixels'
        return CROWD if annotation.get('iscrowd', False) else None

    return reason
