"""Layers whose weights are laid out once as the kernels want them, for inference on a CPU.

Where :mod:`.native` has kernels for this processor, they compute most convolutions, and oneDNN the rest. Eager PyTorch
hands most convolutions with small batches to general matrix products, or lays their weights out anew at every call.
:mod:`.backends` decides who computes a layer.

The weights of a deployed layer are constants: loading a state dict and moving the layer to another device or data type
drop what was laid out, and nothing else may change them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ... import kernels
from ...common.errors import UsageError
from ...kernels.execution_plan import CannotPlanError, Planned
from ...kernels.functions import Kernels
from ...kernels.operands import Operands, pack
from .choice import Backend, Choice, choose, say_if_slow, this_processor

Made = TypeVar('Made')


def runs_eagerly(x: Tensor) -> bool:
    """Return whether ``x`` is to be computed at once and without a gradient, as packed weights and kernels do."""
    return isinstance(x, Planned) or (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.numel() > 0
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in a data type; itself where it has that, even if it is only planned."""
    return x if x.dtype is dtype else x.to(dtype)


class Changes:
    """Counts how often weights of deployed layers were loaded or moved, in this process.

    What holds several layers' packed weights, a plan for instance, is made anew when the count is another one.
    """

    count = 0


class Constants(nn.Module):
    """A module whose weights only loading and moving may change; what is made of them is dropped then.

    Copies and files do not carry what was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Any] = {}

    def made(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returned for the present weights, called at the first question."""
        found: Made | None = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found

    def _forget(self) -> None:
        self._made = {}
        Changes.count += 1

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # by which torch moves modules, whatever the method is
        try:
            return super()._apply(*args, **kwargs)
        finally:
            self._forget()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_made': {}}


class HasKernels(nn.Module):
    """A layer that our own kernels may compute, if :attr:`native`."""

    native = True
    operations: tuple[str, ...] = ()  # those of oneDNN that it needs

    def choose(self, x: Tensor, suits_kernels: Callable[[Tensor], bool] | None = None) -> Choice:
        """Return who computes the layer for ``x``.

        Our own kernels do not pass torch's dispatcher: they are left out while operations are being watched, because a
        counter of operations, for instance, would not see them.

        Args:
            x: The input.
            suits_kernels: Tells whether our own kernels have such a layer for ``x``; they always do if None.

        Raises:
            CannotPlanError: If ``x`` is only planned and our own kernels do not compute the layer.
        """
        if not runs_eagerly(x):
            return Choice(Backend.PLAIN, x.dtype)
        with_kernels = self.native and not torch._C._len_torch_dispatch_stack()
        if with_kernels and suits_kernels is not None:
            with_kernels = suits_kernels(x)
        choice = choose(x.device.type, x.dtype, this_processor(with_kernels), self.operations)
        if isinstance(x, Planned) and choice != (Backend.KERNELS, x.dtype):
            raise CannotPlanError
        if choice.dtype is not x.dtype:
            say_if_slow(x.dtype)
        return choice


class RefusesTraining:
    """Stands in for a module's ``train``: before anything is changed, it refuses all but evaluation.

    Args:
        module: The deployed model or a part of it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise UsageError('a deployed model cannot be trained: train the model it was made from and deploy that')
        return type(self.module).train(self.module, False)


def own_kernels() -> Kernels:
    """Return our own kernels, where they have been chosen."""
    library = kernels.load()
    assert library is not None
    return library


class Packed(HasKernels, Constants):
    """A layer with a weight, a bias and their packed forms, which are made at the first call.

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

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x) if x.dtype is self.weight.dtype else self._plain(x)  # which torch refuses

    def compute(self, x: Tensor) -> Tensor:
        """Return the result for ``x``, in its data type, whichever the weights have."""
        backend, dtype = self.choose(x, self.suits_kernels)
        if backend is Backend.PLAIN:
            return self._plain(x)
        by = self._by_kernels if backend is Backend.KERNELS else self._by_onednn
        return cast(by(cast(x, dtype)), x.dtype)

    def suits_kernels(self, x: Tensor) -> bool:
        """Return whether our own kernels have such a layer for ``x``; what is wrong is for torch to refuse."""
        raise NotImplementedError

    def _plain(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_onednn(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_kernels(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def packed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias as oneDNN wants them for inputs like ``x``."""

        def make() -> tuple[Tensor, Tensor]:
            return self._pack(self.weight.to(x.dtype), x), self.bias.to(x.dtype)

        return self.made(x.dtype, make)

    def operands(self, dtype: torch.dtype) -> Operands:
        """Return weight and bias as our own kernels want them for inputs of a data type."""
        return self.made(('kernels', dtype), lambda: self._pack_for_kernels(self.weight.to(dtype), self.bias))

    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _pack_for_kernels(self, weight: Tensor, bias: Tensor) -> Operands:
        return pack(weight, bias)

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
