"""NaN and infinity in losses or gradients: the run ends before they reach the weights."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...checkpoint.loading import without_wrapper
from ...common.errors import RunError
from ...registry import HOOKS, register

NUM_NAMED = 3
# A loss scale is halved at each overflow, unless it is fixed. Below the smallest useful scale, or after this many
# skipped steps in a row, infinite gradients are no overflow but an error.
SMALLEST_SCALE = 1e-4
MAX_SKIPPED = 100


def image_names(batch: Any) -> list[str]:
    """Return the paths of the images of a loader's batch; empty if the data set gives none."""
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    names = (getattr(sample, 'img_path', None) for sample in samples or ())
    return [str(name) for name in names if name]


def all_finite(terms: dict[str, Tensor], gradients: list[Tensor]) -> bool:
    """Return whether losses and gradients hold no NaN and no infinity, and move the terms to the CPU.

    All values come from the device in one copy, so that it is waited for once, and whoever logs a term does not wait
    again. A sum is not finite if one of its terms is not. A sum that overflows counts as not finite too. Terms are
    losses, whose names have ``loss`` in them, and other values that are logged.
    """
    scalars = {name: value for name, value in terms.items() if isinstance(value, Tensor) and value.numel() == 1}
    norms = [torch.nn.utils.get_total_norm(gradients)] if gradients else []
    waiting = [value.detach().reshape(()).float() for value in (*norms, *scalars.values())]
    if not waiting:
        return True
    values = torch.stack([value.to(waiting[0].device) for value in waiting]).cpu()
    terms.update(zip(scalars, values[len(norms) :], strict=True))
    counted = [True] * len(norms) + ['loss' in name for name in scalars]
    return bool(values[torch.tensor(counted)].sum().isfinite())


@register(HOOKS)
class FiniteCheckHook(Hook):
    """End the run before an optimizer's step with a loss or a gradient that is not finite.

    The error names the iteration, the images of the batch and the loss terms. Losses and gradients are checked
    together, inside the optimizer's step; on a GPU this waits for the device once a step, as gradient clipping and the
    samplers of two-stage detectors do anyway. Under a loss scale, the scaler skips steps with infinite gradients. That
    is normal until the scale can get no smaller. After a skipped step, and after one that only accumulates gradients,
    the losses alone are checked.

    Raises:
        RunError: At the step where it happens.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        model: Any = without_wrapper(runner.model)
        self._runner = runner
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._terms: dict[str, Tensor] = {}
        self._num_skipped = 0
        parse = model.parse_losses

        def parse_and_record(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            total, self._terms = parse(losses)
            return total, self._terms

        model.parse_losses = parse_and_record
        wrapper = runner.optim_wrapper
        wrappers: Iterable[OptimWrapper] = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            each.optimizer.register_step_pre_hook(self._before_step)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None) -> None:
        self._batch, self._checked = data_batch, False

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        # by found_inf torch's GradScaler has a fused optimizer skip the step; others it does not call then
        if all_finite(self._terms, [p.grad for p in parameters]):
            self._checked = True
        elif not getattr(optimizer, 'found_inf', None):
            raise RunError(self._sentence(f'the gradient of {self._bad_parameters(parameters)}'))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: dict | None = None
    ) -> None:
        if self._checked:
            self._num_skipped = 0
        elif not all_finite(self._terms, []):
            raise RunError(self._sentence('the losses'))
        elif isinstance(runner.optim_wrapper, AmpOptimWrapper) and runner.optim_wrapper.should_update():
            self._num_skipped += 1
            scale = runner.optim_wrapper.loss_scaler.get_scale()
            if scale < SMALLEST_SCALE or self._num_skipped == MAX_SKIPPED:
                skipped = f'{self._num_skipped} steps in a row' if self._num_skipped > 1 else 'the step'
                raise RunError(self._sentence(f'the gradients even at a loss scale of {scale:.2g}, {skipped} left out'))

    def _sentence(self, not_finite: str) -> str:
        rank, world_size = get_dist_info()
        where = f'iteration {self._runner.iter + 1}' + (f', process {rank}' if world_size > 1 else '')
        values = {name: float(value) for name, value in self._terms.items() if 'loss' in name}
        losses = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
        bad = [name for name, value in values.items() if not math.isfinite(value) and name != 'loss']
        if bad:
            what = f'the loss is not finite: {", ".join(bad)}'
        else:
            what = f'the losses are finite, but not {not_finite}'
            if world_size > 1:
                what += ' (another process may name a loss)'
        images = ', '.join(image_names(self._batch)) or 'not named by the data set'
        return f'{where}: {what} (terms: {losses}; images: {images}); the weights were not changed by this step'

    def _bad_parameters(self, parameters: list[Any]) -> str:
        bad = [self._names.get(id(p), '?') for p in parameters if not p.grad.isfinite().all()]
        more = f' and {len(bad) - NUM_NAMED} more' if len(bad) > NUM_NAMED else ''
        return (', '.join(bad[:NUM_NAMED]) or 'all of them together') + more
