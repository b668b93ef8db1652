"""Runs parts of a detector on feature maps without values, and compares the arguments of the parts with the maps.

Tensors of the device ``meta`` have shapes and no values: a call costs milliseconds at any size, and the module itself
is not changed. Where a copy of it cannot be called in this way, because it takes other inputs or reads values, nothing
is known about the module.
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
LAYERS_WITH_IN_CHANNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class MapSize(NamedTuple):
    """The size of a feature map of an image of ``IMAGE_SIZE``."""

    channels: int
    height: int
    width: int


@dataclass
class Levels:
    """The feature maps that a part of a detector passes to the next: their sizes, and names for messages."""

    maps: list[MapSize]
    name: str
    channels_name: str

    @property
    def channels(self) -> list[int]:
        return [level.channels for level in self.maps]


@dataclass
class Trial:
    """The result of calling a copy of a module."""

    outputs: Any = None  # what it returned, or None where it failed
    failed: bool = False  # whether it raised an exception
    # the layer in which it failed because of the number of channels: the layer's name, the channels that it takes and
    # those that it was given
    misfit: tuple[str, int, int] | None = None


def try_on(module: nn.Module, maps: MapSize | Sequence[MapSize], *others: Any, method: str = '__call__') -> Trial:
    """Call a copy of a module on a feature map or a tuple of feature maps of these sizes, and ``others``."""
    trial = Trial()
    try:
        copied = copy_without_values(module)
        watch_channels(copied, trial)
        with torch.no_grad(), torch.device('meta'):
            inputs = (
                torch.empty(1, *maps) if isinstance(maps, MapSize) else tuple(torch.empty(1, *level) for level in maps)
            )
            trial.outputs = getattr(copied, method)(inputs, *others)
    except Exception:  # code of other projects may raise anything; the module cannot be checked then
        trial.failed = True
    return trial


def as_levels(outputs: Any) -> list[MapSize] | None:
    """Return the sizes of a list of feature maps, or None where it is something else."""
    if not isinstance(outputs, (list, tuple)) or not outputs:
        return None
    if not all(isinstance(output, Tensor) and output.dim() == 4 for output in outputs):
        return None
    return [MapSize(*output.shape[1:]) for output in outputs]


def compare_channels(part: Any, name: str, levels: Levels, trial: Trial) -> None:
    """Raise ``UsageError`` if a part failed in its trial because of the channels or the number of the levels.

    They are certain to be the cause in two cases: the part does not fail with the channels that its ``in_channels``
    states; or the layer that failed was given another number of channels than it takes. In other cases nothing is
    raised.
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
    name: str, stated: Sequence, maps_name: str, maps: Sequence[MapSize] | None, for_one_size: bool = False
) -> None:
    """Raise ``UsageError`` if strides that a part states are not those of the maps that it works on.

    Args:
        stated: A stride or the strides in x and y for each map.
        maps: The sizes of the maps; nothing is compared if they are None. A map whose stride is not an integer is not
            compared either.
        for_one_size: Whether the strides were computed for one image size that is no multiple of them (300 for SSD).
            Such a stride is image size / map size, which may be up to half below the stride of the layers, because the
            map size is rounded up.
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
    """Return strides as they are written in a config: one number where x and y have the same stride."""
    rounded = [tuple(int(x) if x == int(x) else round(x, 1) for x in pair) for pair in strides]
    return [pair if pair[0] != pair[1] else pair[0] for pair in rounded]


def stated_channels(part: Any) -> int | list[int]:
    """Return the ``in_channels`` of a part: one number for all inputs, one for each, or an empty list if unknown."""
    stated = getattr(part, 'in_channels', None)
    if stated is None and isinstance(getattr(part, 'convs', None), nn.ModuleList):  # mmdet's ChannelMapper
        stated = [getattr(conv, 'in_channels', None) for conv in part.convs]
    if isinstance(stated, int):
        return stated
    if isinstance(stated, (list, tuple)) and all(isinstance(channels, int) for channels in stated):
        return list(stated)
    return []


def with_channels(maps: Sequence[MapSize], channels: Sequence[int]) -> list[MapSize]:
    """Return maps with these channels, one for each number; maps beyond the given ones are coarser and coarser."""
    result = [level._replace(channels=number) for level, number in zip(maps, channels, strict=False)]
    for number in channels[len(result) :]:
        result.append(MapSize(number, result[-1].height // 2, result[-1].width // 2))
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
        if is_deformable(part):  # its operation does not run on the device meta
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
    """Make the layers of a module record in ``trial`` if they fail because they get another number of channels."""
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS_WITH_IN_CHANNELS) or is_deformable(layer):
            watch_layer(layer, name, layer.in_channels, 1, trial)
        elif isinstance(layer, nn.Linear):
            watch_layer(layer, name, layer.in_features, -1, trial)


def watch_layer(layer: nn.Module, name: str, takes: int, dim: int, trial: Trial) -> None:
    """Make a layer record that it was given another size in ``dim``; the record is removed if the layer returns."""

    def enter(_: nn.Module, inputs: tuple) -> None:
        if inputs and inputs[0].shape[dim] != takes:
            trial.misfit = (name, takes, inputs[0].shape[dim])

    def leave(*_: Any) -> None:
        trial.misfit = None

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
