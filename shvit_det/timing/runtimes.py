"""Backbones in other runtimes than PyTorch: exported as ONNX, run on NumPy arrays, held against PyTorch's outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..export.onnx_file import trace
from ..export.runtimes import RUNTIMES, Runtime, check_installed

__all__ = ['RUNTIMES', 'check_installed', 'export_backbone', 'exported']
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest magnitude of each feature map


def export_backbone(backbone: nn.Module, images: torch.Tensor) -> bytes:
    """Return a backbone as an ONNX file for images of this size.

    Raises:
        UsageError: If the backbone has something that the exporter cannot express.
    """
    return trace(backbone, (images,), type(backbone).__name__)


def exported(name: str, backbone: nn.Module, images: torch.Tensor, threads: int, dtype: torch.dtype) -> Runtime:
    """Return a backbone in another runtime, which computes the same on these images.

    Args:
        name: One of ``RUNTIMES``.
        backbone: In eval mode, on the CPU and in float32.
        images: (B, 3, H, W), the size that the runtime then takes.
        threads: Of the runtime.
        dtype: Of its arithmetic.

    Raises:
        UsageError: If the backbone cannot be exported, or the runtime computes something else.
    """
    runtime = RUNTIMES[name](export_backbone(backbone, images), threads, dtype)
    with torch.no_grad():
        expected = [feature.numpy() for feature in backbone(images)]
    check_agreement(expected, runtime.test_step(images.numpy()), TOLERANCES[dtype], runtime.title)
    return runtime


def check_agreement(expected: Sequence[Any], found: Sequence[Any], tolerance: float, title: str) -> None:
    """Raise ``UsageError`` if feature maps differ by more than ``tolerance`` of their largest magnitude."""
    shapes, found_shapes = ([feature.shape for feature in features] for features in (expected, found))
    if shapes != found_shapes:
        raise UsageError(f'{title} returns feature maps of other shapes than PyTorch: {found_shapes}, not {shapes}')
    differences = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(expected, found, strict=True)]
    worst = np.max(differences)  # NaN if there is one
    if not worst <= tolerance:
        raise UsageError(
            f'{title} computes something else than PyTorch: the feature maps differ by {worst:.2g} of '
            f'their largest magnitude, and {tolerance:g} is allowed'
        )
