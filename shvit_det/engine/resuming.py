"""What a run goes on from."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint import check_checkpoint
from ..errors import UsageError
from .checkpoint_hook import INTERRUPTED, POINTER
from .options import pasteable

MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer')  # these have the shape of their parameter


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest checkpoint that the runs in ``work_dir`` finished writing, or None."""
    pointer = work_dir / POINTER
    if not pointer.is_file():
        return None
    name = Path(pointer.read_text(errors='replace').strip('\0\n ')).name  # the folder may have moved since
    path = work_dir / name
    return path if name and path.is_file() else None


def checkpoints_of(work_dir: Path) -> Iterator[Path]:
    """Yield the checkpoints in a work dir: the last one, then the others from new to old."""
    last = last_checkpoint(work_dir)
    if last is not None:
        yield last
    named = (path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name))
    others = [path for path in (*named, work_dir / INTERRUPTED) if path.is_file() and path != last]
    yield from sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_whole(work_dir: Path, model: nn.Module) -> tuple[Path, Any]:
    """Return the newest checkpoint in a work dir that can be resumed, and what it holds; log what was passed over.

    Raises:
        UsageError: If there is none; it is about the newest.
    """
    refusals: list[UsageError] = []
    for path in checkpoints_of(work_dir):
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
    raise UsageError(f'nothing to resume: {work_dir} holds no checkpoint; train without --resume first')


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
