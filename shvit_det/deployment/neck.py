"""The neck for inference: every finer level straight from the finest lateral, by one transposed convolution."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.composition import TransposedConv, with_ones
from ..models.neck import SHViTFPN, coarser_levels, convolutions, is_bare, top_down
from ..models.pyramid import FeaturePyramid, Origin
from ..models.unmodified import is_unmodified
from .backends.deployed_layer import ConstantWeights, in_layout
from .backends.winograd import WinogradTransposedConv
from .layer_replacement import deployed_conv, is_simple
from .precision import without_autocast


def supports_neck(neck: Any) -> bool:
    """Return whether a module is exactly a :class:`shvit_det.SHViTFPN`, with plain convolutions and nothing else."""
    if not is_unmodified(neck, SHViTFPN) or not (neck.supports_composing() or neck.num_upsamples == 0):
        return False
    return all(is_bare(module) and is_simple(module.conv) for module in (*neck.lateral_convs, *neck.fpn_convs))


class FusedSHViTFPN(ConstantWeights):
    """A trained :class:`shvit_det.SHViTFPN` with its finer levels composed.

    Layer by layer, a finer level costs transposed convolutions and a convolution at its own resolution. Composed, it is
    one kernel on the stride-16 lateral: a quarter of the operations for stride 4. Shapes are the source's. ``finer`` is
    what :func:`compose_finer` returned for it; ``channels_last`` is as in :class:`.backbone.FusedSHViT`.
    """

    compiled_method = 'levels_and_source'

    def __init__(self, source: SHViTFPN, channels_last: bool, finer: Sequence[TransposedConv]) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.out_channels = source.out_channels
        self.num_coarser = source.num_coarser
        self.lateral_convs = nn.ModuleList(deployed_conv(conv) for conv in convolutions(source.lateral_convs))
        self.fpn_convs = nn.ModuleList(deployed_conv(conv) for conv in convolutions(source.fpn_convs))
        dtype = next(source.parameters()).dtype
        self.finer_convs = nn.ModuleList(composed_layer(composed, dtype) for composed in finer)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        levels, source = self.levels_and_source(inputs)
        if len(self.finer_convs) < 2 or torch.compiler.is_compiling():  # which follows plain tuples
            return levels
        return FeaturePyramid(levels, Origin(source, self.finer_convs[0]))

    @without_autocast
    def levels_and_source(self, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the levels, fine to coarse, and the source of the finer ones: the finest lateral and ones."""
        inputs = [in_layout(x, self.channels_last) for x in inputs]
        laterals = top_down([conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        coarser = coarser_levels(self.fpn_convs[len(inputs) :], self.num_coarser, inputs[-1], outs[-1])
        source = with_ones(laterals[0])
        return (*(conv(source) for conv in self.finer_convs), *outs, *coarser), source


def compose_finer(neck: SHViTFPN) -> list[TransposedConv]:
    """Return the layer that computes each finer level from the finest lateral, fine to coarse, in float64.

    It takes seconds.
    """
    double = copy.deepcopy(neck).double()
    with torch.no_grad():
        return double.composed()


def composed_layer(composed: TransposedConv, dtype: torch.dtype, relu: bool = False) -> WinogradTransposedConv:
    """Return a composed transposed convolution as a deployed layer in a data type."""
    weight, bias = composed.weight.to(dtype), composed.bias.to(dtype)
    layer = WinogradTransposedConv(weight, bias, composed.stride, composed.padding, relu)
    layer.with_ones = True
    return layer
