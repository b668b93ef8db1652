"""The backbone for inference."""

from typing import Any

from torch import Tensor, nn

from ..backbone import SHViT
from ..layers import Downsample, PatchEmbed
from .layers import fold, fuse
from .packed import in_layout
from .plans import Plans


class FusedSHViT(nn.Module):
    """A trained :class:`shvit_det.SHViT` with all norms and depthwise residuals folded in.

    Args:
        source: The trained backbone; it is not changed.
        channels_last: Whether images are brought into this layout, which all further results then have.

    Shapes:
        As the source's: (B, 3, H, W) -> one (B, C, H / stride, W / stride) per stage that it returns.
    """

    def __init__(self, source: SHViT, channels_last: bool = True) -> None:
        super().__init__()
        self.arch = source.arch
        self.out_indices = source.out_indices
        self.out_channels = source.out_channels
        self.out_strides = source.out_strides
        self.channels_last = channels_last
        self.patch_embed = _fused_stem(source.patch_embed)
        self.stages = nn.ModuleList(_fused_stage(stage) for stage in source.stages)
        self._plans = Plans(self, self._outputs)

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


def _fused_stem(source: PatchEmbed) -> nn.Sequential:
    """The convolutions of the stem, all but the last with their ReLU."""
    convs = [module for module in source if not isinstance(module, nn.ReLU)]
    return nn.Sequential(*(fold(conv, relu=conv is not convs[-1]) for conv in convs))


def _fused_stage(source: Any) -> nn.Sequential:
    layers = list(source.downsample) if isinstance(source.downsample, Downsample) else []
    for block in source.blocks:
        layers += [block.conv, block.mixer, block.ffn]
    return nn.Sequential(*(fuse(layer) for layer in layers if not isinstance(layer, nn.Identity)))
