"""The backbone for inference."""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.execution_plan import CannotPlanError, ExecutionPlan, PlanCache
from ..models.backbone import SHViT
from ..models.layers import Block, Downsample, PatchEmbed, Stage, check_images
from ..models.unmodified import has_any_global_hook, is_unmodified
from .backends.backend_choice import Backend
from .backends.deployed_layer import ConstantWeights, DeployedLayer, WeightChanges, in_layout, own_kernels, runs_eagerly
from .layers import fold, fuse, is_unmodified_conv_norm
from .precision import without_autocast


class FusedSHViT(ConstantWeights):
    """A trained :class:`shvit_det.SHViT` with all norms and depthwise residuals folded in; shapes are the source's.

    With ``channels_last``, images are brought into this layout, which all further results then have. ``left`` gets the
    layers that stay as they are, because they are not exactly those of SHViT; they are the source's own.
    """

    def __init__(self, source: SHViT, channels_last: bool, left: list[nn.Module]) -> None:
        super().__init__()
        self.arch = source.arch
        self.out_indices = source.out_indices
        self.out_channels = source.out_channels
        self.out_strides = source.out_strides
        self.channels_last = channels_last
        self.patch_embed = _fused_stem(source.patch_embed, left)
        self.stages = nn.ModuleList(_fused_stage(stage, left) for stage in source.stages)
        self._plans = PlanCache(self._planned_outputs)

    @without_autocast
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        check_images(x)
        if (plan := self._plan_for(x)) is not None:
            return plan.run(own_kernels(), x)
        return tuple(self._outputs(in_layout(x, self.channels_last)))

    def _outputs(self, x: Any) -> list[Any]:
        x = self.patch_embed(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(x)
        return outs

    def _plan_for(self, x: Tensor) -> ExecutionPlan | None:
        """Return the execution plan for ``x``; None if the layers are to be called one by one.

        They are where our own kernels do not compute all of them, where layers have hooks, and while torch's operations
        are being recorded.
        """
        in_nhwc = x.is_contiguous(memory_format=torch.channels_last)
        if not runs_eagerly(x) or not (in_nhwc or x.is_contiguous()):
            return None
        layers = _descendants(self)
        first = next((layer for layer in layers if isinstance(layer, DeployedLayer)), None)
        if first is None or _are_watched(layers) or first.choice_for_input(x) != (Backend.KERNELS, x.dtype):
            return None
        return self._plans.get(x, made_for=(layers, WeightChanges.count))

    def _planned_outputs(self, x: Any) -> list[Any]:
        if not all(map(_is_ours, _descendants(self))):
            raise CannotPlanError
        return self._outputs(x)


def _descendants(module: nn.Module) -> list[nn.Module]:
    """Return all modules below one; ``modules()`` takes several times as long."""
    found = []
    for child in module._modules.values():
        if child is not None:
            found.append(child)
            if child._modules:
                found += _descendants(child)
    return found


def _is_ours(layer: nn.Module) -> bool:
    """Return whether a layer may be given a plan's stand-in for a feature map."""
    return type(layer) in (nn.Sequential, nn.ModuleList) or type(layer).__module__.startswith(__package__)


def _are_watched(layers: list[nn.Module]) -> bool:
    """Return whether layers have hooks, or something in the place of their ``forward``."""
    return has_any_global_hook() or any(
        layer._forward_hooks or layer._forward_pre_hooks or 'forward' in layer.__dict__ for layer in layers
    )


def _fused_stem(source: Any, left: list[nn.Module]) -> nn.Sequential:
    """The convolutions of the stem, all but the last with their ReLU."""
    if not is_unmodified(source, PatchEmbed):
        left.append(source)
        return nn.Sequential(source)
    layers: list[nn.Module] = []
    for module, following in zip_longest(source, list(source)[1:]):
        if is_unmodified_conv_norm(module):
            layers.append(fold(module, relu=following is not None and is_unmodified(following, nn.ReLU)))
        elif not (is_unmodified(module, nn.ReLU) and getattr(layers[-1] if layers else None, 'relu', False)):
            left.append(module)
            layers.append(module)
    return nn.Sequential(*layers)


def _fused_stage(source: Any, left: list[nn.Module]) -> nn.Sequential:
    if not is_unmodified(source, Stage) or not is_unmodified(source.blocks, nn.Sequential):
        left.append(source)
        return nn.Sequential(source)
    layers: list[nn.Module] = []
    for part in (source.downsample, *source.blocks):
        if is_unmodified(part, Downsample):
            layers += part
        elif is_unmodified(part, Block):
            layers += (part.conv, part.mixer, part.ffn)
        else:
            layers.append(part)
    layers = [layer for layer in layers if not is_unmodified(layer, nn.Identity)]
    fused = [fuse(layer) for layer in layers]
    left += [layer for layer, form in zip(layers, fused, strict=True) if form is None]
    return nn.Sequential(*(form or layer for layer, form in zip(layers, fused, strict=True)))
