"""Other runtimes than PyTorch: they run an ONNX or OpenVINO file on NumPy arrays."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ..common.errors import UsageError


class Runtime:
    """A model as a runtime has prepared it.

    Args:
        model: An ONNX file's content, or the path of a file that the runtime reads.
        threads: Of the runtime.
        dtype: Of its arithmetic, one of ``dtypes``; inputs and outputs have the types of the model.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = 'runtimes'
    title: str  # with its version

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        raise NotImplementedError

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for some inputs, in the memory where the runtime leaves them."""
        raise NotImplementedError

    def metadata(self, key: str) -> str | None:
        """Return what the model says of itself under ``key``, None if nothing."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU; the threads share an operation, and operations run one after the other."""

    dtypes = (torch.float32,)
    packages = ('onnx', 'onnxruntime')

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        onnxruntime = import_module('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.title = f'ONNX Runtime {onnxruntime.__version__}'
        self._session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        self._inputs = [taken.name for taken in self._session.get_inputs()]

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        outs: list[np.ndarray] = self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))
        return outs

    def metadata(self, key: str) -> str | None:
        value: str | None = self._session.get_modelmeta().custom_metadata_map.get(key)
        return value


class OpenVINO(Runtime):
    """OpenVINO on the CPU, one stream.

    Raises:
        UsageError: If this processor has no such arithmetic, for which OpenVINO would silently take another.
    """

    dtypes = (torch.float32, torch.bfloat16)
    packages = ('onnx', 'openvino')

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        openvino = import_module('openvino')
        core = openvino.Core()
        hints = {torch.float32: 'f32', torch.bfloat16: 'bf16'}
        if dtype is torch.bfloat16 and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            raise UsageError('bfloat16:openvino: needs a processor with bfloat16 arithmetic, and this one has none')
        how = {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': hints[dtype]}
        self._model = core.read_model(model)
        compiled = core.compile_model(self._model, 'CPU', how)
        self.title = f'OpenVINO {openvino.__version__.partition("-")[0]}'
        self._request = compiled.create_infer_request()
        self._number = len(compiled.outputs)

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        outs = self._request.infer(list(arrays), share_inputs=True, share_outputs=True)
        return [outs[index] for index in range(self._number)]

    def metadata(self, key: str) -> str | None:
        return self._model.get_rt_info(key).astype(str) if self._model.has_rt_info(key) else None


RUNTIMES: dict[str, type[Runtime]] = {'onnxruntime': OnnxRuntime, 'openvino': OpenVINO}
RUNTIME_OF = {'.onnx': 'onnxruntime', '.xml': 'openvino'}


def is_exported(path: str) -> bool:
    """Return whether a file's name is that of an exported detector and not of a checkpoint."""
    return Path(path).suffix in RUNTIME_OF


def check_installed(name: str, runtimes: Mapping[str, type[Runtime]] = RUNTIMES) -> None:
    """Raise ``UsageError`` if what a runtime needs is not installed."""
    kind = runtimes[name]
    for package in kind.packages:
        require(package, name, kind.extra)


def require(package: str, purpose: str, extra: str = 'runtimes') -> None:
    """Raise ``UsageError`` if a package that belongs to an extra is not installed."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UsageError(
            f"{purpose}: needs {package}, which is not installed: pip install 'shvit_det[{extra}]'"
        ) from error
