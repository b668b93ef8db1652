"""The pictures and videos that a user names by files, folders, patterns and URLs, and the names of their drawings."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape, glob, has_magic
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..common.errors import UsageError

PICTURES = tuple(IMG_EXTENSIONS)
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
JPEGS = ('.jpg', '.jpeg', '')  # the drawing of such a picture is a JPEG, of all others a PNG
LONGEST_NAME = 100  # bytes of an input's name in that of its drawing; file systems take 255


@dataclass(frozen=True)
class Input:
    """A picture or a video.

    Args:
        source: A path or a URL, as the user named it.
    """

    source: str

    @property
    def is_url(self) -> bool:
        return self.source.lower().startswith(('http://', 'https://'))

    @property
    def path(self) -> PurePosixPath | Path:
        """The path, or that within a URL."""
        if not self.is_url:
            return Path(self.source)
        place = re.split(r'[?#]', self.source)[0].split('://', 1)[1]  # urlparse refuses some URLs
        return PurePosixPath('/' + unquote(place.partition('/')[2]))

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_inputs(named: Sequence[str]) -> list[Input]:
    """Return the pictures and videos that are named, in order, each once.

    For a folder, these are the pictures and videos in it, without those in its subfolders; for a pattern, those that it
    matches, ``**`` being any depth. A file that is named itself may have any suffix.

    Raises:
        UsageError: If there is no such file, or a folder or pattern has none.
    """
    found: dict[str, Input] = {}
    for name in named:
        for source in expand(name):
            item = Input(source)
            found.setdefault(source if item.is_url else str(Path(source).resolve()), item)
    return list(found.values())


def expand(name: str) -> list[str]:
    """Return the files, or the URL, for one name; see :func:`find_inputs`."""
    path = Path(name).expanduser()
    if Input(name).is_url:
        return [name]
    if path.is_dir():
        files = media(list(path.iterdir()))
        if not files:
            pattern = shlex.quote(f'{escape(str(path))}/**/*')
            within = f': for those in folders within name a pattern, {pattern}'
            raise UsageError(f'{name} has no picture or video{within if any(map(Path.is_dir, path.iterdir())) else ""}')
        return files
    if path.exists():
        return [str(path)]
    if '://' in name:
        raise UsageError(f'{name}: URLs have to start with http:// or https://')
    if has_magic(name):
        files = media([Path(match) for match in glob(str(path), recursive=True)])  # noqa: PTH207  (a Path's own takes no absolute pattern)
        if not files:
            raise UsageError(f'no picture or video matches {name}')
        return files
    raise UsageError(f'no such file or folder: {name}')


def media(paths: Sequence[Path]) -> list[str]:
    """Return those of the paths that are pictures or videos by their suffix, sorted; no hidden ones."""
    endings = PICTURES + VIDEOS
    return sorted(str(p) for p in paths if p.suffix.lower() in endings and p.name[0] != '.' and p.is_file())


def output_names(inputs: Sequence[Input]) -> list[str]:
    """Return a file name for the drawing of each input; no two differ only in capitals.

    Where several inputs have one name, those of their folders are put before it, and numbers after it if need be.
    """
    plain = [output_name(item) for item in inputs]
    count = Counter(name.lower() for name in plain)
    wanted = [
        f'{shortened(item.path.parent.name)}-{name}' if count[name.lower()] > 1 and item.path.parent.name else name
        for item, name in zip(inputs, plain, strict=True)
    ]
    taken: set[str] = set()
    names = []
    for name in wanted:
        path, number, free = Path(name), 1, name
        while free.lower() in taken or (number > 1 and free.lower() in map(str.lower, wanted)):
            number += 1
            free = f'{path.stem}-{number}{path.suffix}'
        taken.add(free.lower())
        names.append(free)
    return names


def shortened(name: str) -> str:
    """Return the last ``LONGEST_NAME`` bytes of a name."""
    return os.fsencode(name)[-LONGEST_NAME:].decode(errors='ignore')


def output_name(item: Input) -> str:
    """Return the name of an input with the suffix of its drawing."""
    stem = shortened(item.path.stem) or 'picture'
    if item.is_video:
        return f'{stem}.mp4'
    suffix = item.path.suffix.lower()
    known = suffix in PICTURES or not item.is_url  # the last part of a URL often has a dot and no ending
    return f'{stem}{".jpg" if suffix in JPEGS or not known else ".png"}'
