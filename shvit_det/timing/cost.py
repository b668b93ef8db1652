"""The cost of a detector's parts: multiply-adds (MACs), bytes moved and memory, counted while they run.

MACs are half of the FLOPs in ``torch.utils.flop_counter``. As there, biases are not counted, padding is counted like
the image, and masked attention like full attention. Operations outside of torch's dispatcher, such as mmcv's compiled
ones, are not counted.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .record import PartCost, no_cost

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn

ALLOCATIONS = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
# Operations that do not read their first argument, or read only the elements that they return, or touch only the
# elements that they write.
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.bernoulli_}
GATHERS = {aten.index, aten.index_select, aten.gather, aten.embedding, aten.take}
SCATTERS = {aten.index_put_}


def count_parameters(modules_by_part: Mapping[str, Sequence[nn.Module]]) -> dict[str, int]:
    """Return the number of parameters of each part; shared parameters are counted in the first one."""
    seen: set[int] = set()
    counts = {}
    for part, modules in modules_by_part.items():
        own = {id(p): p.numel() for module in modules for p in module.parameters() if id(p) not in seen}
        seen.update(own)
        counts[part] = sum(own.values())
    return counts


class CostCounter(TorchDispatchMode):
    """Counts the cost of each part inside one ``with`` block, without any effect on the results.

    The bytes moved are what each operation by itself reads and writes. The memory is that of the tensors that were
    created inside the block and are alive, on any device. The peak of a part is the highest total while it runs, and
    includes tensors of earlier parts. Which part is running, ``current_part`` is asked at every operation.
    """

    def __init__(self, current_part: Callable[[], str]) -> None:
        super().__init__()
        self._current_part = current_part
        self._parts: dict[str, PartCost] = {}
        self._alive: dict[int, tuple[weakref.ref, int]] = {}  # storages by address, with their size
        self._alive_bytes = 0

    def part_costs(self, parameters: Mapping[str, int]) -> list[PartCost]:
        """Return the cost of each part, in the order in which they ran; parts that did not run stand at the end.

        ``parameters`` is what :func:`count_parameters` returns.
        """
        for name, count in parameters.items():
            if count:
                self._part(name)['parameters'] = count
        return list(self._parts.values())

    def _part(self, name: str) -> PartCost:
        return self._parts.setdefault(name, no_cost(name))

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count it; of an operation that torch composes of others, count those.

        Composed operations arrive here only without autograd. ``OpOverload.decompose`` would prefer decompositions
        written in Python, which do not compute the same bits as those that run without a counter.
        """
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), DispatchKey.CompositeImplicitAutograd):
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        part = self._part(self._current_part())
        result = func(*args, **kwargs)
        self._count(part, func, args, kwargs, result)
        return result

    def _count(
        self, part: PartCost, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        packet = func.overloadpacket
        inputs = _tensors((args, kwargs))
        known = {_storage_address(tensor) for tensor in inputs}
        created = [tensor for tensor in _tensors(result) if _storage_address(tensor) not in known]
        for tensor in created:
            self._track(tensor)
        part['peak_memory_bytes'] = max(part['peak_memory_bytes'], self._alive_bytes)
        changed = [] if torch.Tag.inplace_view in func.tags else _changed(func, args, kwargs)
        if packet in ALLOCATIONS or not (created or changed):  # a view, or a query such as a size
            return
        part['moved_bytes'] += _moved_bytes(func, args, kwargs, written=created + changed)
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None:
            part['uncounted'][str(packet)] = part['uncounted'].get(str(packet), 0) + 1
        else:
            part['macs'] += formula(*args, **kwargs, out_val=result) // 2

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
    """Return a number that identifies a tensor's storage, or the tensor itself if it is packed or sparse."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _changed(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments into which an operation writes."""
    schema = func._schema.arguments
    named = dict(zip((argument.name for argument in schema), args, strict=False)) | kwargs
    return _tensors([named.get(a.name) for a in schema if a.alias_info is not None and a.alias_info.is_write])


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of the tensors' elements; those that an expanded tensor repeats count once."""
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


def _convolution_backward_flops(grad_out: Tensor, image: Tensor, weight: Tensor, *args: Any, out_val: Any) -> int:
    """Return the FLOPs of the gradients of image and weight, each of which costs as much as the forward pass.

    torch's own formula ignores the groups in the weight's gradient, and so counts too much for grouped convolutions.
    """
    *_, transposed, _output_padding, _groups, output_mask = args
    positions = image if transposed else grad_out
    forward = 2 * positions.shape[0] * math.prod(positions.shape[2:]) * weight.numel()
    return forward * (output_mask[0] + output_mask[1])


def _packed_flops(*args: Any, out_val: Any) -> int:
    """Return the FLOPs of oneDNN's convolutions and linear layers with packed weights."""
    weight = next(tensor for tensor in _tensors(args) if tensor.layout is not torch.strided)
    channels = out_val.shape[-1] if weight.dim() == 2 else out_val.shape[1]
    return 2 * (out_val.numel() // channels) * weight.numel()


def _packed_transposed_flops(image: Tensor, weight: Tensor, *args: Any, out_val: Any) -> int:
    return 2 * image.shape[0] * image.shape[2:].numel() * weight.numel()


def _embedding_bag_flops(table: Tensor, rows: Tensor, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """Return the FLOPs of weighted sums of rows, of which RoIAlign is made on a CPU."""
    return 2 * rows.numel() * table.shape[1]


PRIVATE_FORMULAS: dict[str, Callable[..., int]] = {  # of operations that not every torch has
    '_convolution_pointwise': _packed_flops,
    '_convolution_pointwise_': _packed_flops,
    '_linear_pointwise': _packed_flops,
    '_convolution_transpose_pointwise': _packed_transposed_flops,
}
# Formulas that torch's registry lacks, or that are wrong there.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution_backward: _convolution_backward_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    aten._embedding_bag: _embedding_bag_flops,
    aten._embedding_bag_forward_only: _embedding_bag_flops,
    **{getattr(mkldnn, name): formula for name, formula in PRIVATE_FORMULAS.items() if hasattr(mkldnn, name)},
}
