"""All checks of an annotation file, in the order in which a reader wants to know."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...common.garbage_collection import collector_paused
from .findings import Finding
from .masks import check_masks
from .objects import Use, check_annotations
from .tables import check_categories, check_classes, check_images


def check_content(
    content: Mapping[str, Any], use: Use, path: Path, classes: Sequence[str] | None = None
) -> list[Finding]:
    """Return everything that is wrong with the content of an annotation file.

    Args:
        content: The three lists, as :func:`~shvit_det.data.checking.reading.read_annotations` returns them.
        use: What the config does with it.
        path: The file, for sentences.
        classes: The classes of the config, or None where it states none.
    """
    with collector_paused():
        return [
            *check_file(content, path, classes),
            *check_categories(content),
            *check_images(content),
            *check_annotations(content, use),
            *(check_masks(content, use) if use.masks else ()),
        ]


def check_file(content: Mapping[str, Any], path: Path, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Look at what concerns the file as a whole: whether it lists images, and the classes of the config."""
    if not content['images']:
        yield Finding('file', f'{path} lists no image')
    if classes is not None:
        try:
            check_classes(content, classes, path)
        except UsageError as error:
            yield Finding('classes', str(error))
