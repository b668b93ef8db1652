"""What a detector's parts have to do: multiply-adds, bytes moved and memory, counted while they run.

One multiply-add is one MAC, half of what torch's formulas (``torch.utils.flop_counter``) give. As there, the bias is
not counted, border positions are counted as if they saw no padding, and attention as if nothing were masked.
Operations that do not pass torch's dispatcher, mmcv's compiled ones among them, are not seen.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .record import PartCost

aten = torch.ops.aten

ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
# Operations on their first argument that do not read it, or only as much of it as they hand on, or neither read nor
# write more of it than the values they put there.
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.bernoulli_}
GATHERS = {aten.index, aten.index_select, aten.gather, aten.embedding, aten.take}
SCATTERS = {aten.index_put_}


def count_parameters(modules_by_part: Mapping[str, Sequence[nn.Module]]) -> dict[str, int]:
    """Return the number of parameters of each part; what two parts share is the first one's."""
    seen: set[int] = set()
    counts = {}
    for part, modules in modules_by_part.items():
        own = {id(p): p.numel() for module in modules for p in module.parameters() if id(p) not in seen}
        seen.update(own)
        counts[part] = sum(own.values())
    return counts


@dataclass
class _Part:
    """What was counted in one part so far."""

    flops: int = 0
    moved_bytes: int = 0
    peak_memory_bytes: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)


class CostCounter(TorchDispatchMode):
    """Counts, while it is active, what each part has to do; the results of the operations stay as they are.

    One counter counts one ``with`` block. The bytes moved are those of an unfused run: what each operation reads and
    writes, counted alone. The memory is that of tensors which came to be inside the block and are alive, wherever they
    lie; the peak of a part is the highest total while it ran, so it includes what earlier parts left.

    Args:
        current_part: Says which part is running; asked at every operation.
    """

    def __init__(self, current_part: Callable[[], str]) -> None:
        super().__init__()
        self._current_part = current_part
        self._parts: dict[str, _Part] = {}
        self._alive: dict[int, tuple[weakref.ref, int]] = {}  # storages by address, with their size
        self._alive_bytes = 0

    def part_costs(self, parameters: Mapping[str, int]) -> list[PartCost]:
        """Return one row a part, in the order in which they ran.

        Parts that have parameters and did not run follow at the end.

        Args:
            parameters: The number of parameters by part, as :func:`count_parameters` returns it.
        """
        idle = {name: _Part() for name, count in parameters.items() if count and name not in self._parts}
        return [
            PartCost(
                name=name,
                parameters=parameters.get(name, 0),
                macs=part.flops // 2,
                moved_bytes=part.moved_bytes,
                peak_memory_bytes=part.peak_memory_bytes,
                uncounted=dict(part.uncounted),
            )
            for name, part in (self._parts | idle).items()
        ]

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count it; one that torch composes of others is counted by those.

        Composites arrive here only where autograd is off. ``OpOverload.decompose`` would prefer decompositions written
        in Python, which compute other bits than the compiled ones that run without a counter.
        """
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), DispatchKey.CompositeImplicitAutograd):
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        part = self._parts.setdefault(self._current_part(), _Part())
        result = func(*args, **kwargs)
        self._count(part, func, args, kwargs, result)
        return result

    def _count(self, part: _Part, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        packet = func.overloadpacket
        inputs = _tensors((args, kwargs))
        known = {_storage_address(tensor) for tensor in inputs}
        made = [tensor for tensor in _tensors(result) if _storage_address(tensor) not in known]
        for tensor in made:
            self._track(tensor)
        part.peak_memory_bytes = max(part.peak_memory_bytes, self._alive_bytes)
        changed = [] if torch.Tag.inplace_view in func.tags else _changed(func, args, kwargs)
        if packet in ALLOCATIONS or not (made or changed):  # nothing made and nothing changed: a view, or a question
            return
        part.moved_bytes += _moved_bytes(func, args, kwargs, written=made + changed)
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None:
            part.uncounted[str(packet)] += 1
        else:
            part.flops += formula(*args, **kwargs, out_val=result)

    def _track(self, tensor: Tensor) -> None:
        """Add a tensor's storage to what is alive, once, until it is freed."""
        address = _storage_address(tensor)
        if tensor.layout is not torch.strided or address in self._alive:
            return
        storage = tensor.untyped_storage()
        self._alive[address] = weakref.ref(storage, lambda _: self._forget(address)), storage.nbytes()
        self._alive_bytes += storage.nbytes()

    def _forget(self, address: int) -> None:
        self._alive_bytes -= self._alive.pop(address)[1]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage_address(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from others; packed and sparse tensors stand for themselves."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _changed(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments into which an operation writes."""
    schema = func._schema.arguments
    named = dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
    return _tensors([named.get(a.name) for a in schema if a.alias_info is not None and a.alias_info.is_write])


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of the tensors' elements, repeated ones of an expanded tensor once."""
    total = 0
    for tensor in tensors:
        strides = tensor.stride() if tensor.layout is torch.strided else tensor.shape
        repeats = math.prod(size for size, stride in zip(tensor.shape, strides, strict=True) if not stride and size)
        total += tensor.numel() // repeats * tensor.element_size()
    return total


def _moved_bytes(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[Tensor]) -> int:
    packet = func.overloadpacket
    if packet in SCATTERS:
        return _bytes(_tensors((args[1:], kwargs))) + _bytes(_tensors(args[2]))
    outs = {a.name for a in func._schema.arguments if a.is_out}
    read = _bytes(_tensors((args, [value for name, value in kwargs.items() if name not in outs])))
    if packet in OVERWRITES:
        read -= _bytes([args[0]])
    if packet in GATHERS:
        read -= max(0, _bytes([args[0]]) - _bytes(written))
    return read + _bytes(written)


def _convolution_backward_flops(
    grad_out: Tensor,
    image: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    *,
    out_val: Any,
) -> int:
    """Two per multiply-add: the gradients of image and weight cost as much as the forward pass, each.

    torch's own formula counts the weight's gradient as if there were one group: for a depthwise convolution, too much
    by a factor of its channels.
    """
    positions = image if transposed else grad_out
    forward = 2 * positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel()
    return forward * (output_mask[0] + output_mask[1])


def _packed_flops(*args: Any, out_val: Any) -> int:
    """Two per multiply-add of oneDNN's layers with packed weights: convolutions and linear layers."""
    weight = next(tensor for tensor in _tensors(args) if tensor.layout is not torch.strided)
    channels = out_val.shape[-1] if weight.dim() == 2 else out_val.shape[1]
    return 2 * (out_val.numel() // channels) * weight.numel()


def _packed_transposed_flops(image: Tensor, weight: Tensor, *args: Any, out_val: Any) -> int:
    return 2 * image.shape[0] * image.shape[2:].numel() * weight.numel()


def _packed_formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas of the private operations that this torch has."""
    formulas: dict[str, Callable[..., int]] = {
        '_convolution_pointwise': _packed_flops,
        '_convolution_pointwise_': _packed_flops,
        '_linear_pointwise': _packed_flops,
        '_convolution_transpose_pointwise': _packed_transposed_flops,
    }
    mkldnn = torch.ops.mkldnn
    return {getattr(mkldnn, name): formula for name, formula in formulas.items() if hasattr(mkldnn, name)}


# Where torch's registry has nothing, or what is wrong.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: _convolution_backward_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    **_packed_formulas(),
}
