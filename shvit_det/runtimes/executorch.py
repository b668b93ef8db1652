"""Networks as ExecuTorch programs on XNNPACK, a library of kernels for phones' CPUs that runs on Linux too."""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import UsageError, first_line
from .onnx_runtimes import Runtime
from .packages import quiet, require

ANOTHER_RELEASE = f'each of its releases is for one of torch (1.2.0 for 2.11), and this is torch {torch.__version__}'
HELPERS = ('getitem', 'executorch_call_delegate')  # not operations of the network


@dataclass(frozen=True)
class Program:
    """An ExecuTorch program, and which kernels run its operations."""

    content: bytes  # the content of a .pte file
    delegated: int  # how many operations XNNPACK runs
    delegates: int  # in how many pieces they are; feature maps are copied between pieces
    portable: dict[str, int]  # how often each operation occurs that ExecuTorch's own, portable kernels run

    def summary(self) -> str:
        """Return a line that counts the operations on XNNPACK and names all others."""
        others = ', '.join(f'{name} {count}x' for name, count in self.portable.items())
        return (
            f'{self.delegated} of {self.delegated + sum(self.portable.values())} operations on XNNPACK in '
            f'{self.delegates} piece{"s" if self.delegates != 1 else ""}'
            + (f'; by portable kernels: {others}' if others else '')
        )


def require_executorch() -> str:
    """Import ExecuTorch's runtime and return its version.

    Raises:
        UsageError: If it is not installed, or cannot be imported beside this torch.
    """
    try:
        with quiet():
            for module in ('executorch.exir', 'executorch.runtime'):
                require(module, 'ExecuTorch', 'executorch', where=', in an environment of its own')
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise UsageError(f'executorch cannot be imported: {error}; {ANOTHER_RELEASE}') from error
    return version('executorch')


def lower(module: nn.Module, images: Tensor) -> Program:
    """Return a module in eval mode as a program in float32, for images of this size."""
    require_executorch()
    compiler = Path(sys.executable).with_name('flatc')
    if compiler.is_file():  # ExecuTorch calls it by name, which fails if the environment's folder is not in PATH
        os.environ.setdefault('FLATC_EXECUTABLE', str(compiler))
    try:
        with quiet(), torch.no_grad():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(module, (images,))
            count_axes_from_the_end(exported.graph)
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            counts = _count(edge.exported_program())
            content = bytes(edge.to_executorch().buffer)
    except (RuntimeError, ValueError, NotImplementedError, torch._dynamo.exc.TorchDynamoException) as error:
        raise UsageError(f'{type(module).__name__} cannot be exported for ExecuTorch: {first_line(error)}') from error
    return Program(content, *counts)


def count_axes_from_the_end(graph: torch.fx.Graph) -> None:
    """Write the axes of means as negative numbers: XNNPACK's partitioner takes no others."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.mean.dim:
            axes = [axis - node.args[0].meta['val'].dim() if axis >= 0 else axis for axis in node.args[1]]
            node.args = (node.args[0], axes, *node.args[2:])


def _count(program: Any) -> tuple[int, int, dict[str, int]]:
    """Return how many operations are delegated, to how many pieces, and how often each other one occurs."""
    delegates = [
        getattr(program.graph_module, node.target)
        for node in program.graph.nodes
        if node.op == 'get_attr' and hasattr(getattr(program.graph_module, node.target), 'original_module')
    ]
    delegated = sum(_operations(delegate.original_module.graph).total() for delegate in delegates)
    return delegated, len(delegates), dict(_operations(program.graph).most_common())


def _operations(graph: torch.fx.Graph) -> Counter[str]:
    names = (getattr(node.target, '__name__', str(node.target)) for node in graph.nodes if node.op == 'call_function')
    return Counter(name.removesuffix('.default') for name in names if name not in HELPERS)


class ExecuTorch(Runtime):
    """ExecuTorch on the CPU, with XNNPACK's kernels for the operations that it has.

    The whole process has one pool of threads for it.
    """

    dtypes = (torch.float32,)
    packages = ('executorch',)
    extra = 'executorch'

    def __init__(self, model: bytes | str, threads: int, dtype: torch.dtype = torch.float32) -> None:
        self.title = f'ExecuTorch {require_executorch()}'
        with quiet():
            from executorch import runtime
            from executorch.extension.pybindings import portable_lib

            portable_lib._unsafe_reset_threadpool(threads)  # there is no public function for it
            self._program = runtime.Runtime.get().load_program(model, verification=runtime.Verification.Minimal)
            self._method = self._program.load_method('forward')

    def test_step(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return copies of the outputs for images (B, 3, H, W).

        Raises:
            UsageError: If the program cannot run, most often because ExecuTorch was built for another torch.
        """
        try:
            return [out.numpy() for out in self._method.execute([torch.from_numpy(array) for array in arrays])]
        except RuntimeError as error:
            raise UsageError(f'{self.title} cannot run this: {first_line(error)}; {ANOTHER_RELEASE}') from error
