"""Which packed layer takes the place of a plain one."""

from typing import Any

from torch import Tensor, nn

from .convolutions import FusedConv, FusedLinear, FusedPointwiseConv, FusedTransposedConv
from .winograd import WinogradConv, suits


def fused_conv(
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    relu: bool = False,
) -> FusedConv:
    """Return the fastest form of a convolution; the arguments are those of :class:`FusedConv`."""
    if weight.shape[2:] == (1, 1) and (stride, padding, groups) == (1, 0, 1):
        return FusedPointwiseConv(weight, bias, relu)
    if suits(weight, stride, padding, groups):
        return WinogradConv(weight, bias, relu)
    return FusedConv(weight, bias, stride, padding, groups, relu)


def pack_layers(module: nn.Module) -> None:
    """Replace the plain convolutions and linear layers among a module's descendants by packed ones, in place.

    A convolution of mmcv's ``ConvModule`` takes over the ReLU that follows it.
    """
    for name, child in module.named_children():
        packed = _packed(child)
        if packed is None:
            pack_layers(child)
            continue
        setattr(module, name, packed)
        if isinstance(packed, FusedConv) and _only_a_relu_follows(module):
            packed.relu = True
            module.with_activation = False  # type: ignore[assignment]  # nn.Module's annotations know no flags


def _packed(layer: nn.Module) -> nn.Module | None:
    """Return the packed form of a layer, None where it has none: subclasses may compute something else."""
    kind = type(layer)  # mmcv's wrappers for empty batches have the names of what they wrap
    if isinstance(layer, nn.Linear) and kind.__name__ == 'Linear':
        return FusedLinear(layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d) and kind.__name__ == 'Conv2d' and _is_simple(layer):
        return fused_conv(layer.weight, layer.bias, layer.stride[0], int(layer.padding[0]), layer.groups)
    if isinstance(layer, nn.ConvTranspose2d) and kind.__name__ == 'ConvTranspose2d' and _is_simple(layer):
        return FusedTransposedConv(layer.weight, layer.bias, layer.stride[0], int(layer.padding[0]))
    return None


def _only_a_relu_follows(module: Any) -> bool:
    """Return whether a module is a ``ConvModule`` whose convolution has a ReLU after it and no norm."""
    return (
        type(module).__name__ == 'ConvModule'
        and module.with_activation
        and type(module.activate) is nn.ReLU
        and not module.with_norm
        and module.order.index('conv') < module.order.index('act')
    )


def _is_simple(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    padding, stride = conv.padding, conv.stride
    return (
        conv.dilation == (1, 1)
        and not isinstance(padding, str)
        and len(set(padding)) == len(set(stride)) == 1
        and conv.padding_mode == 'zeros'
        and (not conv.transposed or (conv.groups == 1 and set(conv.output_padding) == {0}))
        and not conv._forward_hooks
        and not conv._forward_pre_hooks
    )
