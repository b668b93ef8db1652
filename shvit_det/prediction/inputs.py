"""The pictures, videos and cameras that a user names, and the names of their drawings."""

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
from ..common.log import warn

PICTURES = (
    *IMG_EXTENSIONS, '.jpe', '.jfif', '.mpo', '.apng', '.avif', '.dib', '.exr', '.gif', '.hdr', '.heic', '.heif',
    '.hif', '.j2k', '.jp2', '.jxl', '.pbm', '.pfm', '.pnm', '.tga',
)  # fmt: skip
VIDEOS = (
    '.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.3gp', '.flv', '.m2ts', '.mts', '.ogv',
    '.ts',
)  # fmt: skip
JPEGS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.heic', '.heif', '.hif', '')  # of photographs
LONGEST_NAME = 100  # bytes of an input's name in that of its drawing; file systems take 255
STREAM = re.compile(r'\d+|(rtsps?|rtmp|rtp|udp|tcp|srt)://.*', re.IGNORECASE)  # a number is that of a camera


@dataclass(frozen=True)
class Input:
    """A picture, a video, or a live stream."""

    source: str  # a path, a URL or the number of a camera, as the user named it

    @property
    def is_url(self) -> bool:
        return self.source.lower().startswith(('http://', 'https://'))

    @property
    def is_live(self) -> bool:
        """Whether this is a camera or a live stream."""
        return bool(STREAM.fullmatch(self.source)) and not Path(self.source).exists()

    @property
    def name(self) -> str:
        """The source without a user's name and password."""
        return re.sub(r'(?<=://)[^/@]*@', '', self.source)

    @property
    def path(self) -> PurePosixPath | Path:
        """The path, or that within a URL; for a camera a name."""
        if self.is_live:
            return PurePosixPath(
                f'camera-{self.source}' if self.source.isdecimal() else self.name.partition('://')[2].partition('?')[0]
            )
        if not self.is_url:
            return Path(self.source)
        place = re.split(r'[?#]', self.source)[0].split('://', 1)[1]  # urlparse refuses some URLs
        return PurePosixPath('/' + unquote(place.partition('/')[2]))

    @property
    def is_video(self) -> bool:
        return self.is_live or self.path.suffix.lower() in VIDEOS


def find_inputs(named: Sequence[str]) -> list[Input]:
    """Return the pictures and videos that are named, in order, each once.

    For a folder, these are the pictures and videos in it, without those in its subfolders; for a pattern, those that it
    matches, ``**`` being any depth. What is left out is counted in the log. A file that is named itself, or by a
    pattern that ends in its suffix, may have any suffix.

    Raises:
        UsageError: If there is no such file, a folder or pattern has none, or there are several live streams.
    """
    found: dict[str, Input] = {}
    for name in named:
        for source in expand(name):
            item = Input(source)
            found.setdefault(source if item.is_url or item.is_live else str(Path(source).resolve()), item)
    live = [item.name for item in found.values() if item.is_live]
    if len(live) > 1:
        raise UsageError(f'{" and ".join(live)} have no end: name one, and start another run for each other')
    return list(found.values())


def expand(name: str) -> list[str]:
    """Return the files, or the URL or camera, for one name; see :func:`find_inputs`."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111  (a Path's own raises an error for a user who is not there)
    if Input(name).is_url or Input(name).is_live:
        return [name]
    if os.path.isdir(path):  # noqa: PTH112  (a Path's own raises an error for a name that is too long)
        return media(list(path.iterdir()), name, f'{name} has no picture or video')
    if os.path.exists(path):  # noqa: PTH110
        return [str(path)]
    if '://' in name:
        raise UsageError(f'{name}: URLs have to start with http:// or https://, those of live streams with rtsp://')
    if has_magic(name):
        matches = [Path(match) for match in glob(str(path), recursive=True)]  # noqa: PTH207  (a Path's own takes no absolute pattern)
        endings = None if path.suffix and not has_magic(path.suffix) else PICTURES + VIDEOS
        return media(matches, name, f'no picture or video matches {name}', endings)
    raise UsageError(f'no such file or folder: {name}')


def media(
    paths: Sequence[Path], name: str, if_none: str, endings: Sequence[str] | None = PICTURES + VIDEOS
) -> list[str]:
    """Return the files among the paths that have one of the endings, sorted, and log how many others there are.

    Hidden ones are left out without a word. ``endings`` is None for any. If there is no file, ``UsageError`` says
    ``if_none``.
    """
    shown = [path for path in paths if path.name[:1] != '.']
    files = [path for path in shown if path.is_file()]
    found = [path for path in files if endings is None or path.suffix.lower() in endings]
    others = Counter(path.suffix.lower() or 'without an ending' for path in set(files).difference(found))
    left_out = ', '.join(f'{count} {ending}' for ending, count in sorted(others.items()))
    folders = [path for path in shown if path.is_dir()]
    if folders and '**' not in name:
        pattern = shlex.quote(os.path.join(escape(name) if Path(name).is_dir() else Path(name).parent, '**', '*'))
        within = f'what is in its folders, for which you can name {pattern}'
        left_out = f'{left_out}, and {within}' if left_out else within
    if not found:
        raise UsageError(f'{if_none}{left_out and f"; it has {left_out}"}')
    if left_out:
        warn(f'{name}: not predicted: {left_out}')
    return sorted(map(str, found))


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
    return [str(path) for path in unique_names(list(map(Path, wanted)))]


def unique_names(wanted: Sequence[Path]) -> list[Path]:
    """Return relative paths with numbers after those names that others have already; no two differ only in capitals."""
    first = {str(path).lower() for path in wanted}
    taken: set[str] = set()
    names = []
    for path in wanted:
        number, free = 1, path
        while str(free).lower() in taken or (number > 1 and str(free).lower() in first):
            number += 1
            free = path.with_name(f'{path.stem}-{number}{path.suffix}')
        taken.add(str(free).lower())
        names.append(free)
    return names


def shortened(name: str) -> str:
    """Return the last ``LONGEST_NAME`` bytes of a name."""
    return os.fsencode(name)[-LONGEST_NAME:].decode(errors='ignore')


def output_name(item: Input) -> str:
    """Return the name of an input with the suffix of its drawing."""
    stem = shortened(item.path.stem) or 'picture'
    if item.is_live:
        stem = shortened(re.sub(r'[^\w.-]+', '-', str(item.path)).strip('-'))
    if item.is_video:
        return f'{stem}.mp4'
    suffix = item.path.suffix.lower()
    known = suffix in PICTURES or not item.is_url  # the last part of a URL often has a dot and no ending
    return f'{stem}{".jpg" if suffix in JPEGS or not known else ".png"}'
