"""Backbones in other runtimes than PyTorch: exported, run on NumPy arrays, compared with PyTorch's outputs."""

import torch
from torch import nn

from ..runtimes import onnx_runtimes
from ..runtimes.agreement import check_agreement
from ..runtimes.executorch import ExecuTorch, lower
from ..runtimes.onnx_file import trace
from ..runtimes.onnx_runtimes import Runtime

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest magnitude of each feature map


RUNTIMES: dict[str, type[Runtime]] = {**onnx_runtimes.RUNTIMES, 'executorch': ExecuTorch}


def exported(name: str, backbone: nn.Module, images: torch.Tensor, threads: int, dtype: torch.dtype) -> Runtime:
    """Return a backbone in one of ``RUNTIMES``, which computes the same on these images and takes others of this size.

    The backbone is in eval mode, on the CPU and in float32. ``dtype`` is that of the runtime's arithmetic.

    Shapes:
        images: (B, 3, H, W).

    Raises:
        UsageError: If the backbone cannot be exported, or the runtime computes something else.
    """
    kind = RUNTIMES[name]
    if kind is ExecuTorch:
        content = lower(backbone, images).content
    else:
        content = trace(backbone, (images,), type(backbone).__name__)
    runtime = kind(content, threads, dtype)
    with torch.no_grad():
        expected = [feature.numpy() for feature in backbone(images)]
    check_agreement(expected, runtime.test_step(images.numpy()), TOLERANCES[dtype], runtime.title)
    return runtime
