"""What a module makes of feature maps of given sizes, learned by calling a copy of it on tensors without values.

Tensors of the device ``meta`` have shapes and no values: a call costs milliseconds at any size, and the module itself
keeps its weights, statistics, hooks and modes. Where the copy cannot be called in this way, because it wants other
inputs or looks at values, nothing is known of the module.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

IMAGE_SIZE = 512 * 13  # a multiple of the strides of levels, but not of the sizes of maps that lost a border
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Level(NamedTuple):
    """The size of a feature map of an image of ``IMAGE_SIZE``."""

    channels: int
    height: int
    width: int


@dataclass
class Trial:
    """What came of calling a copy of a module.

    Attributes:
        outputs: What it returned, or None where it failed.
        failed: Whether it raised an exception.
        misfit: The layer in which it failed because of the number of channels: the layer's name, the channels that it
            takes and those that it was given.
    """

    outputs: Any = None
    failed: bool = False
    misfit: tuple[str, int, int] | None = None


def try_on(module: nn.Module, maps: Level | Sequence[Level], *others: Any, method: str = '__call__') -> Trial:
    """Call a copy of a module on a feature map or a tuple of feature maps of these sizes.

    Args:
        module: Any module, on any device.
        maps: The size or the sizes.
        others: Further arguments of the call.
        method: What is called.
    """
    trial = Trial()
    try:
        copied = copy_without_values(module)
        watch_channels(copied, trial)
        with torch.no_grad(), torch.device('meta'):
            inputs = (
                torch.empty(1, *maps) if isinstance(maps, Level) else tuple(torch.empty(1, *level) for level in maps)
            )
            trial.outputs = getattr(copied, method)(inputs, *others)
    except Exception:  # whatever the code of others raises here, it only means that nothing is known of it
        trial.failed = True
    return trial


def as_levels(outputs: Any) -> list[Level] | None:
    """Return the sizes of a list of feature maps, or None where it is something else."""
    if not isinstance(outputs, (list, tuple)) or not outputs:
        return None
    if not all(isinstance(output, Tensor) and output.dim() == 4 for output in outputs):
        return None
    return [Level(*output.shape[1:]) for output in outputs]


def copy_without_values(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode, without hooks, whose parameters and buffers are on the device ``meta``.

    ``copy.deepcopy`` takes them from its memo, so that no value is copied.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device='meta'), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device='meta')
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()
        if is_deformable(part):  # whose kernels know no device without values
            part.forward = partial(convolve, part)  # type: ignore[method-assign]
    return copied.eval()


def is_deformable(layer: nn.Module) -> bool:
    """Return whether a layer is one of mmcv's deformable convolutions."""
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    return isinstance(layer, (DeformConv2d, ModulatedDeformConv2d)) and type(layer).__module__.startswith('mmcv.')


def convolve(layer: Any, x: Tensor, *_: Tensor) -> Tensor:
    """Return what a deformable convolution does but for its offsets: a map of the same size."""
    return conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def watch_channels(module: nn.Module, trial: Trial) -> None:
    """Let the layers of a module note in ``trial`` when they fail on other channels than they take."""
    for name, layer in module.named_modules():
        if isinstance(layer, CONVOLUTIONS) or is_deformable(layer):
            watch_layer(layer, name, layer.in_channels, 1, trial)
        elif isinstance(layer, nn.Linear):
            watch_layer(layer, name, layer.in_features, -1, trial)


def watch_layer(layer: nn.Module, name: str, takes: int, dim: int, trial: Trial) -> None:
    """Let a layer note that it was given other channels in ``dim``, and forget it if it returns all the same."""

    def enter(_: nn.Module, inputs: tuple) -> None:
        if inputs and inputs[0].shape[dim] != takes:
            trial.misfit = (name, takes, inputs[0].shape[dim])

    def leave(*_: Any) -> None:
        trial.misfit = None

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
