"""The calibration of layers that compute in 8-bit integers: what their inputs lie between, on a few batches."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UsageError
from .backends.backend_choice import InputRange
from .backends.deployed_layer import WeightedLayer


def check_quantisable(model: nn.Module) -> None:
    """Raise ``UsageError`` unless a model is a detector in float32 on a CPU."""
    weight = next(model.parameters())
    if not hasattr(model, 'test_step') or weight.dtype is not torch.float32 or weight.device.type != 'cpu':
        raise UsageError(
            f"dtype='int8' is for detectors in float32 on a CPU, not for a {type(model).__name__} in {weight.dtype} "
            f'on {weight.device}: deploy that without it'
        )


def calibrate(detector: Any, batches: Iterable[Any]) -> list[str]:
    """Run a deployed detector on batches and give its layers the ranges of their inputs; return who saw no input.

    The range of a layer is from the smallest to the largest input. A layer that saw none computes in float32.
    """
    layers = [(name, part) for name, part in detector.named_modules() if _is_quantised(part)]
    ends: dict[str, Tensor] = {}

    def see(name: str, layer: Any, inputs: tuple[Tensor]) -> None:
        seen = torch.stack(layer.signal(inputs[0]).aminmax())
        known = ends.get(name, torch.zeros(2))
        ends[name] = torch.stack((torch.minimum(known[0], seen[0]), torch.maximum(known[1], seen[1])))

    hooks = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in layers]
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                detector.test_step(batch)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise UsageError('calibration has no batch: give some, such as those of a data loader, as test_step takes them')
    for name, layer in layers:
        if name in ends:
            if not ends[name].isfinite().all():
                raise UsageError(f'calibration: the input of {name} is not finite: check the weights and the images')
            layer.input_range = InputRange(*ends[name].tolist())
            layer.drop_constants()
    return [name for name, _ in layers if name not in ends]


def _is_quantised(part: nn.Module) -> bool:
    return isinstance(part, WeightedLayer) and part.supports_int8()
