"""The start of a run: its folders and its runner, or one sentence and nothing left behind."""

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..common.errors import RunError, UsageError
from ..common.output_paths import check_output_folder
from .runner import SHViTRunner

# What comes of settings that do not go together: of mmengine, of torch, and of the classes that a config names.
BUILDING_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    RuntimeError,
    OSError,
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def launch(config: Config, launcher: str) -> list[str]:
    """Let a config start as this process was started; return a line for the log if the config has it otherwise."""
    named, config.launcher = config.get('launcher', 'none'), launcher
    if (named == 'none') == (launcher == 'none'):
        return []
    return [f'launcher: {launcher} in place of {named}, since that is how this process was started']


@contextmanager
def runner_of(config: Config, checkpoints: Path | None = None) -> Iterator[SHViTRunner]:
    """Build the runner of a config for one run.

    A run that is refused before its first step leaves no folder that it made.

    Args:
        config: The config, with a ``work_dir``.
        checkpoints: The folder that checkpoints go to, or None where none are written.

    Raises:
        UsageError: If a folder cannot be written, or settings of the config do not go together.
    """
    work_dir = Path(config.work_dir).absolute()
    folders = [work_dir] if checkpoints in (None, work_dir) else [work_dir, checkpoints]
    new = [each for folder in folders for each in (folder, *folder.parents) if not each.exists()]
    runner = None
    try:
        check_output_folder(work_dir, 'the work dir', '--work-dir')
        if checkpoints not in (None, work_dir):
            check_output_folder(checkpoints, 'the folder of checkpoints', 'default_hooks.checkpoint.out_dir')
        runner = SHViTRunner.from_cfg(config)
        yield runner
    except BUILDING_ERRORS as error:
        if (runner is not None and runner.has_begun) or getattr(error, 'errno', None) in NO_ROOM:
            raise
        if is_main_process():
            remove(folders, new)
        if isinstance(error, UsageError | RunError):
            raise
        reason = ' '.join(str(error).split())
        raise UsageError(f'no run can be built of this config: {type(error).__name__}: {reason}') from error


def remove(folders: Sequence[Path], new: Sequence[Path]) -> None:
    """Remove those of the folders that are new, and the new folders above them if nothing else is in them."""
    for folder in folders:
        if folder in new:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in new:
        with suppress(OSError):  # it is gone already, or somebody else uses it by now
            folder.rmdir()
