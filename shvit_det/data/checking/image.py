"""The check of one image file: whether it is whole, and what a config's pipeline makes of it.

mmdet loads by ``mmcv.imfrombytes``: OpenCV, three channels of 8 bits, turned as EXIF says. PIL tells what OpenCV does
not: OpenCV 4 decodes a truncated JPEG without a word, and no release says that there was something to turn.
"""

import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmcv
from PIL import Image, UnidentifiedImageError

ORIENTATION = 0x0112  # the tag in EXIF
TURNED = (5, 6, 7, 8)  # the orientations that exchange width and height
MOST_PIXELS = 2**28  # to decode of an image whose size the annotation file does not list
JPEG, PNG = b'\xff\xd8', b'\x89PNG'
ENDINGS = {JPEG: b'\xff\xd9', PNG: b'IEND\xaeB`\x82'}


@dataclass(frozen=True)
class Loader:
    """How a pipeline decodes images: the arguments of its ``LoadImageFromFile``."""

    color_type: str = 'color'
    backend: str | None = 'cv2'

    @property
    def turns(self) -> bool:
        """Whether EXIF's orientation is followed."""
        return self.backend in ('cv2', 'pillow', None) and self.color_type in ('color', 'grayscale')


@dataclass
class Inspection:
    """What was found in one file: kinds with texts, and the size that it has when loaded (width, height), if known."""

    found: list[tuple[str, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None


def inspect_image(path: Path, listed: tuple[int, int] | None, loader: Loader, headers_only: bool = False) -> Inspection:
    """Open an image file, and decode it by PIL and by mmcv unless only the header is asked for.

    Args:
        path: The file.
        listed: Width and height in the annotation file, if usable.
        loader: How the config's pipeline loads it.
        headers_only: Decode nothing.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Inspection([('image_unreadable', 'is no file')])
        if not status.st_size:
            return Inspection([('image_empty', 'has zero bytes')])
        with path.open('rb') as file:
            return _inspect(file if headers_only else io.BytesIO(file.read()), listed, loader, headers_only)
    except FileNotFoundError:
        return Inspection([('image_missing', 'does not exist')])
    except OSError as error:
        return Inspection([('image_unreadable', f'cannot be read: {error.strerror or error}')])


def _inspect(stream: Any, listed: tuple[int, int] | None, loader: Loader, headers_only: bool) -> Inspection:
    try:
        image = Image.open(stream)
        orientation = _orientation(image)
        found = list(_colours(image))
    except UnidentifiedImageError:
        return Inspection([('image_unreadable', 'is no image that PIL knows')])
    except Exception as error:  # decoders raise what they like on broken bytes
        return Inspection([_decoding_fault(error)])
    with image:
        turned = loader.turns and orientation in TURNED
        size = (image.height, image.width) if turned else (image.width, image.height)
        if listed is not None and size != listed:
            return Inspection([_size_fault(image.size, size, listed), *found], size)
        square = size[0] == size[1]
        if loader.turns and (orientation in (2, 3, 4) or (turned and (square or listed is None))):
            found.append(('image_orientation', f'has the EXIF orientation {orientation}'))
        if headers_only:
            return Inspection(found, size)
        if listed is None and size[0] * size[1] > MOST_PIXELS:
            return Inspection([('image_unreadable', f'claims {size[0]} x {size[1]} pixels'), *found])
        try:
            image.load()
        except Exception as error:
            return Inspection([_decoding_fault(error), *found])
    return _decode_as_mmdet(stream.getvalue(), size, listed, loader, found)


def _decode_as_mmdet(
    data: bytes, size: tuple[int, int], listed: tuple[int, int] | None, loader: Loader, found: list[tuple[str, str]]
) -> Inspection:
    try:
        pixels = mmcv.imfrombytes(data, flag=loader.color_type, backend=loader.backend)
    except Exception as error:
        return Inspection([('image_unreadable', f'cannot be decoded by mmcv: {_first_line(error)}'), *found])
    if pixels is None:
        return Inspection([('image_unreadable', 'cannot be decoded by mmcv, though by PIL'), *found])
    height, width = pixels.shape[:2]
    if listed is not None and (width, height) != listed:
        return Inspection([_size_fault(size, (width, height), listed), *found], (width, height))
    return Inspection(found, (width, height))


def _decoding_fault(error: Exception) -> tuple[str, str]:
    kind = 'image_truncated' if 'truncated' in str(error).lower() else 'image_unreadable'
    return kind, f'cannot be decoded: {_first_line(error)}'


def _size_fault(stored: tuple[int, int], loaded: tuple[int, int], listed: tuple[int, int]) -> tuple[str, str]:
    """Say how an image differs from its entry; sizes are width and height."""
    if stored == listed:
        return (
            'image_rotated',
            f'is {loaded[0]} x {loaded[1]} once turned as its EXIF says, but listed as {listed[0]} x {listed[1]}: '
            f"load it with color_type='color_ignore_orientation', or save it without EXIF",
        )
    return 'image_size_differs', f'is {loaded[0]} x {loaded[1]}, but listed as {listed[0]} x {listed[1]}'


def _orientation(image: Image.Image) -> int:
    """Return the orientation in an image's EXIF; 1, upright, for TIFF, which PIL turns itself."""
    exif = Image.Exif()
    if image.format != 'TIFF':
        exif.load(image.info.get('exif', b''))  # image.getexif() would decode a PNG
    return exif.get(ORIENTATION, 1)


def _colours(image: Image.Image) -> Iterator[tuple[str, str]]:
    bits = image.tag_v2.get(258, (8,)) if image.format == 'TIFF' else ()  # type: ignore[attr-defined]
    rawmode = str(image.tile[0][3]) if image.tile else ''  # type: ignore[attr-defined]
    if image.mode[0] in 'IF' or re.search(';16[BLN]', rawmode) or max(bits, default=8) > 8:
        yield 'image_deep', f'has more than 8 bits per channel (PIL mode {image.mode})'
    elif image.mode in ('L', '1', 'LA', 'La'):
        yield 'image_grey', 'is greyscale'
    elif image.mode == 'CMYK':
        yield 'image_cmyk', 'is CMYK'
    if image.mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA') or 'transparency' in image.info:
        yield 'image_alpha', 'has transparency'


def is_cut_off(path: Path) -> bool:
    """Tell whether a JPEG or PNG file that could be decoded ends before its picture does.

    Its last bytes answer for nearly every file; one that has something else there is decoded again, by PIL, which does
    not take missing rows for grey ones.
    """
    with path.open('rb') as file:
        head = file.read(4)
        ending = next((ending for start, ending in ENDINGS.items() if head.startswith(start)), None)
        if ending is None:
            return False
        file.seek(-min(32, os.fstat(file.fileno()).st_size), os.SEEK_END)
        if file.read().rstrip(b'\0').endswith(ending):
            return False
    return any(kind == 'image_truncated' for kind, _ in inspect_image(path, None, Loader()).found)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [''])[0][:160] or type(error).__name__
