"""Backbones in other runtimes than PyTorch: exported, run on NumPy arrays, compared with PyTorch's outputs."""

import numpy as np
import torch
from torch import nn

from ..runtimes import onnx_runtimes
from ..runtimes.agreement import check_agreement
from ..runtimes.executorch import Runner, lower
from ..runtimes.onnx_file import trace
from ..runtimes.onnx_runtimes import Runtime

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest magnitude of each feature map


class ExecuTorch(Runtime):
    """ExecuTorch on the CPU, with XNNPACK's kernels for the operations that it has."""

    dtypes = (torch.float32,)
    packages = ('executorch',)
    extra = 'executorch'

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        assert isinstance(model, bytes)
        self._runner = Runner(model, threads)
        self.title = f'ExecuTorch {self._runner.version}'

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        (images,) = arrays
        return [feature.numpy() for feature in self._runner(torch.from_numpy(images))]


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
