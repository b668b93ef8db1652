"""Which deployed layer replaces a plain one, in heads of libraries too."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Linear as WrappedLinear  # mmcv's linear layer, which also takes empty batches
from torch import Tensor, nn

from ..models.composition import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from ..models.unmodified import CALLED_METHODS, is_unmodified
from .backends.convolutions import FusedConv, FusedLinear, FusedPointwiseConv, FusedTransposedConv
from .backends.winograd import WinogradConv, supports_winograd

LINEARS = (nn.Linear, WrappedLinear)
LAYERS = CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS + LINEARS
# Modules of these packages only call their layers; others may take a weight out of them and compute with it.
LIBRARIES = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'timm', 'torch', 'torchvision')


def deployed_conv(conv: Any, relu: bool = False) -> FusedConv:
    """Return the deployed form of a convolution."""
    return conv_with_weights(conv, conv.weight, conv.bias, relu)


def conv_with_weights(conv: Any, weight: Tensor, bias: Tensor | None, relu: bool = False) -> FusedConv:
    """Return the fastest layer with the geometry and the data type of a convolution, and another weight and bias."""
    weight, bias = weight.to(conv.weight.dtype), None if bias is None else bias.to(conv.weight.dtype)
    stride, padding, groups = conv.stride[0], int(conv.padding[0]), conv.groups
    if weight.shape[2:] == (1, 1) and (stride, padding, groups) == (1, 0, 1):
        return FusedPointwiseConv(weight, bias, relu)
    if supports_winograd(weight, stride, padding, groups):
        return WinogradConv(weight, bias, relu)
    return FusedConv(weight, bias, stride, padding, groups, relu)


def replace_layers(module: nn.Module, done: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """Replace the plain convolutions and linear layers among a module's descendants by deployed ones, in place.

    A convolution of mmcv's ``ConvModule`` takes over the ReLU that follows it. The module is of a library, or one that
    only calls its children; modules in ``done`` are not entered. Return those with such layers that are left as they
    are, because they may compute something else.
    """
    left: list[nn.Module] = []
    for name, child in module.named_children():
        if child in done:
            continue
        replacement = deployed_form(child)
        if replacement is not None:
            setattr(module, name, replacement)
            if isinstance(replacement, FusedConv) and _only_a_relu_follows(module):
                replacement.relu = True
                module.with_activation = False  # type: ignore[assignment]  # nn.Module's annotations know no flags
        elif isinstance(child, LAYERS):
            if not (_is_of_a_library(child) and is_unmodified(child, type(child))):
                left.append(child)
        elif _is_of_a_library(child) and not any(name in vars(child) for name in CALLED_METHODS):
            if getattr(child, 'efficient_conv_bn_eval_forward', None) is not None:  # which takes the weight of a layer
                child.turn_on_efficient_conv_bn_eval(False)  # type: ignore[operator]
            left += replace_layers(child, done)
        elif any(isinstance(layer, LAYERS) for layer in child.modules()):
            left.append(child)
    return left


def _is_of_a_library(module: nn.Module) -> bool:
    return type(module).__module__.partition('.')[0] in LIBRARIES


def deployed_form(layer: Any) -> nn.Module | None:
    """Return the deployed form of a layer, None where it has none: subclasses and hooks may compute something else."""
    if is_unmodified(layer, *LINEARS):
        return FusedLinear(layer.weight, layer.bias)
    if is_unmodified(layer, *CONVOLUTIONS) and is_simple(layer):
        return deployed_conv(layer)
    if is_unmodified(layer, *TRANSPOSED_CONVOLUTIONS) and is_simple(layer):
        return FusedTransposedConv(layer.weight, layer.bias, layer.stride[0], int(layer.padding[0]))
    return None


def _only_a_relu_follows(module: Any) -> bool:
    """Return whether a module is a ``ConvModule`` whose convolution has a ReLU after it and no norm."""
    return (
        type(module) is ConvModule
        and module.with_activation
        and is_unmodified(module.activate, nn.ReLU)
        and not module.with_norm
        and module.order.index('conv') < module.order.index('act')
    )


def is_simple(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a convolution has zero padding, no dilation and the same geometry along both axes."""
    padding, stride = conv.padding, conv.stride
    return (
        conv.dilation == (1, 1)
        and not isinstance(padding, str)
        and len(set(padding)) == len(set(stride)) == 1
        and conv.padding_mode == 'zeros'
        and (not conv.transposed or (conv.groups == 1 and set(conv.output_padding) == {0}))
    )


def replaces_methods(module: nn.Module) -> bool:
    """Return whether a method of a module's class is replaced on the instance."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))
