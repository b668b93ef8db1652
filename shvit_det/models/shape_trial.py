"""Trying parts of a detector on feature maps without values, and comparing what the parts state with the maps.

Tensors of the device ``meta`` have shapes and no values: a call costs milliseconds at any size, and the module itself
keeps its weights, statistics, hooks and modes. Where a copy of it cannot be called in this way, because it wants other
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

from ..common.errors import UsageError

IMAGE_SIZE = 512 * 13  # a multiple of the strides of levels, but not of the sizes of maps that lost a border
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Level(NamedTuple):
    """The size of a feature map of an image of ``IMAGE_SIZE``."""

    channels: int
    height: int
    width: int


@dataclass
class Levels:
    """What a part of a detector hands to the next: the sizes, and words for it and for its channels."""

    maps: list[Level]
    name: str
    channels_name: str

    @property
    def channels(self) -> list[int]:
        return [level.channels for level in self.maps]


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
    """Call a copy of a module on a feature map or a tuple of feature maps of these sizes, and ``others``."""
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


def compare_channels(part: Any, name: str, levels: Levels, trial: Trial) -> None:
    """Raise ``UsageError`` if a part failed in its trial because of the channels or the number of the levels.

    That is certain where the part works with the levels that its ``in_channels`` state instead, or where the layer that
    failed was given other channels than it takes.
    """
    stated, given = stated_channels(part), levels.channels
    if isinstance(stated, int):
        wanted, shown, given = [stated] * len(given), [stated], sorted(set(given))
    else:
        wanted = shown = stated
    if shown and shown != given and not try_on(part, with_channels(levels.maps, wanted)).failed:
        raise UsageError(
            f'{name}.in_channels is {shown}, but {levels.channels_name} is {given}: make them equal in the config'
        )
    compare_layer(name, levels, trial)


def compare_layer(name: str, levels: Levels, trial: Trial) -> None:
    """Raise ``UsageError`` if a part failed in a layer that was given other channels than it takes."""
    if trial.misfit is not None:
        layer, takes, gets = trial.misfit
        raise UsageError(
            f'{".".join(filter(None, (name, layer)))} takes {takes} channels but would be given {gets}; '
            f'{levels.channels_name} is {levels.channels}: make them fit in the config'
        )


def compare_strides(
    name: str, stated: Sequence, maps_name: str, maps: Sequence[Level] | None, for_one_size: bool = False
) -> None:
    """Raise ``UsageError`` if strides that a part states are not those of the maps that it works on.

    Args:
        name: Of what is stated.
        stated: A stride or the strides in x and y for each map.
        maps_name: Of the strides of the maps.
        maps: Their sizes; None where they are not known, and then nothing is claimed. A map whose stride is not whole
            agrees with any.
        for_one_size: Whether the strides are those of one image size, which is no multiple of them, so that they may be
            down to half of what they are in general.
    """
    if maps is None:
        return
    wanted = [pair if isinstance(pair, tuple) else (pair, pair) for pair in stated]
    found = [(IMAGE_SIZE / level.width, IMAGE_SIZE / level.height) for level in maps]

    def agree(want: float, have: float) -> bool:
        return want == have or not have.is_integer() or (for_one_size and have / 2 < want < have)

    pairs = zip(wanted, found, strict=False)
    if len(wanted) != len(found) or not all(agree(*numbers) for pair in pairs for numbers in zip(*pair, strict=True)):
        raise UsageError(
            f'{name} is {as_written(wanted)}, but {maps_name} is {as_written(found)}: make them equal in the config'
        )


def as_written(strides: Sequence[tuple[float, float]]) -> list:
    """Return strides as they are written in a config, of one number where it is that of x and y."""
    rounded = [tuple(int(x) if x == int(x) else round(x, 1) for x in pair) for pair in strides]
    return [pair if pair[0] != pair[1] else pair[0] for pair in rounded]


def stated_channels(part: Any) -> int | list[int]:
    """Return the channels of its inputs that a part states, of each or of all alike, or an empty list."""
    stated = getattr(part, 'in_channels', None)
    if stated is None and isinstance(getattr(part, 'convs', None), nn.ModuleList):  # mmdet's ChannelMapper
        stated = [getattr(conv, 'in_channels', None) for conv in part.convs]
    if isinstance(stated, int):
        return stated
    if isinstance(stated, (list, tuple)) and all(isinstance(channels, int) for channels in stated):
        return list(stated)
    return []


def with_channels(maps: Sequence[Level], channels: Sequence[int]) -> list[Level]:
    """Return maps like these, but with other channels and as many of them; further ones are ever coarser."""
    result = [level._replace(channels=number) for level, number in zip(maps, channels, strict=False)]
    for number in channels[len(result) :]:
        result.append(Level(number, result[-1].height // 2, result[-1].width // 2))
    return result


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
    """Return a map of the size of a deformable convolution's result."""
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
