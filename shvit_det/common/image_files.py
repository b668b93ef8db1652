"""Image files: is one complete, and how does its EXIF say that it is turned.

OpenCV, which loads images for mmdet, answers neither: OpenCV 4 decodes a truncated JPEG with a grey lower part and
says nothing, and no release says that it has turned an image upright. Pillow does.
"""

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .errors import first_line
from .wrong_contents import wrong_content

ORIENTATION = 0x0112  # the tag in EXIF
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
SUBFILE_TYPE = 0x00FE  # the tag in a TIFF
DARK = 64  # of 256 values
ANIMATIONS_AND_STACKS = ('GIF', 'PNG', 'WEBP', 'AVIF', 'TIFF')
JPEG, PNG = b'\xff\xd8', b'\x89PNG'
END_MARKERS = {JPEG: b'\xff\xd9', PNG: b'IEND\xaeB`\x82'}


class SizeLimit:
    """Pillow's limit, which is one for all threads: the first block removes it, and the last one brings it back."""

    def __init__(self) -> None:
        self.lock, self.num_blocks, self.restoring = threading.Lock(), 0, ExitStack()

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Make Pillow open images of any size, without its warnings: OpenCV takes them too."""
        with self.lock:
            self.num_blocks += 1
            if self.num_blocks == 1:
                self.restoring.callback(setattr, Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
                self.restoring.enter_context(warnings.catch_warnings())
                warnings.simplefilter('ignore')
                Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            with self.lock:
                self.num_blocks -= 1
                if self.num_blocks == 0:
                    self.restoring.close()


no_size_limit = SizeLimit().removed


@dataclass(frozen=True)
class ImageFault:
    """Why a file is not a complete image."""

    # 'unreadable' is any fault without a kind of its own. A file of 'unknown_format' is one that Pillow does
    # not know; OpenCV may.
    kind: Literal['missing', 'empty', 'truncated', 'unknown_format', 'unreadable']
    message: str  # a sentence without its subject, such as 'has zero bytes'


def find_fault(path: Path) -> ImageFault | None:
    """Return why a file is not a complete image; None if it is one.

    A JPEG or PNG that ends as it should is taken for complete, so nearly every file costs a few microseconds. All
    others are decoded.
    """
    try:
        if (fault := file_fault(path)) is not None or has_end_marker(path):
            return fault
        with no_size_limit(), Image.open(path) as image:
            image.load()
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        with path.open('rb') as file:
            content = wrong_content(file.read(512))
        return decoding_fault(error) if content is None else ImageFault('unreadable', content)
    except Exception as error:  # decoders raise what they like on damaged bytes
        return decoding_fault(error)
    return None


def is_truncated(path: Path) -> bool:
    """Tell whether a JPEG or PNG ends before its image does; False for other formats, which only decoding can tell."""
    return has_end_marker(path) is False and (fault := find_fault(path)) is not None and fault.kind == 'truncated'


def file_fault(path: Path) -> ImageFault | None:
    """Return what is wrong with a file before anyone looks into it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ImageFault('missing', 'does not exist')
    except OSError as error:
        return ImageFault('unreadable', f'cannot be read: {error.strerror or error}')
    if not stat.S_ISREG(status.st_mode):
        return ImageFault('unreadable', 'is no file')
    return None if status.st_size else ImageFault('empty', 'has zero bytes')


def decoding_fault(error: Exception) -> ImageFault:
    """Return the fault behind an exception of Pillow's."""
    if isinstance(error, UnidentifiedImageError):
        return ImageFault('unknown_format', 'is no image that PIL knows')
    if isinstance(error, OSError) and error.strerror:  # of the file, where those of the decoder have a text only
        return ImageFault('unreadable', f'cannot be read: {error.strerror}')
    kind: Literal['truncated', 'unreadable'] = 'truncated' if 'truncated' in str(error).lower() else 'unreadable'
    return ImageFault(kind, f'cannot be decoded: {first_line(error)[:160]}')


def has_end_marker(path: Path) -> bool | None:
    """Tell whether a JPEG or PNG ends with its format's end marker; None for other formats.

    A complete file may have something else after the marker, as some cameras write it.
    """
    with path.open('rb') as file:
        head = file.read(4)
        marker = next((marker for start, marker in END_MARKERS.items() if head.startswith(start)), None)
        if marker is None:
            return None
        file.seek(-min(32, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read().rstrip(b'\0').endswith(marker)


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF of an opened image, 1 for upright.

    It is 1 for TIFF, which Pillow turns itself. ``image.getexif()`` would decode a PNG, and this does not.
    """
    exif = Image.Exif()
    if image.format != 'TIFF':
        exif.load(image.info.get('exif', b''))
    return int(exif.get(ORIENTATION, 1))


def pages_of(path: Path) -> list[int]:
    """Return :func:`page_numbers` of a file, ``[0]`` for one that Pillow does not know or cannot read."""
    try:
        with path.open('rb') as file:
            if file.read(2) == JPEG:  # with the previews and depths that phones put behind it
                return [0]
        with no_size_limit(), Image.open(path) as image:
            return page_numbers(image)
    except Exception:  # what is wrong with it will be said when it is read
        return [0]


def page_numbers(image: Image.Image) -> list[int]:
    """Return the numbers of those frames or pages of an opened image that are pictures of their own: mostly just 0.

    The smaller copies in TIFFs are none.
    """
    if image.format not in ANIMATIONS_AND_STACKS or getattr(image, 'n_frames', 1) == 1:
        return [0]
    numbers = [number for number in range(image.n_frames) if not is_copy(image, number)]  # type: ignore[attr-defined]
    image.seek(0)
    return numbers or [0]


def is_copy(image: Image.Image, number: int) -> bool:
    """Tell whether a page of an opened TIFF is a smaller copy or the transparency of another one."""
    if image.format != 'TIFF':
        return False
    image.seek(number)
    return bool(image.tag_v2.get(SUBFILE_TYPE, 0) & 0b101)  # type: ignore[attr-defined]


def is_nearly_black(loaded: NDArray[Any], deep: Callable[[], NDArray[Any] | None]) -> bool:
    """Tell whether an image of more than 8 bits has lost most of its values where the upper 8 were loaded.

    Args:
        loaded: Its pixels as they were loaded.
        deep: Returns them with all bits; called for dark images only.
    """
    if loaded.dtype != np.uint8 or loaded.max(initial=0) >= DARK:
        return False
    values = deep()
    return values is not None and values.dtype != np.uint8 and bool(values.max(initial=0) > 0)
