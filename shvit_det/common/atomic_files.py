"""Files that are there whole or not at all, also after a power cut."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UsageError

PART = '.part'


def part_of(path: Path) -> Path:
    """Return the name under which a file is written until it is whole."""
    return path.with_name(path.name + PART)


def settle(path: Path) -> None:
    """Give the file that was written under ``part_of(path)`` its name, once the disk has all of it."""
    part = part_of(path)
    synchronise(part)
    part.replace(path)
    synchronise(path.parent)  # the new name is in the folder, which is written for itself


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name to write a file under; it gets its own name when the block has ended well.

    Whatever else ends the block, what stands at ``path`` stays as it is. What is no file, such as ``/dev/stdout``, is
    written to as it is; where ``path`` is a link, the file that it leads to is replaced.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    try:
        yield part_of(target)
        settle(target)
    finally:
        part_of(target).unlink(missing_ok=True)


@contextmanager
def saving(path: str | Path) -> Iterator[Path]:
    """Do what :func:`.replacing` does for a file that the user asked for.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        with replacing(Path(path)) as part:
            yield part
    except OSError as error:
        raise UsageError(f'cannot write {path}: {error.strerror or error}') from error


def write_text(path: Path, text: str) -> None:
    """Replace the text of a file; who reads it finds the old text or the new one."""
    with replacing(path) as part:
        part.write_text(text, encoding='utf-8')


def save_json(path: str | Path, content: Any, **options: Any) -> None:
    """Write JSON into a file that the user asked for, ``options`` being those of ``json.dumps``.

    Raises:
        UsageError: If it cannot be written.
    """
    text = json.dumps(content, **options) + '\n'
    with saving(path) as part:
        part.write_text(text, encoding='utf-8')


def synchronise(path: Path) -> None:
    """Wait until the disk has what a file, or a folder, holds."""
    if path.is_dir() and not hasattr(os, 'O_DIRECTORY'):
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows synchronises only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
