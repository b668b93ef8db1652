"""Which checkpoint a run resumes from, and whether it holds what resuming needs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from ..checkpoint import check_checkpoint, find_checkpoint
from ..common.errors import UsageError
from ..configuration.cfg_options import pasteable
from ..data.checking.image_presence import is_local
from .hooks.safe_checkpoint import INTERRUPTED, POINTER
from .scores import last_run, run_of

AUTO = 'auto'  # as the argument of --resume: the last checkpoint
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')  # mmengine's own


@dataclass(frozen=True)
class CheckpointLocation:
    """Where the runs of a config keep their checkpoints."""

    work_dir: Path  # with the pointer to the last checkpoint
    folder: Path | None  # of the checkpoints; None if it is on remote storage
    template: str = TEMPLATES[0]  # of their names, with {} for the number of the epoch or iteration


def checkpoint_location(config: Config) -> CheckpointLocation:
    """Return where the runs of a config keep their checkpoints, by the rules of mmengine's ``CheckpointHook``.

    Raises:
        UsageError: If there is no such storage.
    """
    work_dir = Path(config.work_dir).absolute()
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    template = hook.get('filename_tmpl') or TEMPLATES[0]
    out_dir = hook.get('out_dir')
    if out_dir is None or str(out_dir) == str(work_dir):
        return CheckpointLocation(work_dir, work_dir, template)
    folder = Path(out_dir).absolute() / work_dir.name
    return CheckpointLocation(work_dir, folder if is_local(str(out_dir), hook.get('backend_args')) else None, template)


def last_checkpoint(work_dir: Path, folder: Path | None = None) -> Path | None:
    """Return the newest checkpoint that the runs in ``work_dir`` finished writing, if it is on this machine, or None.

    A work dir may have been moved: a file of that name in ``folder`` or ``work_dir`` is preferred to the path under
    which it was written.
    """
    written = Path(recorded_path(work_dir))
    candidates = [each / written.name for each in (folder, work_dir) if each is not None]
    return next((path for path in (*candidates, written) if path.is_file()), None)


def recorded_path(work_dir: Path) -> str:
    """Return the path or address of the newest checkpoint that the work dir records; empty if it records none.

    The file need not be there: the work dir may have been moved, or the checkpoint be on remote storage.
    """
    pointer = work_dir / POINTER
    return pointer.read_text(encoding='utf-8', errors='replace').strip('\0\n ') if pointer.is_file() else ''


def checkpoints_of(location: CheckpointLocation) -> Iterator[Path]:
    """Yield the checkpoints in the work dir and in the folder: the last one, then the others from new to old."""
    last = last_checkpoint(location.work_dir, location.folder)
    if last is not None:
        yield last
    own = '|'.join(re.escape(template).replace(r'\{\}', r'\d+') for template in (location.template, *TEMPLATES))
    folders = {location.work_dir, location.folder or location.work_dir}
    named = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    others = [path for path in named if re.fullmatch(f'{own}|{re.escape(INTERRUPTED)}', path.name) and path != last]
    yield from sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def checkpoint_to_resume(
    config: Config, location: CheckpointLocation, model: nn.Module, resume: str | None
) -> tuple[Path, Any] | None:
    """Return the checkpoint that a run resumes from and its checked content, or None if the run does not resume.

    The argument of ``--resume`` decides: a path, or ``'auto'`` for the newest one. Without it, ``resume=True`` of the
    config names the checkpoint of ``load_from``, or the newest one if there is any.
    """
    if not resume and config.get('resume'):
        resume = config.get('load_from') or AUTO
        if resume == AUTO and not recorded_path(location.work_dir) and not any(checkpoints_of(location)):
            return None
    if not resume:
        return None
    if resume == AUTO:
        return newest_resumable(location, model)
    path, content = find_checkpoint(resume), check_checkpoint(model, resume)
    check_resumable(content, path)
    return path, content


def newest_resumable(location: CheckpointLocation, model: nn.Module) -> tuple[Path, Any]:
    """Return the newest checkpoint that can be resumed, and its content; log which were skipped and why.

    Those of an earlier run in the same work dir are not for the one that began last.

    Raises:
        UsageError: If there is none; the message is about the newest.
    """
    refusals: list[UsageError] = []
    last = last_run(location.work_dir)
    for path in checkpoints_of(location):
        try:
            content = check_checkpoint(model, path)
            check_resumable(content, path)
            if last is not None and run_of(content) != last:
                raise UsageError(
                    f'{path} is of an earlier run than the last one in {location.work_dir}, {last}, which wrote no '
                    f'checkpoint: go on with the earlier one by --resume {path}, or start anew without --resume'
                )
        except UsageError as error:
            refusals.append(error)
            continue
        for refusal in refusals:
            print_log(f'{refusal}; going back to the checkpoint before it, {path}', 'current', 30)
        return path, content
    if refusals:
        raise refusals[0]
    if location.folder is None and (written := recorded_path(location.work_dir)):
        raise UsageError(
            f'the last checkpoint is on remote storage, {written}: copy it to this machine and name it with --resume'
        )
    raise UsageError(f'nothing to resume: {location.work_dir} holds no checkpoint; train without --resume first')


def check_resumable(content: Any, path: str | Path) -> None:
    """Raise ``UsageError`` if a checkpoint holds only weights, as published files do, and no state of a run."""
    lacking = [key for key in ('meta', 'message_hub') if key not in content]
    if lacking or not isinstance(content['meta'], Mapping) or not {'epoch', 'iter'} <= set(content['meta']):
        raise UsageError(
            f'{path} holds weights but no state of a training run ({", ".join(lacking) or "meta without epoch"} '
            f'missing), so that nothing can be resumed: start from it with {pasteable(dict(load_from=str(path)))}'
        )
    for name in ('epoch', 'iter', 'batch'):
        value = content['meta'].get(name, 0)
        if not isinstance(value, int) or value < 0:
            raise UsageError(f'{path} cannot be resumed: its {name} is {value!r}')


def take_seed(config: Config, seed: int | None, path: Path) -> None:
    """Give a resumed run the seed of the run that it continues; the config and ``--seed`` must name no other one."""
    settings = config.get('randomness') or {}
    check_seed(settings.get('seed'), seed, path)
    config.randomness = dict(settings, seed=seed)


def check_seed(given: int | None, seed: int | None, path: str | Path) -> None:
    """Raise ``UsageError`` if a config gives another seed than that of the run that is resumed."""
    if seed is not None and given not in (None, seed):
        raise UsageError(
            f'{path} is from a run with seed {seed}, but the seed given is {given}: leave it out, '
            f'or start a new run from the weights with {pasteable(dict(load_from=str(path)))}'
        )
