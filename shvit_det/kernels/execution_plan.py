"""Execution plans: all layers of a network as a list of steps that the kernels compute in one call.

Python takes some 30 microseconds for each layer, and longer when something else ran in between: of a backbone with
70 layers that is some percent. A plan is recorded by running a network on a :class:`PlannedMap` instead of a tensor,
and is for one size of images.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .interface import Step, StepKind
from .memory import new_map, take
from .packed_weights import PackedWeights

# A step of the first kind and the next of the second are computed together, some rows at a time.
JOINED = {
    (StepKind.INTERLEAVE, StepKind.CONVOLVE),
    (StepKind.CONVOLVE, StepKind.CONVOLVE),
    (StepKind.LINEAR, StepKind.DEPTHWISE),
}
ALIGNED = 64  # bytes
MOST = 64  # plans that a cache keeps


class CannotPlanError(Exception):
    """A network has a layer that the kernels do not compute."""


class PlannedMap:
    """Takes the place of a feature map while a plan is recorded: it has a shape and a data type, and no numbers.

    ``index`` is its place in the plan's list of maps. Only images may be ``planar``, which is in NCHW.
    """

    def __init__(self, plan: 'ExecutionPlan', index: int, shape: Sequence[int], planar: bool = False) -> None:
        self.plan = plan
        self.index = index
        self.shape = tuple(shape)
        self.planar = planar
        self.dtype = plan.dtype
        self.device = torch.device('cpu')
        self.ndim = len(self.shape)

    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """Stop at any operation of torch: a plan has none."""
        raise CannotPlanError

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        raise CannotPlanError

    def _cannot(self, *_: Any) -> Any:
        raise CannotPlanError

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _cannot


class ExecutionPlan:
    """The steps of a network for images like these.

    ``network`` is a function that returns the results for images, by calling layers that call the kernels.
    """

    def __init__(self, network: Callable[[Any], Sequence[Any]], images: Tensor) -> None:
        self.dtype = images.dtype
        planar = not images.is_contiguous(memory_format=torch.channels_last)
        self._maps = [PlannedMap(self, 0, images.shape, planar)]
        self._steps: list[Step] = []
        self._weights: list[tuple[PackedWeights, ...]] = []
        self._results = network(self._maps[0])
        uses = self._uses()
        self._join(uses)
        self._offsets, self._bytes = self._places(uses)
        self._array = (Step * len(self._steps))(*self._steps)

    def add(
        self, step: Step, layers: tuple[PackedWeights, ...], x: PlannedMap, residual: PlannedMap | None
    ) -> PlannedMap:
        """Append a step and return its result."""
        if step.own_bytes:
            raise CannotPlanError
        shape = step.batch, step.out_channels, step.out_height, step.out_width
        out = PlannedMap(self, len(self._maps), shape)
        step.x, step.residual, step.out = x.index, -1 if residual is None else residual.index, out.index
        self._maps.append(out)
        self._steps.append(step)
        self._weights.append(layers)  # their addresses are in the step
        return out

    def run(self, kernels: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the network's results for images of the size that was planned for."""
        memory = take(self._bytes)
        addresses = [memory.data_ptr() + offset for offset in self._offsets]
        addresses[0] = images.data_ptr()
        results = []
        for planned in self._results:
            results.append(new_map(images, *planned.shape))
            addresses[planned.index] = results[-1].data_ptr()
        kernels.run(self._array, len(self._steps), addresses)
        return tuple(results)

    def _uses(self) -> dict[int, list[int]]:
        """Return which steps read each map; those that the network returns count as read after the last one."""
        uses: dict[int, list[int]] = {index: [] for index in range(len(self._maps))}
        for number, step in enumerate(self._steps):
            uses[step.x].append(number)
            if step.residual >= 0:
                uses[step.residual].append(number)
        for result in self._results:
            uses[result.index].append(len(self._steps))
        return uses

    def _join(self, uses: dict[int, list[int]]) -> None:
        for number, (step, following) in enumerate(zip(self._steps, self._steps[1:], strict=False)):
            step.joined = (
                (step.kind, following.kind) in JOINED
                and uses[step.out] == [number + 1]
                and step.residual < 0
                and following.x == step.out
            )

    def _places(self, uses: dict[int, list[int]]) -> tuple[list[int], int]:
        """Return where each map lies in the memory of a run, and how many bytes that is.

        Maps that are never there at the same time may share a place.
        """
        groups = [0]  # steps of one group run side by side
        for step in self._steps:
            groups.append(groups[-1] + (not step.joined))
        inside = {step.out for step in self._steps if not step.joined} - {result.index for result in self._results}
        lives = {
            step.out: (groups[number], groups[max(uses[step.out], default=number)])
            for number, step in enumerate(self._steps)
        }
        sizes = [-(-planned.nbytes() // ALIGNED) * ALIGNED for planned in self._maps]
        offsets = [0] * len(self._maps)
        placed: list[int] = []
        for index in sorted(inside, key=lambda index: -sizes[index]):
            first, last = lives[index]
            offset = 0
            for other in sorted(placed, key=lambda other: offsets[other]):
                both = lives[other][0] <= last and first <= lives[other][1]
                if both and offset + sizes[index] > offsets[other]:
                    offset = max(offset, offsets[other] + sizes[other])
            offsets[index] = offset
            placed.append(index)
        return offsets, max((offsets[index] + sizes[index] for index in placed), default=0)


class PlanCache:
    """The plans of a network, one for each size of images; copies and files do not carry them."""

    def __init__(self, network: Callable[[Any], Sequence[Any]]) -> None:
        self._network = network
        self._plans: OrderedDict[tuple, ExecutionPlan | None] = OrderedDict()
        self._made_for: Any = None

    def get(self, images: Tensor, made_for: Any) -> ExecutionPlan | None:
        """Return the plan for images, None where the network has a layer that the kernels do not compute.

        When ``made_for``, what plans depend on besides the images, has changed, all plans are recorded again.
        """
        if made_for != self._made_for:
            self._plans, self._made_for = OrderedDict(), made_for
        key = tuple(images.shape), images.dtype, images.is_contiguous(memory_format=torch.channels_last)
        plans = self._plans
        if key not in plans:
            try:
                plans[key] = ExecutionPlan(self._network, images)
            except CannotPlanError:
                plans[key] = None
            if len(plans) > MOST:
                plans.popitem(last=False)
        return plans.get(key)  # another thread may have dropped it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_plans': OrderedDict(), '_made_for': None}
