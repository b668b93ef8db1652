"""Multi-scale deformable attention (arXiv 2010.04159): what mmcv calls for it on a GPU.

On a CPU mmcv does not call its compiled ops but its own function in plain torch. Here that function computes it on
every device.
"""

import torch
from torch import Tensor

from .precision import widen

__all__ = ['ms_deform_attn_backward', 'ms_deform_attn_forward']


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, _: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    """Return the attended values.

    Shapes:
        value (B, keys, heads, width), spatial_shapes (levels, 2), locations (B, queries, heads, levels, points, 2),
        weights the same without the last 2 -> (B, queries, heads * width).
    """
    return _attend(spatial_shapes, *widen(value, locations, weights)).to(value.dtype)


def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Write the gradients of the values, the locations and the weights."""
    value, spatial_shapes, _, locations, weights, grad_output, grad_value, grad_locations, grad_weights = tensors
    grad_output, *inputs = widen(grad_output, value, locations, weights)
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        attended = _attend(spatial_shapes, *inputs)
    by_value, by_location, by_weight = torch.autograd.grad(attended, inputs, grad_output)
    grad_value.copy_(by_value)
    grad_locations.copy_(by_location.where(_is_inside(spatial_shapes, inputs[1]), 0))
    grad_weights.copy_(by_weight)


def _is_inside(spatial_shapes: Tensor, locations: Tensor) -> Tensor:
    """Tell for each point whether it is less than one pixel outside its level's map.

    Only these have a gradient by their location in the compiled op. The function in plain torch counts a distance of
    exactly one pixel as inside, and the initial offsets put points there, along the border.

    Shapes:
        (levels, 2), (B, queries, heads, levels, points, 2) -> (B, queries, heads, levels, points, 1).
    """
    extents = spatial_shapes.flip(1)[:, None]  # (levels, 1, 2): columns and rows, as in the locations
    pixels = locations * extents - 0.5
    return ((pixels > -1) & (pixels < extents)).all(-1, keepdim=True)


def _attend(spatial_shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # imported here because this file of mmcv needs the ops when it is imported
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = spatial_shapes.tolist()  # the function splits and reshapes by them
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
