"""ONNX Runtime and OpenVINO: they run a file on NumPy arrays."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ..common.errors import UsageError
from .packages import require


class SignalStack(ctypes.Structure):
    """C's ``stack_t`` on Linux."""

    _fields_ = (('address', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread the alternate stack of signals back that it had before the block, mostly none.

    OpenVINO sets a small one while it compiles a model, and leaves it behind. Python runs its handlers of signals
    there, also that for the workers of a data loader.
    """
    if not sys.platform.startswith('linux'):
        yield
        return
    set_stack = ctypes.CDLL(None).sigaltstack
    before = SignalStack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)


class Runtime:
    """A model that a runtime has loaded.

    Args:
        model: The content of an ONNX file, or the path of a file that the runtime reads.
        threads: How many the runtime uses.
        dtype: The type of the arithmetic, one of ``dtypes``; inputs and outputs have the types of the model.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = 'runtimes'
    title: str  # with its version

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        raise NotImplementedError

    @classmethod
    def check_installed(cls, name: str) -> None:
        """Raise ``UsageError`` if what the runtime needs is not installed; ``name`` is what the user called it."""
        for package in cls.packages:
            require(package, name, cls.extra)

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return the outputs; the runtime may use their memory again in the next call."""
        raise NotImplementedError

    def metadata(self, key: str) -> str | None:
        """Return the model's metadata under ``key``; None if there are none."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU: operations run one after the other, each on all threads."""

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
        UsageError: If this processor has no bfloat16 arithmetic; OpenVINO would silently compute in float32.
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
        with signal_stack_kept():
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
    """Tell from a file's suffix whether it is an exported detector rather than a checkpoint."""
    return Path(path).suffix in RUNTIME_OF
