"""RoIAlign (arXiv 1703.06870) of averages: what ``mmcv.ops.roi_align`` calls, by torchvision or :mod:`.roi_average`.

The arguments are those of the compiled op. The maximum of a bin's samples, which torchvision lacks and no config of
mmdet asks for, is refused.
"""

from typing import Any

import torch
from torch import Tensor

from .missing_ops import way_out
from .precision import widen
from .roi_average import roi_average, roi_average_backward

__all__ = ['roi_align_backward', 'roi_align_forward']


def roi_align_forward(features: Tensor, rois: Tensor, output: Tensor, *_: Tensor, **settings: Any) -> None:
    """Write the average of each bin's samples, 0 for a bin without samples.

    Shapes: features (B, C, H, W), rois (K, 5), output (K, C, height, width).
    """
    size, scale, ratio, aligned = _geometry(**settings)
    features, rois = widen(features, rois)
    if _supports_plain_torch(features):
        output.copy_(roi_average(features, rois, size, scale, ratio, aligned))
    else:
        output.copy_(torch.ops.torchvision.roi_align(features, rois, scale, *size, ratio, aligned))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_features: Tensor, **settings: Any
) -> None:
    """Write the gradient of the features; the shapes are those of the forward op."""
    size, scale, ratio, aligned = _geometry(**settings)
    grad_output, rois = widen(grad_output, rois)
    shape = grad_features.shape
    if _supports_plain_torch(grad_features):
        grad_features.copy_(roi_average_backward(grad_output, rois, shape, scale, ratio, aligned))
    else:
        backward = torch.ops.torchvision._roi_align_backward
        grad_features.copy_(backward(grad_output, rois, scale, *size, *shape, ratio, aligned))


def _geometry(
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool
) -> tuple[tuple[int, int], float, int, bool]:
    if pool_mode == 0:
        raise NotImplementedError(way_out("roi_align with pool_mode='max'"))
    return (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned


def _supports_plain_torch(features: Tensor) -> bool:
    """Whether :mod:`.roi_average` takes this map: on a CPU, but not into a graph, which would fix the regions."""
    return features.device.type == 'cpu' and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
