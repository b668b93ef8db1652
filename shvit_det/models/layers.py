"""The layers of SHViT (arXiv 2401.16456, Sections 3.1 to 3.3), small pieces first.

Attribute names become state-dict keys. The short ones (``c``, ``bn``, ``m``, ``pw1``, ``qkv``, ``se.fc1``, ...) are
those of the published checkpoints, so that the ecosystem's files load; everything else has full words. Where no
shapes are given, they are (B, C, H, W) -> (B, C, H, W).
"""

from itertools import pairwise

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ..common.errors import UsageError
from .batch_norm_folding import folded_weights
from .training_forms import uses_fused_forms
from .unmodified import is_unmodified


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm.

    A norm in eval mode is only a scale and a shift of each channel. Where gradients are computed with it, as in the
    authors' detection training, it is folded into the kernel at each step, which saves a pass over the activations in
    each direction and the memory to keep them. The layer computes convolution and norm one after the other where
    :mod:`.training_forms` says so, with ``fold_fixed = False``, and where hooks, pruning or a
    replaced layer need both to be called.

    Args:
        norm_weight_init: Initial scale of the norm; 0 closes a residual branch at the start of training.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) for odd kernels.
    """

    fold_fixed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_weight_init: float = 1.0,
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, norm_weight_init)

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.c, self.bn
        # A traced graph is used with gradients and without them: it gets the two separate operations.
        differentiated = torch.is_grad_enabled() and not torch.jit.is_tracing()
        if norm.training or not self.fold_fixed or not differentiated or not supports_folding_in_training(conv, norm):
            return norm(conv(x))
        weight, bias = folded_weights(conv, norm)
        return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def supports_folding_in_training(conv: nn.Module, norm: nn.Module) -> bool:
    """Return whether :class:`ConvNorm` may fold its norm into the kernel at each training step.

    Both layers have to be unmodified, in float32 or float64, and :mod:`.training_forms` has to allow fused forms on
    their device. In half precision, the product of scale and kernel would be rounded; a separate norm has no such
    error. A ``SyncBatchNorm`` is supported too: in eval mode it computes what a ``BatchNorm2d`` does.
    """
    if not (is_unmodified(conv, nn.Conv2d) and is_unmodified(norm, nn.BatchNorm2d, nn.SyncBatchNorm)):
        return False
    factors = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    dtypes = {None if factor is None else factor.dtype for factor in factors}
    if conv.bias is not None or conv.padding_mode != 'zeros' or dtypes not in ({torch.float32}, {torch.float64}):
        return False
    return uses_fused_forms(conv.weight.device)


class Residual(nn.Module):
    """``x + m(x)``, the branch dropped for whole samples with ``drop_path`` while training."""

    def __init__(self, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.m = branch
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.m(x))


def depthwise(channels: int, norm_weight_init: float) -> ConvNorm:
    """Return the 3x3 depthwise convolution that mixes positions, in blocks and around patch merging."""
    return ConvNorm(channels, channels, kernel_size=3, groups=channels, norm_weight_init=norm_weight_init)


class FeedForward(nn.Module):
    """Two 1x1 convolutions around a ReLU, between them twice the channels; the second starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pw1 = ConvNorm(channels, channels * 2)
        self.act = nn.ReLU()
        self.pw2 = ConvNorm(channels * 2, channels, norm_weight_init=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.act(self.pw1(x)))


