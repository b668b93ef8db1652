"""Checks before the work starts that its results can be written where the user wants them."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .errors import UsageError


def check_output_file(path: str | Path, option: str = '', inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ``UsageError`` if a file cannot be written, as a folder or one in no folder, or is one of the inputs."""
    path = Path(path)
    named = f' for {option}' if option else ''
    if not path.parent.is_dir():
        raise UsageError(f'cannot write {path}: there is no such folder{named}: {path.parent}')
    if path.is_dir():
        raise UsageError(f'cannot write {path}: it is a folder')
    for source in inputs:
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise UsageError(f'{path} is the file to be read, and would be written over: name another one{named}')


def check_output_folder(folder: Path, what: str, option: str) -> None:
    """Make a folder and write a few bytes into it, or raise ``UsageError``.

    ``what`` says what it is for, such as ``'the work dir'``, and ``option`` names another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'a checkpoint will be larger')
            file.flush()
    except OSError as error:
        raise UsageError(
            f'cannot write into {what} {folder} ({error.strerror}): name another one with {option}'
        ) from error


def nearest_folder(path: Path) -> Path:
    """Return the first that exists of ``path`` and what it lies in; this is where new folders would be made."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def may_write(folder: Path) -> bool:
    """Tell whether files can be made in an existing folder; of a file this is not true."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
