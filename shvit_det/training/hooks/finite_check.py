"""The end of a run whose numbers are none any more, before they reach the weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from ...common.errors import RunError
from ...registry import HOOKS, register

NUM_NAMED = 3
# A loss scale is halved at each overflow. Below this one the gradients of float16 vanish; a fixed one gets no smaller.
# What is left out from there on is no overflow.
SMALLEST_SCALE = 1e-4
MOST_LEFT_OUT = 100  # steps in a row


def image_names(batch: Any) -> list[str]:
    """Return the paths of the images of a batch as the loader gave it; empty where it does not say."""
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    names = (getattr(sample, 'img_path', None) for sample in samples or ())
    return [str(name) for name in names if name]


def all_finite(losses: Mapping[str, Tensor], gradients: list[Tensor]) -> bool:
    """Tell whether losses and gradients hold no NaN and no infinity, with one question to the device.

    A sum is not finite if one of its terms is not. The sums can also overflow, which is no better.
    """
    total = torch.zeros(())
    if gradients:
        total = torch.nn.utils.get_total_norm(gradients).detach()
    for loss in losses.values():
        total = total.to(loss.device) + loss.float()
    return bool(total.isfinite())


def is_left_out(optimizer: Optimizer) -> bool:
    """Tell whether a fused optimizer leaves the step out that it is about to make, as torch's GradScaler told it.

    Of other optimizers the scaler itself leaves steps out, and does not call them.
    """
    found_inf = getattr(optimizer, 'found_inf', None)
    return found_inf is not None and bool(found_inf)


@register(HOOKS)
class FiniteCheckHook(Hook):
    """Stop before the step of the optimizer that a loss or gradient would spoil. Part of our runner.

    The error names the iteration, the images of the batch and the loss terms. Losses and gradients are looked at
    together, inside the optimizer's step: on a GPU this waits for the device once a step, as the norm of clipped
    gradients and the samplers of two-stage detectors do anyway. Under a loss scale the scaler finds infinite gradients
    first and leaves the step out, which is part of its work until the scale can get no smaller; then, and in steps that
    only gather gradients, the losses alone are looked at.

    Raises:
        RunError: At the step where it happens.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._checked = False
        self._num_left_out = 0
        self._names: dict[int, str] = {}
        self._runner: Runner | None = None
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._runner = runner
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._note_losses_of(model)
        wrapper = runner.optim_wrapper
        wrappers: Iterable[OptimWrapper] = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            each.optimizer.register_step_pre_hook(self._before_step)

    def _note_losses_of(self, model: nn.Module) -> None:
        parse: Any = model.parse_losses

        def parse_and_note(losses: dict) -> tuple[Tensor, dict[str, Tensor]]:
            total, terms = parse(losses)
            self._losses = {name: value.detach() for name, value in terms.items() if 'loss' in name}
            return total, terms

        model.parse_losses = parse_and_note  # type: ignore[assignment]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None) -> None:
        self._batch, self._checked = data_batch, False

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        if all_finite(self._losses, gradients):
            self._checked = True
        elif not is_left_out(optimizer):
            raise RunError(self._sentence(f'the gradient of {self._bad_parameters(optimizer)}'))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: dict | None = None
    ) -> None:
        if self._checked:
            self._num_left_out = 0
        elif not all_finite(self._losses, []):
            raise RunError(self._sentence('the losses'))
        elif isinstance(runner.optim_wrapper, AmpOptimWrapper) and runner.optim_wrapper.should_update():
            self._num_left_out += 1
            scale = runner.optim_wrapper.loss_scaler.get_scale()
            if scale < SMALLEST_SCALE or self._num_left_out == MOST_LEFT_OUT:
                left_out = f'{self._num_left_out} steps in a row' if self._num_left_out > 1 else 'the step'
                raise RunError(
                    self._sentence(f'the gradients even at a loss scale of {scale:.2g}, {left_out} left out')
                )

    def _sentence(self, not_finite: str) -> str:
        assert self._runner is not None
        rank, world_size = get_dist_info()
        where = f'iteration {self._runner.iter + 1}' + (f', process {rank}' if world_size > 1 else '')
        losses = ', '.join(f'{name} {value.item():.4g}' for name, value in self._losses.items())
        bad = [name for name, value in self._losses.items() if not value.isfinite() and name != 'loss']
        if bad:
            what = f'the loss is not finite: {", ".join(bad)}'
        else:
            what = f'the losses are finite, but not {not_finite}'
            if world_size > 1:
                what += ' (another process may name a loss)'
        images = ', '.join(image_names(self._batch)) or 'not named by the data set'
        return f'{where}: {what} (terms: {losses}; images: {images}); the weights were not changed by this step'

    def _bad_parameters(self, optimizer: Optimizer) -> str:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        bad = [self._names.get(id(p), '?') for p in parameters if p.grad is not None and not p.grad.isfinite().all()]
        more = f' and {len(bad) - NUM_NAMED} more' if len(bad) > NUM_NAMED else ''
        return (', '.join(bad[:NUM_NAMED]) or 'all of them together') + more
