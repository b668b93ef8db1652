"""A feature pyramid with the finer levels that a stride-16 backbone lacks."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..common.errors import UsageError
from ..registry import MODELS, register
from .composition import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    TransposedConv,
    autocast_disabled,
    compose_upsampling,
    supports_chain,
    with_ones,
)
from .pyramid import FeaturePyramid, Origin
from .training_forms import uses_fused_forms
from .unmodified import is_unmodified

EXTRA_CONVS = (False, True, 'on_input')


@register(MODELS)
class SHViTFPN(BaseModule):
    """The neck of the authors' detectors (called EfficientViTFPN in their code).

    Laterals and a nearest top-down sum as in FPN; finer levels by transposed convolutions of kernel 2 and stride 2,
    chained on the finest lateral after the sum; a 3x3 convolution on every level; coarser levels by 3x3 convolutions of
    stride 2 or by subsampling. There is no norm and no activation anywhere.

    State-dict keys are those of the published detection checkpoints. Mind one trap in them: ``extra_trans_convs`` run
    from coarse to fine, ``extra_fpn_convs`` from fine to coarse.

    Shapes:
        One (B, in_channels[i], H_i, W_i) per backbone stage, fine to coarse -> ``num_outs`` tensors
        (B, out_channels, H, W), fine to coarse, the first ``2 ** num_upsamples`` times as large as the first input.

    Args:
        in_channels: Channels of each input, ``backbone.out_channels``.
        out_channels: Channels of every output.
        num_outs: Number of levels returned: the inputs, ``num_upsamples`` finer ones, the rest coarser.
        num_upsamples: Number of finer levels, each of half the stride of the one before.
        add_extra_convs: How coarser levels are computed: ``'on_input'`` (or True) by 3x3 convolutions of stride 2, the
            first on the last input, the next on the level before it; False by subsampling the coarsest output.
        compose: Whether each finer level is computed by one composed layer where that saves operations and
            :mod:`.training_forms` allows it; the same up to rounding.
        init_cfg: mmengine's weight initialisation.

    Raises:
        UsageError: If an argument is out of range or the number of inputs differs from ``in_channels``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        num_upsamples: int = 2,
        add_extra_convs: bool | str = False,
        compose: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        self.in_channels = tuple(in_channels)
        num_coarser = num_outs - len(self.in_channels) - num_upsamples
        if num_upsamples < 0 or num_coarser < 0:
            raise UsageError(
                f'num_outs={num_outs} of SHViTFPN must be at least the {len(self.in_channels)} inputs plus '
                f'num_upsamples={num_upsamples}, which must not be negative'
            )
        if add_extra_convs not in EXTRA_CONVS:
            raise UsageError(f'add_extra_convs of SHViTFPN must be one of {EXTRA_CONVS}, but got {add_extra_convs!r}')
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.num_upsamples = num_upsamples
        self.num_coarser = num_coarser
        self.add_extra_convs = bool(add_extra_convs)
        self.compose = compose

        conv = partial(ConvModule, act_cfg=None)  # whose default is a ReLU
        self.lateral_convs = nn.ModuleList(conv(channels, out_channels, 1) for channels in self.in_channels)
        self.fpn_convs = nn.ModuleList(conv(out_channels, out_channels, 3, padding=1) for _ in self.in_channels)
        if self.add_extra_convs:
            for index in range(num_coarser):
                channels = out_channels if index else self.in_channels[-1]
                self.fpn_convs.append(conv(channels, out_channels, 3, stride=2, padding=1))
        self.extra_trans_convs = nn.ModuleList(
            conv(out_channels, out_channels, 2, stride=2, conv_cfg=dict(type='deconv')) for _ in range(num_upsamples)
        )
        self.extra_fpn_convs = nn.ModuleList(
            conv(out_channels, out_channels, 3, padding=1) for _ in range(num_upsamples)
        )

    def out_strides(self, in_strides: Sequence[int]) -> tuple[int, ...]:
        """Return the stride of each output, fine to coarse, given those of the inputs."""
        finer = [in_strides[0] // 2**power for power in range(self.num_upsamples, 0, -1)]
        coarser = [in_strides[-1] * 2**power for power in range(1, self.num_coarser + 1)]
        return (*finer, *in_strides, *coarser)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(inputs) != len(self.in_channels):
            raise UsageError(f'SHViTFPN was made for {len(self.in_channels)} inputs, but got {len(inputs)}')
        laterals = top_down([conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        coarser = coarser_levels(self.fpn_convs[len(inputs) :], self.num_coarser, inputs[-1], outs[-1])
        finer, origin = self._finer(laterals[0])
        levels = (*finer, *outs, *coarser)
        return levels if origin is None else FeaturePyramid(levels, origin)

    def supports_composing(self) -> bool:
        """Return whether :meth:`composed` computes what the layers of the finer levels do, as they are now.

        It does not if a layer was replaced, or has hooks, pruning or adapters, which need the layer to be called.
        """
        layers = (*self.extra_trans_convs, *self.extra_fpn_convs)
        return all(map(is_bare, layers)) and supports_chain(
            convolutions(self.extra_trans_convs), convolutions(self.extra_fpn_convs)
        )

    def composed(self) -> list[TransposedConv]:
        """Return the transposed convolution that computes each finer level from the finest lateral, fine to coarse."""
        upsamplings = convolutions(self.extra_trans_convs)
        return [
            compose_upsampling(upsamplings[: self.num_upsamples - index], conv)
            for index, conv in enumerate(convolutions(self.extra_fpn_convs))
        ]

    def _finer(self, x: Tensor) -> tuple[list[Tensor], Origin | None]:
        """Return the finer levels computed from ``x``, and the origin of the finest one if a head may use it."""
        positions = x.shape[0] * x.shape[2] * x.shape[3]
        pays = composing_levels_pays(self.out_channels, self.num_upsamples, positions)
        if not (self.compose and pays and uses_fused_forms(x.device) and self.supports_composing()):
            outs: list[Tensor] = []
            for upsample, conv in zip(self.extra_trans_convs, reversed(self.extra_fpn_convs), strict=True):
                x = upsample(x)
                outs.insert(0, conv(x))
            return outs, None
        with autocast_disabled(x.device):
            composed = self.composed()
        source = with_ones(x)
        outs = [TransposedConv.__call__(conv, source) for conv in composed]  # torch 2.6's compiler knows no other call
        # Starting from the source saves an RPN operations only if the finest level is more than twice as large.
        useful_to_rpn = self.num_upsamples > 1
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return outs, Origin(source, composed[0]) if useful_to_rpn and not traced else None


def is_bare(module: Any) -> bool:
    """Return whether ``module`` is mmcv's ``ConvModule`` around an unchanged convolution and nothing else."""
    return (
        is_unmodified(module, ConvModule)
        and not (module.with_norm or module.with_activation or module.with_explicit_padding)
        and is_unmodified(module.conv, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
    )


def convolutions(modules: Iterable[Any]) -> list[Any]:
    """Return the convolutions in mmcv's ``ConvModule``s."""
    return [module.conv for module in modules]


def composing_levels_pays(channels: int, num_upsamples: int, positions: int) -> bool:
    """Return whether composing the chain of every finer level and applying it takes fewer operations than the chains.

    ``positions`` are those of the finest lateral, in all images of the batch.
    """
    scales = [2**power for power in range(1, num_upsamples + 1)]
    chained = positions * sum(scale**2 * (1 + 9) for scale in scales)  # per pair of channels: 2x2 transposed, then 3x3
    applied = positions * sum((scale + 2) ** 2 for scale in scales)
    composed = (channels + 1) * sum(9 * (scale + 2) ** 2 + scale**2 for scale in scales)
    return applied + composed < chained


def top_down(laterals: list[Tensor]) -> list[Tensor]:
    """Add to each level the next coarser one, sum included, enlarged by repetition; fine to coarse."""
    for index in range(len(laterals) - 1, 0, -1):
        finer = laterals[index - 1]
        laterals[index - 1] = finer + interpolate(laterals[index], size=finer.shape[2:], mode='nearest')
    return laterals


def coarser_levels(convs: Iterable[nn.Module], number: int, last_input: Tensor, last_out: Tensor) -> list[Tensor]:
    """Return ``number`` levels above the last: by ``convs`` on the last input, or by subsampling the last output."""
    outs: list[Tensor] = []
    for conv in convs:
        outs.append(conv(outs[-1] if outs else last_input))
    while len(outs) < number:
        outs.append((outs[-1] if outs else last_out)[:, :, ::2, ::2])
    return outs
