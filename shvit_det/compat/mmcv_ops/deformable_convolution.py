"""Deformable convolutions: what ``mmcv.ops.deform_conv`` and ``modulated_deform_conv`` call.

torchvision's kernels order the offsets (y before x) and sample as mmcv's do, with one difference: a point on the line
one pixel before the first row or column, where the offsets of a padded layer start, has a gradient by its offset there
and none in mmcv. :func:`_gradients` removes it. mmcv's buffers, which are named ``_`` here, and its splitting of
batches (``im2col_step``) do not change results and are not used.

Shapes, of all functions here:
    features (B, C, H, W), weight (D, C / group, kH, kW), offset (B, deformable_group * kH * kW * 2, H', W'),
    mask (B, deformable_group * kH * kW, H', W'), bias (D,) or empty, output (B, D, H', W').
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .precision import widen

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
]

# mmcv's names for the integers that torchvision takes, in torchvision's order
_PLAIN = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_MODULATED = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')


def deform_conv_forward(*tensors: Tensor, **settings: int) -> None:
    """Write the deformable convolution (arXiv 1703.06211) to ``output``."""
    features, weight, offset, output, *_ = tensors
    output.copy_(torch.ops.torchvision.deform_conv2d(*_operands(features, weight, offset), *_geometry(settings)))


def deform_conv_backward_input(*tensors: Tensor, **settings: int) -> None:
    """Write the gradients of the features and of the offsets."""
    features, offset, grad_output, grad_features, grad_offset, weight, _ = tensors
    gradients = _gradients(grad_output, _operands(features, weight, offset), _geometry(settings))
    grad_features.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **settings: int) -> None:
    """Add ``scale`` times the gradient of the weight to ``grad_weight``."""
    features, offset, grad_output, grad_weight, *_ = tensors
    # the weight's values do not enter its gradient, and mmcv does not pass them
    gradients = _gradients(grad_output, _operands(features, grad_weight, offset), _geometry(settings))
    grad_weight.add_(gradients[1], alpha=scale)


def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **settings: int) -> None:
    """Write the modulated deformable convolution (arXiv 1811.11168) to ``output``."""
    features, weight, bias, _, offset, mask, output, _ = tensors
    offset, mask = (_as_read(values, output.shape[2:]) for values in (offset, mask))
    operands = _operands(features, weight, offset, mask, bias if with_bias else None)
    output.copy_(torch.ops.torchvision.deform_conv2d(*operands, *_geometry(settings)))


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **settings: int) -> None:
    """Write the gradients of everything that the forward op takes."""
    features, weight, bias, _, offset, mask, _, *targets, grad_output = tensors
    grad_features, grad_weight, grad_bias, grad_offset, grad_mask = targets
    offset, mask = (_as_read(values, grad_output.shape[2:]) for values in (offset, mask))
    operands = _operands(features, weight, offset, mask, bias if with_bias else None)
    gradients = _gradients(grad_output, operands, _geometry(settings))
    for target, gradient in zip((grad_features, grad_weight, grad_offset, grad_mask), gradients[:4], strict=True):
        if gradient.shape != target.shape:  # the remainder was not read
            gradient = pad(gradient.flatten(1), (0, target[0].numel() - gradient[0].numel())).view(target.shape)
        target.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


def _as_read(values: Tensor, size: torch.Size) -> Tensor:
    """Return offsets or a mask as mmcv's kernels read them for an output of this size: by place in memory.

    mmdet's DyHead relies on it: it uses those of one level for the smaller level above it.

    Shapes:
        (B, C, H, W) -> (B, C, *size).

    Raises:
        ValueError: If there are fewer than the output needs; mmcv's kernels would read beyond them.
    """
    if values.shape[2:] == size:
        return values
    number = values.shape[1] * size.numel()
    if number > values[0].numel():
        raise ValueError(f'offsets or a mask of {tuple(values.shape[2:])} are too few for an output of {tuple(size)}')
    return values.flatten(1)[:, :number].view(*values.shape[:2], *size)


def _geometry(settings: dict[str, int]) -> list[int]:
    """Return mmcv's settings in torchvision's order, and whether there is a mask."""
    names = _PLAIN if 'dH' in settings else _MODULATED
    return [*(settings[name] for name in names), names is _MODULATED]


def _gradients(grad_output: Tensor, operands: Sequence[Tensor], geometry: list[int]) -> tuple[Tensor, ...]:
    """Return the gradients of features, weight, offset, mask and bias."""
    grad_output, *operands = widen(grad_output, *operands)
    gradients = torch.ops.torchvision._deform_conv2d_backward(grad_output, *operands, *geometry)
    features, weight, offset, *_ = operands
    is_inside = _is_inside(offset, features.shape[2:], weight.shape[2:], geometry)
    return *gradients[:2], gradients[2].where(is_inside, 0), *gradients[3:]


def _is_inside(offset: Tensor, map_size: torch.Size, kernel_size: torch.Size, geometry: list[int]) -> Tensor:
    """Tell for each offset whether its point is less than one pixel outside the map, and so has a gradient in mmcv.

    Shapes:
        offset and result (B, deformable_group * kH * kW * 2, H', W').
    """
    strides, paddings, dilations = geometry[0:2], geometry[2:4], geometry[4:6]
    # for each axis where the kernel's points lie without offsets: (kernel extent, output extent)
    rows, columns = (
        torch.arange(num_points)[:, None] * dilation + torch.arange(num_outputs) * stride - padding
        for num_points, dilation, num_outputs, stride, padding in zip(
            kernel_size, dilations, offset.shape[2:], strides, paddings, strict=True
        )
    )
    by_point = offset.unflatten(1, (-1, *kernel_size, 2))
    y = by_point[:, :, :, :, 0] + rows.to(offset.device)[:, None, :, None]
    x = by_point[:, :, :, :, 1] + columns.to(offset.device)[None, :, None, :]
    is_inside = (y > -1) & (y < map_size[0]) & (x > -1) & (x < map_size[1])
    return is_inside.unsqueeze(4).expand_as(by_point).flatten(1, 4)


def _operands(
    features: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the tensors in torchvision's order; its kernels want a mask and a bias, used or not."""
    if mask is None:
        mask = offset.new_zeros(len(offset), 1)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return widen(features, weight, offset, mask, bias)
