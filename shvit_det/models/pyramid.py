"""The feature maps that a neck hands to a head, with what the finest of them was made of."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import register_pytree_node  # the one of torch.utils that knows tuples; has no public name

from .composition import TransposedConv


class Origin(NamedTuple):
    """What a feature map was made of, for a layer that would rather start from there."""

    source: Tensor
    conv: TransposedConv


class FeaturePyramid(tuple[Tensor, ...]):
    """Feature maps, fine to coarse, that say what the finest was made of as long as nobody has had them in hand.

    Whoever takes maps out of the tuple may change them in place, watch their gradients or put others in their place.
    A layer that starts from the origin would not see any of it; so the first who takes one ends the origin. What is
    made of the tuple (a slice, a list, a copy, a file) has none.

    Args:
        levels: The maps.
        origin: What the finest was made of.
    """

    origin: Origin | None

    def __new__(cls, levels: Iterable[Tensor], origin: Origin | None = None) -> 'FeaturePyramid':
        made = super().__new__(cls, levels)
        made.origin = origin
        return made

    def peek(self) -> tuple[Tensor, ...]:
        """Return the maps to somebody who only looks at them, and keep the origin."""
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
