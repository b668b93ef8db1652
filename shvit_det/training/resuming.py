"""What a run goes on from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint import check_checkpoint
from ..common.errors import UsageError
from ..configuration.cfg_options import pasteable
from ..data.checking.image_checks import is_local
from .hooks.safe_checkpoint import INTERRUPTED, POINTER

TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')  # mmengine's own
MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')  # these have the shape of their parameter


@dataclass(frozen=True)
class Place:
    """Where the runs of a config keep their checkpoints.

    Args:
        work_dir: The work dir, with the pointer to the last checkpoint.
        folder: The folder of the checkpoints; None if it is on remote storage.
        template: Their names, with ``{}`` for the number of the epoch or iteration.
    """

    work_dir: Path
    folder: Path | None
    template: str = TEMPLATES[0]


def place_of(config: Config) -> Place:
    """Return where the runs of a config keep their checkpoints, as mmengine's ``CheckpointHook`` works it out.

    Raises:
        UsageError: If there is no such storage.
    """
    work_dir = Path(config.work_dir).absolute()
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    template = hook.get('filename_tmpl') or TEMPLATES[0]
    out_dir = hook.get('out_dir')
    if out_dir is None or str(out_dir) == str(work_dir):
        return Place(work_dir, work_dir, template)
    folder = Path(out_dir).absolute() / work_dir.name
    return Place(work_dir, folder if is_local(str(out_dir), hook.get('backend_args')) else None, template)


def last_checkpoint(work_dir: Path, folder: Path | None = None) -> Path | None:
    """Return the newest checkpoint that the runs in ``work_dir`` finished writing, or None.

    A folder may have moved with its checkpoints: one of that name in ``folder`` or ``work_dir`` comes before the place
    where it was written.
    """
    written = Path(written_last(work_dir))
    candidates = [each / written.name for each in (folder, work_dir) if each is not None]
    return next((path for path in (*candidates, written) if path.is_file()), None)


def written_last(work_dir: Path) -> str:
    """Return the path or address under which the newest checkpoint was written; empty if there is none."""
    pointer = work_dir / POINTER
    return pointer.read_text(encoding='utf-8', errors='replace').strip('\0\n ') if pointer.is_file() else ''


def checkpoints_of(place: Place) -> Iterator[Path]:
    """Yield the checkpoints of a place: the last one, then the others from new to old."""
    last = last_checkpoint(place.work_dir, place.folder)
    if last is not None:
        yield last
    own = '|'.join(re.escape(template).replace(r'\{\}', r'\d+') for template in (place.template, *TEMPLATES))
    folders = {place.work_dir, place.folder or place.work_dir}
    named = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    others = [path for path in named if re.fullmatch(f'{own}|{re.escape(INTERRUPTED)}', path.name) and path != last]
    yield from sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_whole(place: Place, model: nn.Module) -> tuple[Path, Any]:
    """Return the newest checkpoint of a place that can be resumed, and what it holds; log what was passed over.

    Raises:
        UsageError: If there is none; it is about the newest.
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
    if place.folder is None and (written := written_last(place.work_dir)):
        raise UsageError(
            f'the last checkpoint is on remote storage, {written}: copy it to this machine and name it with --resume'
        )
    raise UsageError(f'nothing to resume: {place.work_dir} holds no checkpoint; train without --resume first')


def check_resumable(content: Any, path: str | Path) -> None:
    """Look for what a run needs to go on, beside its weights.

    Raises:
        UsageError: If the file holds less, as published ones do.
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


def check_optimizer(saved: Any, optimizer: Optimizer, path: str | Path) -> None:
    """Compare the saved state of an optimizer with the parameters that it would be used for.

    Raises:
        UsageError: If it belongs to other parameters, or holds NaN or infinity.
    """
    try:
        saved_groups, own_groups = [group['params'] for group in saved['param_groups']], optimizer.param_groups
        lengths = [len(group) for group in saved_groups], [len(group['params']) for group in own_groups]
        states = {key: dict(saved['state'].get(key, {})) for group in saved_groups for key in group}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f'{path} cannot be resumed: what it holds as optimizer is none ({error!r})') from error
    if lengths[0] != lengths[1]:
        raise UsageError(
            f'{path} cannot be resumed: its optimizer has {sum(lengths[0])} parameters in {len(lengths[0])} groups, '
            f'this one has {sum(lengths[1])} in {len(lengths[1])}: resume with the config of that run'
        )
    own = [parameter for group in own_groups for parameter in group['params']]
    for parameter, key in zip(own, (key for group in saved_groups for key in group), strict=True):
        for name, value in states[key].items():
            wrong = None
            if name in MOMENTS and (not isinstance(value, Tensor) or value.shape != parameter.shape):
                wrong = f'has another shape than its parameter, {tuple(parameter.shape)}'
            elif isinstance(value, Tensor) and not torch.isfinite(value).all():
                wrong = 'holds NaN or infinity'
            if wrong:
                raise UsageError(f'{path} cannot be resumed: {name} in its optimizer {wrong}')