class SingleHeadAttention(nn.Module):
    """Attention with one head over the first ``attn_dim`` channels; the others pass (paper, Section 3.2).

    Multi-head attention in shallow layers learns redundant heads; one head on a part of the channels keeps the mixing
    over all positions and saves the copies.
    """

    def __init__(self, channels: int, attn_dim: int, query_key_dim: int) -> None:
        super().__init__()
        self.split = (attn_dim, channels - attn_dim)
        self.query_key_value = (query_key_dim, query_key_dim, attn_dim)
        self.scale = query_key_dim**-0.5
        self.pre_norm = nn.GroupNorm(1, attn_dim)
        self.qkv = ConvNorm(attn_dim, sum(self.query_key_value))
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(channels, channels, norm_weight_init=0.0))

    def forward(self, x: Tensor) -> Tensor:
        attending, passing = x.split(self.split, dim=1)
        query, key, value = self.qkv(self.pre_norm(attending)).flatten(2).split(self.query_key_value, dim=1)
        attention = (query.transpose(1, 2) @ key * self.scale).softmax(dim=-1)  # (B, HW, HW), rows are queries
        attended = (value @ attention.transpose(1, 2)).view_as(attending)
        return self.proj(torch.cat((attended, passing), dim=1))


class SqueezeExcite(nn.Module):
    """Channel gates from the global average (timm's form: ReLU, sigmoid, convolutions with bias)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(8, int(channels / 4 + 4) // 8 * 8)  # the nearest multiple of 8, halves up (S2: 312)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.act(self.fc1(squeezed))).sigmoid()


class PatchMerging(nn.Module):
    """Halve the resolution by an inverted bottleneck with squeeze-excite.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = in_channels * 4
        self.conv1 = ConvNorm(in_channels, hidden)
        self.act = nn.ReLU()
        self.conv2 = ConvNorm(hidden, hidden, kernel_size=3, stride=2, groups=hidden)
        self.se = SqueezeExcite(hidden)
        self.conv3 = ConvNorm(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        x = self.act(self.conv2(x))
        return self.conv3(self.se(x))


class Downsample(nn.Sequential):
    """The layers between two stages: a block at the old width, patch merging, a block at the new width.

    As in the authors' code, its depthwise convolutions take effect from the start of training, while the residual
    branches of the blocks start at zero.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int, drop_path: float = 0.0) -> None:
        super().__init__(
            Residual(depthwise(in_channels, norm_weight_init=1.0), drop_path),
            Residual(FeedForward(in_channels), drop_path),
            PatchMerging(in_channels, out_channels),
            Residual(depthwise(out_channels, norm_weight_init=1.0), drop_path),
            Residual(FeedForward(out_channels), drop_path),
        )


class Block(nn.Module):
    """Depthwise convolution, single-head attention in attention stages, feed-forward; each residual."""

    def __init__(self, channels: int, kind: str, attn_dim: int, query_key_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv = Residual(depthwise(channels, norm_weight_init=0.0), drop_path)
        self.mixer = (
            Residual(SingleHeadAttention(channels, attn_dim, query_key_dim), drop_path)
            if kind == 'attention'
            else nn.Identity()
        )
        self.ffn = Residual(FeedForward(channels), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.mixer(self.conv(x)))


class Stage(nn.Module):
    """Downsampling, in all stages but the first, and the blocks.

    Shapes:
        (B, in_channels, H, W) -> (B, channels, ceil(H / 2), ceil(W / 2)), unreduced in the first stage.
    """

    def __init__(self, downsample: nn.Module, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


@torch.fx.wrap  # so that symbolic traces keep the call, whose condition they cannot follow
def check_images(x: Tensor) -> None:
    """Raise ``UsageError`` unless ``x`` holds images of three channels."""
    if x.dim() != 4 or x.shape[1] != 3:
        raise UsageError(
            f'SHViT takes images of shape (B, 3, H, W), but got {tuple(x.shape)}: load them with three channels'
        )


class PatchEmbed(nn.Sequential):
    """The stem: four 3x3 convolutions of stride 2 with ReLU between them; they divide the resolution by 16.

    Shapes:
        (B, 3, H, W) -> (B, channels, ceil(H / 16), ceil(W / 16)).
    """

    def __init__(self, channels: int) -> None:
        widths = (3, channels // 8, channels // 4, channels // 2, channels)
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(widths):
            layers += [ConvNorm(in_channels, out_channels, kernel_size=3, stride=2), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        check_images(x)
        return super().forward(x)
