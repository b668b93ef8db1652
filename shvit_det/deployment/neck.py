"""The neck for inference: every finer level straight from the finest lateral, by one transposed convolution."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..composition import TransposedConv, with_ones
from ..neck import SHViTFPN, coarser_levels, convolutions, top_down
from .layers import plain
from .packed import in_layout
from .winograd import WinogradTransposedConv


class FusedSHViTFPN(nn.Module):
    """A trained :class:`shvit_det.SHViTFPN` with its finer levels composed.

    Written out, a finer level costs a convolution at its own resolution on top of the transposed ones; composed, all of
    it is one kernel on the stride-16 lateral, a quarter of the operations for stride 4.

    Args:
        source: The trained neck; it is not changed.
        channels_last: Whether inputs are brought into this layout, which all further results then have.
        finer: What :func:`compose_finer` returned for the source, which takes seconds; found here if None.

    Shapes:
        As the source's.
    """

    def __init__(
        self, source: SHViTFPN, channels_last: bool = True, finer: Sequence[TransposedConv] | None = None
    ) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.out_channels = source.out_channels
        self.num_coarser = source.num_coarser
        self.lateral_convs = nn.ModuleList(plain(conv) for conv in convolutions(source.lateral_convs))
        self.fpn_convs = nn.ModuleList(plain(conv) for conv in convolutions(source.fpn_convs))
        dtype = next(source.parameters()).dtype
        self.finer_convs = nn.ModuleList(
            WinogradTransposedConv(
                composed.weight.to(dtype), composed.bias.to(dtype), composed.stride, composed.padding
            )
            for composed in (compose_finer(source) if finer is None else finer)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.levels_and_source(inputs)[0]

    def levels_and_source(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the levels, fine to coarse, and what the finer ones are made of: the finest lateral and ones."""
        inputs = [in_layout(x, self.channels_last) for x in inputs]
        laterals = top_down([conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        coarser = coarser_levels(self.fpn_convs[len(inputs) :], self.num_coarser, inputs[-1], outs[-1])
        finest = with_ones(laterals[0])
        return (*(conv(finest) for conv in self.finer_convs), *outs, *coarser), finest


def compose_finer(neck: SHViTFPN) -> list[TransposedConv]:
    """Return how each finer level is made of the finest lateral in one step, fine to coarse; computed in float64."""
    double = copy.deepcopy(neck).double()
    with torch.no_grad():
        return double.composed()
