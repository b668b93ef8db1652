"""Files that are there whole or not at all, also after a power cut."""

import os
from pathlib import Path

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


def write_text(path: Path, text: str) -> None:
    """Replace the text of a file; who reads it finds the old text or the new one."""
    try:
        part_of(path).write_text(text, encoding='utf-8')
        settle(path)
    finally:
        part_of(path).unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Wait until the disk has what a file, or a folder, holds."""
    if path.is_dir() and not hasattr(os, 'O_DIRECTORY'):
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows synchronises only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
