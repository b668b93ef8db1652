"""The base of all deployed layers: constant weights, packed once, and a backend that is chosen once.

Eager PyTorch computes most convolutions with small batches by general matrix products, or packs their weights again at
every call. Deployed layers keep their packed weights, together with the choice of the backend, until a state dict is
loaded or the layer is moved to another device or data type. Nothing else may change the weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ... import kernels
from ...common.errors import UsageError
from ...kernels.execution_plan import CannotPlanError, PlannedMap
from ...kernels.kernel_functions import Kernels
from ...kernels.packed_weights import PackedWeights, pack_convolution
from .backend_choice import Backend, Choice, InputRange, Processor, choose_backend, say_if_slow, this_processor

Value = TypeVar('Value')


class WeightChanges:
    """Counts how often weights of deployed layers were loaded or moved, in this process.

    Execution plans and compiled graphs hold the weights of many layers. They are built again when the count changes.
    """

    count = 0


class ConstantWeights(nn.Module):
    """A module whose weights only loading and moving may change, and a cache of what is computed from them.

    Loading and moving empty the cache. Copies and files do not carry it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[Any, Any] = {}

    def constant(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns for the present weights; it is called at most once for them."""
        found: Value | None = self._constants.get(key)
        if found is None:
            found = self._constants[key] = make()
        return found

    def drop_constants(self) -> None:
        self._constants = {}
        WeightChanges.count += 1

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # by which torch moves modules, whatever the method is
        try:
            return super()._apply(*args, **kwargs)
        finally:
            self.drop_constants()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            self.drop_constants()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_constants': {}}


class DeployedLayer(ConstantWeights):
    """A layer that a backend computes, chosen once for a device and a data type.

    Attributes:
        native: Whether our own kernels may compute it.
        operations: Those of oneDNN that it needs; none if oneDNN has no such layer.
        in_channels: Of its inputs (B, in_channels, H, W); None where the kernels take others.
        input_range: What its inputs lie between, for a layer that is computed in 8-bit integers; a calibration sets it.
    """

    native = True
    input_range: InputRange | None = None
    operations: tuple[str, ...] = ()
    in_channels: int | None = None

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        """Return whether our own kernels have such a layer for inputs of a data type."""
        return False

    def supports_input(self, x: Any, dtype: torch.dtype) -> bool:
        """Return whether our own kernels, if chosen, compute an input of this shape in a data type.

        Torch gets the inputs that no backend supports, since its error message says what is wrong with them.
        """
        return self.in_channels is None or (x.ndim == 4 and x.shape[1] == self.in_channels)

    def cached_choice(self, device_type: str, dtype: torch.dtype) -> Choice:
        """Return the usual choice for a device and a data type of inputs; it is decided once and kept in the cache."""

        def choose() -> Choice:
            if device_type != 'cpu':
                return choose_backend(self, device_type, dtype, Processor((), ()))
            say_if_slow(dtype)
            return choose_backend(self, device_type, dtype, this_processor(self.native))

        return self.constant(('backend', device_type, dtype), choose)

    def choice_for_input(self, x: Any) -> Choice:
        """Return who computes the layer for ``x``: :meth:`cached_choice`, or another backend where ``x`` needs one.

        Compiled graphs and inputs with gradients are computed by torch. Our own kernels bypass torch's dispatcher, so
        they are not used while something watches the dispatched operations, as a counter of operations does.
        """
        if not runs_eagerly(x):
            return Choice(Backend.PLAIN, x.dtype)
        choice = self.cached_choice(x.device.type, x.dtype)
        if choice.backend is Backend.INT8 and not DeployedLayer.supports_input(self, x, choice.dtype):
            choice = Choice(Backend.PLAIN, x.dtype)
        if choice.backend is Backend.KERNELS and (
            torch._C._len_torch_dispatch_stack() or not self.supports_input(x, choice.dtype)
        ):
            choice = choose_backend(self, x.device.type, x.dtype, this_processor(with_kernels=False))
        if isinstance(x, PlannedMap) and choice != (Backend.KERNELS, x.dtype):
            raise CannotPlanError
        return choice


class WeightedLayer(DeployedLayer):
    """A deployed layer with a weight and a bias, which are packed for the backend at the first call."""

    def __init__(self, weight: Tensor, bias: Tensor | None, out_channels: int) -> None:
        super().__init__()
        bias = weight.new_zeros(out_channels) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x) if x.dtype is self.weight.dtype else self._by_torch(x)  # torch then raises an error

    def compute(self, x: Tensor) -> Tensor:
        """Return the result for ``x``, in its data type, whichever the weights have."""
        backend, dtype = self.choice_for_input(x)
        if backend is Backend.PLAIN:
            return self._by_torch(x)
        run = {Backend.KERNELS: self._by_kernels, Backend.ONEDNN: self._by_onednn, Backend.INT8: self._by_int8}[backend]
        return cast(run(cast(x, dtype)), x.dtype)

    def supports_int8(self) -> bool:
        """Return whether the layer can be computed in 8-bit integers, and has enough operations for it."""
        return False

    def _by_torch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_onednn(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_kernels(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_int8(self, x: Tensor) -> Tensor:
        assert self.input_range is not None
        compute = self.constant('int8', partial(self._pack_for_int8, self.input_range))
        return compute(x)

    def _pack_for_int8(self, inputs: InputRange) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError

    def signal(self, x: Tensor) -> Tensor:
        """Return that part of an input whose range counts for 8-bit integers."""
        return x

    def onednn_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in oneDNN's layout for inputs like ``x``."""

        def make() -> tuple[Tensor, Tensor]:
            return self._reorder_for_onednn(self.weight.to(x.dtype), x), self.bias.to(x.dtype)

        return self.constant(('onednn', x.dtype), make)

    def kernel_weights(self, dtype: torch.dtype) -> PackedWeights:
        """Return weight and bias in the layout of our own kernels for inputs of a data type."""
        return self.constant(
            ('kernels', dtype), lambda: self._pack_for_kernels(self.weight.to(dtype), own_kernels().panel)
        )

    def _reorder_for_onednn(self, weight: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _pack_for_kernels(self, weight: Tensor, panel: int) -> PackedWeights:
        return pack_convolution(weight, self.bias, panel)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        name = f'{prefix}weight'
        destination[name] = destination[name].contiguous()  # safetensors takes no other layout


def refuse_training(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replace the ``train`` of a deployed module: before anything is changed, refuse all but evaluation."""
    if mode:
        raise UsageError('a deployed model cannot be trained: train the model it was made from and deploy that')
    return type(module).train(module, False)


def layer_backends(model: nn.Module, processor: Processor | None = None) -> dict[str, str]:
    """Return for each layer of a deployed model which backend computes it: ``kernels``, ``onednn`` or ``plain``.

    A feed-forward block, an attention or a squeeze-excite is one layer where our own kernels compute it at once, and
    several elsewhere. In parts that run compiled, and where gradients are computed, torch computes all layers.

    Args:
        model: What :func:`shvit_det.deploy` returned.
        processor: Another processor than this one, to learn what would be chosen there.
    """
    found: dict[str, str] = {}
    reference = next(model.parameters())

    def visit(module: nn.Module, name: str) -> None:
        if isinstance(module, DeployedLayer):
            weight = next(module.parameters(), reference)
            inputs = weight.device.type, weight.dtype
            choice = module.cached_choice(*inputs) if processor is None else choose_backend(module, *inputs, processor)
            has_layers = any(isinstance(part, DeployedLayer) for part in module.children())
            if choice.backend is Backend.KERNELS or not has_layers:
                found[name] = choice.backend.value
                return
        for child_name, child in module.named_children():
            visit(child, f'{name}.{child_name}' if name else child_name)

    visit(model, '')
    return found


def own_kernels() -> Kernels:
    """Return our own kernels, where they have been chosen."""
    library = kernels.load()
    assert library is not None
    return library


def runs_eagerly(x: Tensor) -> bool:
    """Return whether ``x`` is to be computed at once and without a gradient, as packed weights and kernels do."""
    return isinstance(x, PlannedMap) or (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.numel() > 0
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in a data type; ``x`` itself if it has that one, so that a planned map passes unchanged."""
    return x if x.dtype is dtype else x.to(dtype)


def to_nhwc(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """Return (B, H, W, C) as (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return ``x`` in memory as NHWC or NCHW."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
