"""Which checkpoint a run resumes from, and whether it holds what resuming needs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from ..checkpoint import check_checkpoint
from ..common.errors import UsageError
from ..configuration.cfg_options import pasteable
from ..data.checking.files import is_local
from .hooks.safe_checkpoint import INTERRUPTED, POINTER

TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')  # mmengine's own


@dataclass(frozen=True)
class CheckpointPlace:
    """Where the runs of a config keep their checkpoints.

    Args:
        work_dir: The work dir, with the pointer to the last checkpoint.
        folder: The folder of the checkpoints; None if it is on remote storage.
        template: Their names, with ``{}`` for the number of the epoch or iteration.
    """

    work_dir: Path
    folder: Path | None
    template: str = TEMPLATES[0]


def place_of(config: Config) -> CheckpointPlace:
    """Return where the runs of a config keep their checkpoints, by the rules of mmengine's ``CheckpointHook``.

    Raises:
        UsageError: If there is no such storage.
    """
    work_dir = Path(config.work_dir).absolute()
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    template = hook.get('filename_tmpl') or TEMPLATES[0]
    out_dir = hook.get('out_dir')
    if out_dir is None or str(out_dir) == str(work_dir):
        return CheckpointPlace(work_dir, work_dir, template)
    folder = Path(out_dir).absolute() / work_dir.name
    return CheckpointPlace(work_dir, folder if is_local(str(out_dir), hook.get('backend_args')) else None, template)


def last_checkpoint(work_dir: Path, folder: Path | None = None) -> Path | None:
    """Return the newest checkpoint that the runs in ``work_dir`` finished writing, or None.

    A work dir may have been moved: a file of that name in ``folder`` or ``work_dir`` is preferred to the path under
    which it was written.
    """
    written = Path(last_written(work_dir))
    candidates = [each / written.name for each in (folder, work_dir) if each is not None]
    return next((path for path in (*candidates, written) if path.is_file()), None)


def last_written(work_dir: Path) -> str:
    """Return the path or address under which the newest checkpoint was written; empty if there is none."""
    pointer = work_dir / POINTER
    return pointer.read_text(encoding='utf-8', errors='replace').strip('\0\n ') if pointer.is_file() else ''


def checkpoints_of(place: CheckpointPlace) -> Iterator[Path]:
    """Yield the checkpoints of a place: the last one, then the others from new to old."""
    last = last_checkpoint(place.work_dir, place.folder)
    if last is not None:
        yield last
    own = '|'.join(re.escape(template).replace(r'\{\}', r'\d+') for template in (place.template, *TEMPLATES))
    folders = {place.work_dir, place.folder or place.work_dir}
    named = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    others = [path for path in named if re.fullmatch(f'{own}|{re.escape(INTERRUPTED)}', path.name) and path != last]
    yield from sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_resumable(place: CheckpointPlace, model: nn.Module) -> tuple[Path, Any]:
    """Return the newest checkpoint that can be resumed, and its content; log which were skipped and why.

    Raises:
        UsageError: If there is none; the message is about the newest.
    """
    refusals: list[UsageError] = []
    for path in checkpoints_of(place):
        try:
            content = check_checkpoint(model, path)
            check_resumable(content, path)
        except UsageError as error:
            refusals.append(error)
            continue
        for refusal in refusals:
            print_log(f'{refusal}; going back to the checkpoint before it, {path}', 'current', 30)
        return path, content
    if refusals:
        raise refusals[0]
    if place.folder is None and (written := last_written(place.work_dir)):
        raise UsageError(
            f'the last checkpoint is on remote storage, {written}: copy it to this machine and name it with --resume'
        )
    raise UsageError(f'nothing to resume: {place.work_dir} holds no checkpoint; train without --resume first')


def check_resumable(content: Any, path: str | Path) -> None:
    """Check that a checkpoint holds the state of a run beside its weights.

    Raises:
        UsageError: If it does not, as published files.
    """
    lacking = [key for key in ('meta', 'message_hub') if key not in content]
    if lacking or not isinstance(content['meta'], Mapping) or not {'epoch', 'iter'} <= set(content['meta']):
        raise UsageError(
            f'{path} holds weights but no state of a training run ({", ".join(lacking) or "meta without epoch"} '
            f'missing), so that nothing can be resumed: start from it with {pasteable(dict(load_from=str(path)))}'
        )
    numbers = {name: content['meta'].get(name, 0) for name in ('epoch', 'iter', 'batch')}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 0:
            raise UsageError(f'{path} cannot be resumed: its {name} is {value!r}')


def take_seed(config: Config, seed: int | None, path: Path) -> None:
    """Give a resumed run the seed of the run that it continues.

    Raises:
        UsageError: If the config or ``--seed`` names another one.
    """
    given = (config.get('randomness') or {}).get('seed')
    if seed is not None and given not in (None, seed):
        raise UsageError(
            f'{path} is from a run with seed {seed}, but the seed given is {given}: leave it out, '
            f'or start a new run from the weights with {pasteable(dict(load_from=str(path)))}'
        )
    config.randomness = dict(config.get('randomness') or {}, seed=seed)
