"""Checks of the image files that an annotation file lists: whether they are there, and each of them opened."""

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend
from PIL import Image

from ...common.errors import UsageError
from .findings import Finding
from .image import Inspection, Loader, inspect_image
from .reading import WHERE_TO_GET_DATA
from .tables import is_file_name, size_of

IMAGES_AT_ONCE = 1024  # between two reports of progress


def is_local(path: str, backend_args: Mapping[str, Any] | None = None) -> bool:
    """Tell whether mmengine would read a file from a disk of this machine, and not from storage of another kind.

    Raises:
        UsageError: If mmengine has no such storage, or lacks the package that talks to it.
    """
    try:
        backend = get_file_backend(path, backend_args=dict(backend_args or {}), enable_singleton=True)
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f'{path} cannot be reached with backend_args={backend_args}: {error!r}') from error
    return isinstance(backend, LocalBackend)


def require_folder(folder: Path) -> None:
    """Raise ``UsageError`` if the folder of the images does not exist."""
    if not folder.is_dir():
        raise UsageError(f'no image folder {folder}: {WHERE_TO_GET_DATA}')


def listed_files(content: Mapping[str, Any]) -> dict[int, str]:
    """Return the usable file names of the images by their place in the list."""
    return {
        index: image['file_name']
        for index, image in enumerate(content['images'])
        if type(image) is dict and is_file_name(image.get('file_name'))
    }


def check_presence(content: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """Look for every image that the annotation file lists, without opening any.

    Raises:
        UsageError: If the folder does not exist.
    """
    require_folder(folder)
    # strings, since making 118 000 paths takes seconds
    paths = {index: os.path.join(folder, name) for index, name in listed_files(content).items()}
    # one listing per folder: a question per file takes minutes on a network drive with all of COCO
    present: set[str] = set()
    for parent in {os.path.split(path)[0] for path in paths.values()}:
        with contextlib.suppress(OSError):  # then its images are looked for one by one
            present.update(entry.path for entry in os.scandir(parent))
    for index, path in paths.items():
        if path not in present and not exists(Path(path)):
            yield _finding('image_missing', 'does not exist', index, content, Path(path))


def exists(path: Path) -> bool:
    """Tell whether there is anything at a path; no for names that the file system does not take."""
    try:
        return path.exists()
    except OSError:
        return False


def check_files(
    content: Mapping[str, Any],
    folder: Path,
    loader: Loader,
    headers_only: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Finding], dict[int, tuple[int, int]]]:
    """Open every image that the annotation file lists, and decode it too unless only headers are asked for.

    Returns the findings, and the width and height of each readable file by its place in the list.

    Args:
        content: The content of the annotation file.
        folder: Where the images are.
        loader: How the config's pipeline loads them.
        headers_only: Decode nothing: what is truncated or broken behind its header goes unnoticed.
        workers: Threads.
        progress: Called now and then with the number of images that are done and of all.

    Raises:
        UsageError: If the folder does not exist.
    """
    require_folder(folder)
    names = listed_files(content)
    findings: list[Finding] = []
    sizes: dict[int, tuple[int, int]] = {}

    def look(index: int) -> tuple[int, Path, Inspection]:
        path = folder / names[index]
        return index, path, inspect_image(path, size_of(content['images'][index]), loader, headers_only)

    with ThreadPoolExecutor(workers) as pool, _quiet_pil():
        places = iter(names)
        done = 0
        while block := list(itertools.islice(places, IMAGES_AT_ONCE)):
            for index, path, inspection in pool.map(look, block):
                if inspection.size is not None:
                    sizes[index] = inspection.size
                findings += [_finding(kind, text, index, content, path) for kind, text in inspection.found]
            done += len(block)
            progress(done, len(names))
    return findings, sizes


def _finding(kind: str, text: str, index: int, content: Mapping[str, Any], path: Path) -> Finding:
    return Finding(kind, f'{path} {text}', 'images', index, content['images'][index].get('id'))


@contextlib.contextmanager
def _quiet_pil() -> Iterator[None]:
    """Let PIL open images of any size, which is compared before they are decoded, and keep its warnings to itself."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
