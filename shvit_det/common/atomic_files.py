"""Files and folders that appear under their names only when they are complete, also after a power cut.

Each is written under another name in the same folder, brought to the disk, and renamed.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UsageError

PART = '.part'


def partial_path(path: Path, unique: bool = False) -> Path:
    """Return the name under which a file is written until it is complete; a ``unique`` one is no other process's."""
    return path.with_name(f'{path.name}.{secrets.token_hex(4)}{PART}' if unique else path.name + PART)


def publish(partial: Path, path: Path) -> None:
    """Give a complete file or folder its name, once the disk has all of it."""
    for each in (partial, *(partial.rglob('*') if partial.is_dir() else ())):
        synchronise(each)
    partial.replace(path)
    synchronise(path.parent)  # the folder holds the new name, and is written separately


@contextmanager
def partial_file(path: Path, unique: bool = False) -> Iterator[Path]:
    """Yield :func:`partial_path` for a block that writes there and ends with :func:`publish`; else it is deleted."""
    partial = partial_path(path, unique)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name under which the block writes a file; if the block succeeds, the file replaces ``path``.

    If it fails, the file at ``path`` stays as it is. A link stays a link, and the file that it leads to is replaced.
    What is not a regular file, such as ``/dev/stdout``, is written directly.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    with partial_file(target) as partial:
        yield partial
        publish(partial, target)


@contextmanager
def saving(path: str | Path) -> Iterator[Path]:
    """Do what :func:`replacing` does, for a file that the user asked for; if it fails, by a ``UsageError``."""
    try:
        with replacing(Path(path)) as partial:
            yield partial
    except OSError as error:
        raise UsageError(f'cannot write {path}: {error.strerror or error}') from error


@contextmanager
def replacing_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yield a new hidden folder for a block that fills it; if the block succeeds, the folder gets the name ``path``.

    If it fails, what stands at ``path`` stays there. A folder that is there by then is deleted, or the renaming fails
    with ``OSError`` if it is not to be replaced.
    """
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}-', dir=path.parent) as workplace:
        partial, aside = Path(workplace, 'new', path.name), Path(workplace, 'old')
        partial.mkdir(parents=True)
        yield partial
        if replace:
            with suppress(FileNotFoundError):  # there is none, or another process is replacing it too
                path.rename(aside)
        try:
            publish(partial, path)
        except BaseException:
            if aside.exists() and not path.exists():
                aside.rename(path)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace the text of a file: whoever reads it at the same time finds the old text or the new one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding='utf-8')


def save_json(path: str | Path, content: Any, **options: Any) -> None:
    """Write JSON into a file that the user asked for; ``options`` are those of ``json.dumps``."""
    text = json.dumps(content, **options) + '\n'
    with saving(path) as partial:
        partial.write_text(text, encoding='utf-8')


def synchronise(path: Path) -> None:
    """Wait until the disk has the content of a file or a folder."""
    if path.is_dir() and not hasattr(os, 'O_DIRECTORY'):
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows synchronises only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
