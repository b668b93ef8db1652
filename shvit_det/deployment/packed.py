"""Layers whose weights are laid out once as the kernels want them, for inference on a CPU.

Where :mod:`.native` has kernels for this processor, they compute most convolutions, and oneDNN the rest. Eager PyTorch
hands most convolutions with small batches to general matrix products, or lays their weights out anew at every call. The
operations of oneDNN here are those that inductor emits for frozen weights. They are private to torch: where they are
missing, on another device, and while a model is compiled or traced, the plain operations run.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from . import native
from .native.functions import Kernels
from .native.operands import Operands, pack
from .native.plan import CannotPlanError, Planned

OPERATIONS = (
    '_convolution_pointwise',
    '_reorder_convolution_weight',
    '_convolution_transpose_pointwise',
    '_reorder_convolution_transpose_weight',
    '_linear_pointwise',
    '_reorder_linear_weight',
)
DTYPES = (torch.float32, torch.bfloat16)


def usable(x: Tensor) -> bool:
    """Return whether the packed operations can take ``x``."""
    return isinstance(x, Planned) or (
        x.device.type == 'cpu'
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.numel() > 0
        and not (x.requires_grad and torch.is_grad_enabled())  # they have no gradient
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)
    )


def versions(weights: Iterable[Tensor]) -> tuple:
    """Return what is another when weights have changed."""
    return tuple([(w.data_ptr(), None if w.is_inference() else w._version, w.dtype) for w in weights])


class MadeFrom:
    """Something made of weights at the first use, and anew when they have changed, by loading for instance.

    Copies and files do not carry it.
    """

    def __init__(self) -> None:
        self._made: Any = None
        self._state: tuple | None = None

    def get(self, make: Callable[[], Any], *weights: Tensor) -> Any:
        """Return what ``make`` returned for these weights as they are."""
        state = versions(weights)
        if self._state != state:
            self._made, self._state = make(), state
        return self._made

    def __getstate__(self) -> dict:
        return {'_made': None, '_state': None}


class HasKernels(nn.Module):
    """A layer that our own kernels may compute, if :attr:`native`."""

    native = True

    def kernels(self, x: Tensor) -> Kernels | None:
        """Return our own kernels if there are any for the data type of ``x``; none while operations are being watched.

        They do not pass torch's dispatcher, so that a counter of operations, for instance, would not see them.
        """
        kernels = native.kernels() if self.native and not torch._C._len_torch_dispatch_stack() else None
        return kernels if kernels is not None and x.dtype in kernels.dtypes else None


class Packed(HasKernels):
    """A layer with a weight, a bias and the packed form of the weight, which is made at the first call.

    Args:
        weight: As the plain layer has it.
        bias: Zeros if None.
        out_channels: The length of the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, out_channels: int) -> None:
        super().__init__()
        bias = weight.new_zeros(out_channels) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self._packed = MadeFrom()
        self._operands = MadeFrom()

    def packed(self, x: Tensor) -> Tensor:
        """Return the weight as oneDNN wants it."""
        return self._packed.get(lambda: self.pack(x), self.weight)

    def operands(self) -> Operands:
        """Return weight and bias as our own kernels want them."""
        return self._operands.get(lambda: pack(self.weight, self.bias), self.weight, self.bias)

    def kernels_for(self, x: Tensor, suits: bool = True) -> Kernels | None:
        """Return our own kernels if there are any that can take ``x``.

        Args:
            x: The input.
            suits: Whether they compute such a layer at all.

        Raises:
            CannotPlanError: If ``x`` is only planned and they cannot.
        """
        suits = suits and x.ndim == 4 and x.dtype == self.weight.dtype
        kernels = self.kernels(x) if suits else None
        if kernels is None and isinstance(x, Planned):
            raise CannotPlanError
        return kernels

    def pack(self, x: Tensor) -> Tensor:
        """Return the weight as oneDNN wants it for inputs like ``x``."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'Packed':
        if mode:
            raise UsageError('a deployed model cannot be trained: train the model it was made from and deploy that')
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}weight'] = destination[
            f'{prefix}weight'
        ].contiguous()  # safetensors takes no other layout


def to_nhwc(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """Return (B, H, W, C) as (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` in memory as NHWC or NCHW."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
