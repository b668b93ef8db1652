"""The feature maps that the neck passes to a head, with the smaller map that the finest was computed from."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import register_pytree_node  # the one of torch.utils that knows tuples; has no public name


class Origin(NamedTuple):
    """The smaller map from which the neck computes its finest level, for a head that starts from there too."""

    source: Tensor  # the neck's finest lateral, its last channel of ones
    conv: Any  # that computes the level: a composition.TransposedConv, or a layer of a deployed neck


class FeaturePyramid(tuple[Tensor, ...]):
    """Feature maps, fine to coarse, that know the origin of the finest until a map is taken out.

    Code that takes maps out of the tuple may change them in place, watch their gradients or replace them. A head that
    starts from the origin would miss that, so taking a map out drops the origin. Slices, lists, copies and files of the
    tuple have no origin. The trained and the deployed neck return it, and the RPN heads read the origin.
    """

    origin: Origin | None

    def __new__(cls, levels: Iterable[Tensor], origin: Origin | None = None) -> 'FeaturePyramid':
        pyramid = super().__new__(cls, levels)
        pyramid.origin = origin
        return pyramid

    def peek(self) -> tuple[Tensor, ...]:
        """Return the maps and keep the origin; the caller must not change the maps."""
        return super().__getitem__(slice(None))

    def __iter__(self) -> Iterator[Tensor]:
        self.origin = None
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        self.origin = None
        return super().__getitem__(index)

    def __add__(self, other: Any) -> Any:
        return tuple(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + tuple(self)

    def __reduce__(self) -> tuple:
        return tuple, (tuple(self),)


register_pytree_node(FeaturePyramid, lambda pyramid: (list(pyramid), None), lambda levels, _: tuple(levels))
