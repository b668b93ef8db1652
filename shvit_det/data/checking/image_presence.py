"""Where the image files are that an annotation file lists, and which of them do not exist."""

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend

from ...common.errors import UsageError
from .annotation_file import WHERE_TO_GET_DATA, entries_by_place, is_file_name
from .findings import Finding

NAMES_TO_LOOK_FOR, ENTRIES_TO_LOOK_AT = 10, 10_000  # if not one image is found


# Unlike the methods of Path, these answer False for a name that the file system does not take.
exists, is_file, is_folder, is_link = os.path.exists, os.path.isfile, os.path.isdir, os.path.islink


def is_local(path: str, backend_args: Mapping[str, Any] | None = None) -> bool:
    """Tell whether mmengine would read a file from a disk of this machine and not from remote storage.

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


def image_paths(content: Mapping[str, Any], folder: Path) -> dict[int, str]:
    """Return the paths of the images by their place in the list, as text: 118 000 ``Path`` objects take seconds."""
    return {index: os.path.join(folder, name) for index, name in listed_files(content).items()}


def check_presence(content: Mapping[str, Any], folder: Path) -> list[Finding]:
    """Look for every image that the annotation file lists, without opening any.

    Raises:
        UsageError: If the folder does not exist.
    """
    require_folder(folder)
    names, paths = listed_files(content), image_paths(content, folder)
    # one listing per folder: a question per file takes minutes on a network drive with all of COCO
    present: set[str] = set()
    for parent in {os.path.split(path)[0] for path in paths.values()}:
        with contextlib.suppress(OSError):  # its images are then looked for one by one
            present.update(entry.path for entry in os.scandir(parent) if entry.is_file())
    findings = []
    for index, path in paths.items():
        if path not in present and not is_file(path):
            found = located(folder, names[index])[1] or [('image_missing', _why_missing(path))]
            findings += [image_finding(kind, text, index, content, Path(path)) for kind, text in found]
    return unless_none_is_found(findings, names, folder)


def listed_files(content: Mapping[str, Any]) -> dict[int, str]:
    """Return the usable file names of the images by their place in the list."""
    return {
        index: image['file_name']
        for index, image in entries_by_place(content['images']).items()
        if is_file_name(image.get('file_name'))
    }


def with_slashes(name: str) -> str:
    return name.replace('\\', '/')


def located(folder: Path, name: str) -> tuple[Path, list[tuple[str, str]]]:
    """Return the path of an image, and as a kind of finding with its text that only a name with slashes finds it."""
    if '\\' in name and not exists(folder / name) and exists(folder / with_slashes(name)):
        text = 'does not exist, but does with slashes in the place of backslashes'
        return folder / with_slashes(name), [('image_backslash', text)]
    return folder / name, []


def unless_none_is_found(findings: list[Finding], names: Mapping[int, str], folder: Path) -> list[Finding]:
    """Return the findings, with one in place of all missing images if not one is found."""
    others = [finding for finding in findings if finding.kind != 'image_missing']
    if not names or len(findings) - len(others) < len(names):
        return findings
    looked_for = list(names.values())[:NAMES_TO_LOOK_FOR]
    entries: list[os.DirEntry] = []
    has = 'cannot be listed'
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        entries = list(itertools.islice(listing, ENTRIES_TO_LOOK_AT))
        has = f'holds {entries[0].name}, but not {looked_for[0]!r}' if entries else 'is empty'
    cause = next(filter(None, (_where(name, folder, entries) for name in looked_for)), None)
    if cause is None:
        cause = f'the folder {has}: name another with data_prefix.img or --data-root DIR'
    return [Finding('no_images', f'not one of the {len(names)} images is in {folder}: {cause}'), *others]


def _where(name: str, folder: Path, entries: Sequence[os.DirEntry]) -> str | None:
    """Return where a file is that is not in the folder under its name, and what to do; None if it is not near."""
    parts = [part for part in with_slashes(name).split('/') if part not in ('', '.')]
    listed = f'the file_name {name!r}' + (', with slashes in place of its backslashes,' if '\\' in name else '')
    for other in (*folder.absolute().parents, *(Path(entry.path) for entry in entries if entry.is_dir())):
        if exists(other.joinpath(*parts)):
            return f'{listed} is the file {other.joinpath(*parts)}: set data_prefix.img to {other}'
    for length in range(1, len(parts)):
        found = folder.joinpath(*parts[length:])
        if exists(found):
            prefix = name[: -len('/'.join(parts[length:]))]
            return f'{listed} is the file {found}: take {prefix!r} off each file_name'
    stem = Path(parts[-1]).stem if parts else ''
    if name != name.strip() and exists(folder / name.strip()):
        return f'{listed} begins or ends with a space, and the file {name.strip()!r} does not: correct each file_name'
    alike = next((entry.name for entry in entries if Path(entry.name).stem == stem), None)
    return alike and f'{listed} is {alike} there, with another extension: correct each file_name'


def _why_missing(path: str) -> str:
    if is_folder(path):
        return 'is a folder'
    return 'is a link to nothing' if is_link(path) else 'does not exist'


def image_finding(kind: str, text: str, index: int, content: Mapping[str, Any], path: Path) -> Finding:
    return Finding(kind, f'{path} {text}', 'images', index, content['images'][index].get('id'))
