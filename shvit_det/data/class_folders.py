"""The check of a data set in ImageNet's layout before a run: a folder for each class, or a list with labels."""

from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UsageError

LAYOUT = "ImageNet's layout, train/CLASS/IMAGE.JPEG and val/CLASS/IMAGE.JPEG"


def class_folders(folder: Path, extensions: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the class folders in a folder of images, in the order of their labels.

    Raises:
        UsageError: If the folder does not exist, has no class folders, or these hold no image.
    """
    require_folder(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise UsageError(
            f'{folder} has no class folders: sort the images into {LAYOUT}, or list them with their labels in '
            f'meta/{folder.name}.txt'
        )
    endings = tuple(extensions)
    if not any(path.name.lower().endswith(endings) for name in names for path in (folder / name).rglob('*')):
        raise UsageError(f'the {len(names)} class folders in {folder} hold no image ({", ".join(sorted(endings))})')
    return tuple(names)


def require_folder(folder: Path) -> None:
    """Raise ``UsageError`` if the folder of the images does not exist."""
    if not folder.is_dir():
        raise UsageError(f'no image folder {folder}: name the folder of a data set in {LAYOUT} with --data-root DIR')


def check_listed(path: Path, folder: Path, num_classes: int) -> None:
    """Read a list of images, a name and a label on each line, and look at its labels and its first image.

    Raises:
        UsageError: If the list does not exist, is not such a list, or a label has no class.
    """
    if not path.is_file():
        raise UsageError(f'no image list {path}: correct ann_file of the dataset, or leave it out to use class folders')
    require_folder(folder)
    lines = [line.strip().rsplit(' ', 1) for line in path.read_text(encoding='utf-8').splitlines()]
    for number, line in enumerate(lines, start=1):
        if len(line) != 2 or not line[1].isdigit():
            raise UsageError(f'{path} is not a list of images with labels: line {number} is {" ".join(line)!r}')
        if int(line[1]) >= num_classes:
            raise UsageError(
                f'line {number} of {path} has label {line[1]}, but the head knows {num_classes} classes, '
                f'0 to {num_classes - 1}: set model.head.num_classes'
            )
    if not lines or not (folder / lines[0][0]).is_file():
        raise UsageError(f'the first image that {path} lists is not in {folder}' if lines else f'{path} lists no image')
