"""Multi-scale deformable attention (arXiv 2010.04159): what mmcv calls for it on a GPU.

On a CPU mmcv does not ask its compiled ops but runs its own plain-torch function. Here the same
function serves every device, so that transformer detectors work without a CUDA compiler. Both round a
point's place in their own way, which decides between two derivatives where it lies on the centre of a pixel.
"""

import torch
from torch import Tensor

from .precision import widen

__all__ = ['ms_deform_attn_backward', 'ms_deform_attn_forward']


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """The attended values.

    Shapes: value (B, keys, heads, width), spatial_shapes (levels, 2), sampling_locations
        (B, queries, heads, levels, points, 2), attention_weights without the last 2; result
        (B, queries, heads * width).
    """
    attended = _attend(spatial_shapes, *widen(value, sampling_locations, attention_weights))
    return attended.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_locations: Tensor,
    grad_attention_weights: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of the values, the locations and the weights."""
    grad_output, *inputs = widen(grad_output, value, sampling_locations, attention_weights)
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        attended = _attend(spatial_shapes, *inputs)
    gradients = torch.autograd.grad(attended, inputs, grad_output)
    gradients = (gradients[0], gradients[1].where(_is_inside(spatial_shapes, inputs[1]), 0), gradients[2])
    targets = (grad_value, grad_sampling_locations, grad_attention_weights)
    for target, gradient in zip(targets, gradients, strict=True):
        target.copy_(gradient)


def _is_inside(spatial_shapes: Tensor, sampling_locations: Tensor) -> Tensor:
    """Whether each point is less than one pixel outside its level's map.

    Only these have a gradient by their location in the compiled op. The plain-torch function takes one pixel for inside
    too, which is where the initial offsets put points along the border.

    Shapes: (levels, 2), (B, queries, heads, levels, points, 2), result (B, queries, heads, levels, points, 1).
    """
    extents = spatial_shapes.flip(1)[:, None]  # (levels, 1, 2): columns and rows, as in the locations
    pixels = sampling_locations * extents - 0.5
    return ((pixels > -1) & (pixels < extents)).all(-1, keepdim=True)


def _attend(spatial_shapes: Tensor, value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    # Its file asks for the ops when it is imported, so it cannot be imported before them.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # As integers on the CPU, where the function splits and reshapes by them.
    shapes = spatial_shapes.tolist()
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)
