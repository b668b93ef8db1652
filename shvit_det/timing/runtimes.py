"""Backbones in other runtimes than PyTorch: exported, run on NumPy arrays, held against PyTorch's outputs."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ..export.executorch import Runner, lower

OPSET = 17
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest magnitude of each feature map


class Runtime:
    """A backbone as a runtime has prepared it.

    Args:
        model: What :meth:`convert` returned.
        threads: Of the runtime.
        dtype: Of its arithmetic, one of ``dtypes``; images and feature maps are float32.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = 'runtimes'
    title: str  # with its version

    def __init__(self, model: bytes, threads: int, dtype: torch.dtype) -> None:
        raise NotImplementedError

    @classmethod
    def convert(cls, backbone: nn.Module, images: torch.Tensor) -> bytes:
        """Return a backbone as the content of a file that the runtime takes, for images of this size.

        Raises:
            UsageError: If the backbone has something that the file cannot express.
        """
        return export_backbone(backbone, images)

    def test_step(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the feature maps of images, (B, 3, H, W), in the memory where the runtime leaves them."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU; the threads share an operation, and operations run one after the other."""

    dtypes = (torch.float32,)
    packages = ('onnx', 'onnxruntime')

    def __init__(self, model: bytes, threads: int, dtype: torch.dtype) -> None:
        onnxruntime = import_module('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.title = f'ONNX Runtime {onnxruntime.__version__}'
        self._session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        (self._input,) = (taken.name for taken in self._session.get_inputs())

    def test_step(self, images: np.ndarray) -> list[np.ndarray]:
        outs: list[np.ndarray] = self._session.run(None, {self._input: images})
        return outs


class OpenVINO(Runtime):
    """OpenVINO on the CPU, one stream.

    Raises:
        UsageError: If this processor has no such arithmetic, for which OpenVINO would silently take another.
    """

    dtypes = (torch.float32, torch.bfloat16)
    packages = ('onnx', 'openvino')

    def __init__(self, model: bytes, threads: int, dtype: torch.dtype) -> None:
        openvino = import_module('openvino')
        core = openvino.Core()
        hints = {torch.float32: 'f32', torch.bfloat16: 'bf16'}
        if dtype is torch.bfloat16 and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            raise UsageError('bfloat16:openvino: needs a processor with bfloat16 arithmetic, and this one has none')
        how = {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': hints[dtype]}
        compiled = core.compile_model(core.read_model(model), 'CPU', how)
        self.title = f'OpenVINO {openvino.__version__.partition("-")[0]}'
        self._request = compiled.create_infer_request()
        self._number = len(compiled.outputs)

    def test_step(self, images: np.ndarray) -> list[np.ndarray]:
        outs = self._request.infer([images], share_inputs=True, share_outputs=True)
        return [outs[index] for index in range(self._number)]


class ExecuTorch(Runtime):
    """ExecuTorch on the CPU, with XNNPACK's kernels where they serve."""

    dtypes = (torch.float32,)
    packages = ('executorch',)
    extra = 'executorch'

    def __init__(self, model: bytes, threads: int, dtype: torch.dtype) -> None:
        self._runner = Runner(model, threads)
        self.title = f'ExecuTorch {self._runner.version}'

    @classmethod
    def convert(cls, backbone: nn.Module, images: torch.Tensor) -> bytes:
        return lower(backbone, images).content

    def test_step(self, images: np.ndarray) -> list[np.ndarray]:
        return [feature.numpy() for feature in self._runner(torch.from_numpy(images))]


RUNTIMES: dict[str, type[Runtime]] = {'onnxruntime': OnnxRuntime, 'openvino': OpenVINO, 'executorch': ExecuTorch}


def check_installed(name: str) -> None:
    """Raise ``UsageError`` if what a runtime needs is not installed."""
    kind = RUNTIMES[name]
    for package in kind.packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise UsageError(
                f"{name}: needs {package}, which is not installed: pip install 'shvit_det[{kind.extra}]'"
            ) from error


def export_backbone(backbone: nn.Module, images: torch.Tensor) -> bytes:
    """Return a backbone as an ONNX file for images of this size.

    The exporter is the one that follows a run, since the other one needs a further package.

    Raises:
        UsageError: If the backbone has something that it cannot express.
    """
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder, 'backbone.onnx')
        warnings.simplefilter('ignore')  # it is deprecated, and warns at every condition that is fixed by the size
        try:
            torch.onnx.export(backbone, (images,), path, dynamo=False, opset_version=OPSET)
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(f'{type(backbone).__name__} cannot be exported as ONNX: {lines[0]}') from error
        return path.read_bytes()


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
    kind = RUNTIMES[name]
    runtime = kind(kind.convert(backbone, images), threads, dtype)
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
