"""Checks of the content of image files that an annotation file lists: do they decode, and have the size listed.

mmdet loads images by ``mmcv.imfrombytes``: through OpenCV, with three channels of 8 bits, turned as EXIF says. Pillow
is asked as well, because OpenCV does not report truncated files, EXIF orientations and lost channels or bits.
"""

import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from PIL import Image

from ...common.errors import first_line
from ...common.image_files import (
    SIDEWAYS,
    ImageFault,
    decoding_fault,
    exif_orientation,
    file_fault,
    is_nearly_black,
    no_size_limit,
    page_numbers,
)
from .annotation_file import size_of
from .findings import KINDS, Finding
from .image_presence import image_finding, listed_files, located, require_folder, unless_none_is_found

Size = tuple[int, int]  # width and height in pixels
IMAGES_AT_ONCE = 1024  # between two reports of progress
MIRRORED = (2, 3, 4)  # the EXIF orientations beside SIDEWAYS that are not upright
NEARLY_BLACK = ' and small values: in the upper 8 bits, which are loaded, it is nearly black'
MOST_PIXELS = 2**28  # to decode of an image whose size the annotation file does not list


@dataclass(frozen=True)
class DecodeSettings:
    """How a pipeline decodes images: the arguments ``color_type`` and ``imdecode_backend`` of ``LoadImageFromFile``."""

    color_type: str = 'color'
    backend: str | None = 'cv2'

    @property
    def follows_exif(self) -> bool:
        """Whether images are turned as their EXIF says."""
        return self.backend in ('cv2', 'pillow', None) and self.color_type in ('color', 'grayscale')


@dataclass
class Inspection:
    """What is wrong with one image file, as kinds of findings with texts, and its size when loaded, if known."""

    found: list[tuple[str, str]]
    size: Size | None = None

    @property
    def fault(self) -> str | None:
        """Why the file cannot be used; None if it can."""
        return next((text for kind, text in self.found if KINDS[kind].severity == 'error'), None)


def check_images(
    content: Mapping[str, Any],
    folder: Path,
    decode_settings: DecodeSettings,
    headers_only: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Finding], dict[int, Size]]:
    """Open every image that the annotation file lists, and decode it too unless only headers are asked for.

    Returns the findings, and the size of each readable file by its place in the list.

    Args:
        decode_settings: How the config's pipeline decodes them.
        headers_only: Decode nothing: files that are truncated or broken after the header go unnoticed.
        workers: How many threads.
        progress: Called now and then with the number of images that are done and of all.

    Raises:
        UsageError: If the folder does not exist.
    """
    require_folder(folder)
    names = listed_files(content)
    findings: list[Finding] = []
    sizes: dict[int, Size] = {}

    def inspect(index: int) -> tuple[int, Inspection]:
        path, found = located(folder, names[index])
        inspection = inspect_image(path, size_of(content['images'][index]), decode_settings, headers_only)
        return index, Inspection([*found, *inspection.found], inspection.size)

    with ThreadPoolExecutor(workers) as pool, no_size_limit():
        remaining, done = iter(names), 0
        while block := list(itertools.islice(remaining, IMAGES_AT_ONCE)):
            for index, inspection in pool.map(inspect, block):
                if inspection.size is not None:
                    sizes[index] = inspection.size
                path = folder / names[index]
                findings += [image_finding(kind, text, index, content, path) for kind, text in inspection.found]
            done += len(block)
            progress(done, len(names))
    return unless_none_is_found(findings, names, folder), sizes


def inspect_image(
    path: Path, listed: Size | None, decode_settings: DecodeSettings, headers_only: bool = False
) -> Inspection:
    """Open an image file, and decode it by Pillow and by mmcv unless only the header is asked for.

    Its size is compared with that which is ``listed``, if there is one that is usable.
    """
    if (fault := file_fault(path)) is not None:
        return Inspection([_as_found(fault)])
    try:
        with path.open('rb') as file:
            return _inspect(file if headers_only else io.BytesIO(file.read()), listed, decode_settings, headers_only)
    except OSError as error:
        return Inspection([_as_found(decoding_fault(error))])


def _inspect(stream: Any, listed: Size | None, decode_settings: DecodeSettings, headers_only: bool) -> Inspection:
    try:
        image = Image.open(stream)
        orientation = exif_orientation(image)
        found = list(_color_findings(image))
        if (count := len(page_numbers(image))) > 1:
            found.append(('image_pages', f'has {count} pages or frames, of which the first is loaded'))
    except Exception as error:  # decoders raise what they like on broken bytes
        return Inspection([_as_found(decoding_fault(error))])
    with image:
        turned = decode_settings.follows_exif
        transposed = turned and orientation in SIDEWAYS
        size = (image.height, image.width) if transposed else image.size
        if listed is not None and size != listed:
            return Inspection([_size_fault(image.size, size, listed), *found], size)
        unnoticed = transposed and (size[0] == size[1] or listed is None)
        if unnoticed or (turned and orientation in MIRRORED):
            found.append(('image_orientation', f'has the EXIF orientation {orientation}'))
        if headers_only:
            return Inspection(found, size)
        if listed is None and size[0] * size[1] > MOST_PIXELS:
            return Inspection([('image_unreadable', f'claims {size[0]} x {size[1]} pixels'), *found])
        try:
            image.load()
        except Exception as error:
            return Inspection([_as_found(decoding_fault(error)), *found])
    return _decode_as_mmdet(stream.getvalue(), size, listed, decode_settings, found)


def _decode_as_mmdet(
    data: bytes, size: Size, listed: Size | None, decode_settings: DecodeSettings, found: list[tuple[str, str]]
) -> Inspection:
    try:
        pixels = mmcv.imfrombytes(data, flag=decode_settings.color_type, backend=decode_settings.backend)
    except Exception as error:
        return Inspection([('image_unreadable', f'cannot be decoded by mmcv: {first_line(error)[:160]}'), *found])
    if pixels is None:
        return Inspection([('image_unreadable', 'cannot be decoded by mmcv, though by PIL'), *found])
    if is_nearly_black(pixels, lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)):
        found = [(kind, text + NEARLY_BLACK if kind == 'image_deep' else text) for kind, text in found]
    loaded = (pixels.shape[1], pixels.shape[0])
    if listed is not None and loaded != listed:
        return Inspection([_size_fault(size, loaded, listed), *found], loaded)
    return Inspection(found, loaded)


def _as_found(fault: ImageFault) -> tuple[str, str]:
    kind = 'unreadable' if fault.kind == 'unknown_format' else fault.kind
    return f'image_{kind}', fault.message


def _size_fault(stored: Size, loaded: Size, listed: Size) -> tuple[str, str]:
    if stored == listed:
        return (
            'image_rotated',
            f'is {loaded[0]} x {loaded[1]} once turned as its EXIF says, but listed as {listed[0]} x {listed[1]}: '
            f"load it with color_type='color_ignore_orientation', or save it without EXIF",
        )
    return 'image_size_differs', f'is {loaded[0]} x {loaded[1]}, but listed as {listed[0]} x {listed[1]}'


def _color_findings(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Yield what of an image's colours is lost when it is loaded as three channels of 8 bits."""
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
