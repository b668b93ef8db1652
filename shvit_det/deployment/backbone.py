"""The backbone for inference."""

from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from ..models.backbone import SHViT
from ..models.layers import Block, Downsample, PatchEmbed, Stage
from ..models.unmodified import is_stock
from .backends.packed import Constants, in_layout
from .backends.plans import Plans
from .layers import fold, foldable, fuse
from .precision import without_autocast


class FusedSHViT(Constants):
    """A trained :class:`shvit_det.SHViT` with all norms and depthwise residuals folded in.

    Args:
        source: The trained backbone; it is not changed, but layers that cannot be fused are taken from it.
        channels_last: Whether images are brought into this layout, which all further results then have.
        left: Gets the layers that stay as they are, because they are not exactly those of SHViT.

    Shapes:
        As the source's: (B, 3, H, W) -> one (B, C, H / stride, W / stride) per stage that it returns.
    """

    def __init__(self, source: SHViT, channels_last: bool = True, left: list[nn.Module] | None = None) -> None:
        super().__init__()
        left = [] if left is None else left
        self.arch = source.arch
        self.out_indices = source.out_indices
        self.out_channels = source.out_channels
        self.out_strides = source.out_strides
        self.channels_last = channels_last
        self.patch_embed = _fused_stem(source.patch_embed, left)
        self.stages = nn.ModuleList(_fused_stage(stage, left) for stage in source.stages)
        self._plans = Plans(self, self._outputs)

    @without_autocast
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        PatchEmbed.check_input(x)
        if (run := self._plans.find(x)) is not None:
            return run(x)
        return tuple(self._outputs(in_layout(x, self.channels_last)))

    def _outputs(self, x: Any) -> list[Any]:
        x = self.patch_embed(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(x)
        return outs


def _fused_stem(source: Any, left: list[nn.Module]) -> nn.Sequential:
    """The convolutions of the stem, all but the last with their ReLU."""
    if not is_stock(source, PatchEmbed):
        left.append(source)
        return nn.Sequential(source)
    made: list[nn.Module] = []
    for module, following in zip_longest(source, list(source)[1:]):
        if foldable(module):
            made.append(fold(module, relu=following is not None and is_stock(following, nn.ReLU)))
        elif not (is_stock(module, nn.ReLU) and getattr(made[-1] if made else None, 'relu', False)):
            left.append(module)
            made.append(module)
    return nn.Sequential(*made)


def _fused_stage(source: Any, left: list[nn.Module]) -> nn.Sequential:
    if not is_stock(source, Stage) or not is_stock(source.blocks, nn.Sequential):
        left.append(source)
        return nn.Sequential(source)
    layers: list[nn.Module] = []
    for part in (source.downsample, *source.blocks):
        if is_stock(part, Downsample):
            layers += part
        elif is_stock(part, Block):
            layers += (part.conv, part.mixer, part.ffn)
        else:
            layers.append(part)
    made: list[nn.Module] = []
    for layer in layers:
        if is_stock(layer, nn.Identity):
            continue
        fused = fuse(layer)
        if fused is None:
            left.append(layer)
        made.append(layer if fused is None else fused)
    return nn.Sequential(*made)
