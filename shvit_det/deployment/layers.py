"""SHViT's layers with their norms folded in, their residuals and activations fused: for inference only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers import ConvNorm, FeedForward, PatchMerging, Residual, SingleHeadAttention, SqueezeExcite
from .convolutions import FusedConv, FusedPointwiseConv
from .native.operands import Operands
from .packed import MadeFrom, usable
from .packing import fused_conv


def fold(layer: Any, relu: bool = False) -> FusedConv:
    """Return a :class:`ConvNorm`'s convolution and norm as one; computed in float64, whatever the weights are."""
    weight, bias = folded_weights(layer)
    conv = layer.c
    return fused_conv(
        weight.to(conv.weight.dtype),
        bias.to(conv.weight.dtype),
        conv.stride[0],
        int(conv.padding[0]),
        conv.groups,
        relu,
    )


def fold_pointwise(layer: Any, relu: bool = False) -> FusedPointwiseConv:
    """Return a 1x1 :class:`ConvNorm` as one layer that can also add to a residual."""
    conv = fold(layer, relu)
    assert isinstance(conv, FusedPointwiseConv)
    return conv


def folded_weights(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its norm folded in, in float64."""
    norm = layer.bn
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        layer.c.weight.detach().double(),
        None,
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.detach().double(),
        norm.bias.detach().double(),
    )
    return weight.detach(), bias.detach()


def fold_depthwise_residual(layer: ConvNorm) -> FusedConv:
    """Return ``x + norm(depthwise(x))`` as one depthwise convolution: the identity is a kernel too."""
    weight, bias = folded_weights(layer)
    centre = weight.shape[-1] // 2
    weight[:, :, centre, centre] += 1
    dtype = layer.c.weight.dtype
    return fused_conv(weight.to(dtype), bias.to(dtype), 1, int(layer.c.padding[0]), layer.c.groups)


class FusedFeedForward(nn.Module):
    """``x + pw2(relu(pw1(x)))``.

    Shapes:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, source: FeedForward) -> None:
        super().__init__()
        self.expand = fold_pointwise(source.pw1, relu=True)
        self.reduce = fold_pointwise(source.pw2)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.expand.kernels_for(x, self.reduce.suits_kernels(x.dtype)) if usable(x) else None
        if kernels is not None:
            return kernels.feed_forward(x, self.expand.operands(), self.reduce.operands())
        return self.reduce.add_to(x, self.expand(x))


class FusedAttention(nn.Module):
    """``x + proj(relu(cat(attention(norm(x[:, :a])), x[:, a:])))``; the scale of the scores is in the queries' weights.

    Shapes:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, source: SingleHeadAttention) -> None:
        super().__init__()
        self.split = source.split
        self.query_key_value = source.query_key_value
        norm = source.pre_norm
        self.eps = norm.eps
        self.norm_weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.norm_bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)
        weight, bias = folded_weights(source.qkv)
        queries = self.query_key_value[0]
        weight[:queries] *= source.scale
        bias[:queries] *= source.scale
        dtype = norm.weight.dtype
        self.qkv = FusedPointwiseConv(weight.to(dtype), bias.to(dtype))
        self.proj = fold_pointwise(source.proj[1])
        self._norm = MadeFrom()

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.proj.kernels_for(x, self.qkv.suits_kernels(torch.float32)) if usable(x) else None
        if kernels is not None:  # which have pairs of channels in bfloat16 even if those that attend are odd
            norm = self._norm.get(self._norm_operands, self.norm_weight, self.norm_bias)
            layers = self.qkv.operands(), self.proj.operands()
            return kernels.attention(x, norm, self.eps, *layers, self.query_key_value[0])
        batch, _, height, width = x.shape
        attending, passing = x.split(self.split, dim=1)
        normed = functional.group_norm(attending, 1, self.norm_weight, self.norm_bias, self.eps)
        tokens = self.qkv(normed).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        query, key, value = tokens.split(self.query_key_value, dim=-1)
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1)  # unlike matmul it copies no operand
        attended = torch.bmm(weights, value)
        attended = attended.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return self.proj.add_to(x, torch.cat((attended, passing), dim=1).relu_())

    def _norm_operands(self) -> Operands:
        weight, bias = self.norm_weight.detach().float(), self.norm_bias.detach().float()
        return Operands(weight, bias, weight.numel())


class FusedSqueezeExcite(nn.Module):
    """Squeeze-excite, unchanged but for the fused activation.

    Shapes:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, source: SqueezeExcite) -> None:
        super().__init__()
        self.reduce = plain(source.fc1, relu=True)
        self.expand = plain(source.fc2)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.reduce.kernels_for(x, self.expand.suits_kernels(x.dtype)) if usable(x) else None
        if kernels is not None:
            return kernels.squeeze_excite(x, self.reduce.operands(), self.expand.operands())
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True))).sigmoid_()


def plain(conv: Any, relu: bool = False) -> FusedConv:
    """Return a convolution that has no norm, with its own bias."""
    return fused_conv(conv.weight, conv.bias, conv.stride[0], int(conv.padding[0]), conv.groups, relu)


class FusedPatchMerging(nn.Module):
    """Patch merging with its norms folded in.

    Shapes:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, source: PatchMerging) -> None:
        super().__init__()
        self.expand = fold(source.conv1, relu=True)
        self.subsample = fold(source.conv2, relu=True)
        self.squeeze_excite = FusedSqueezeExcite(source.se)
        self.reduce = fold(source.conv3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.squeeze_excite(self.subsample(self.expand(x))))


RESIDUALS: dict[type, Callable[..., nn.Module]] = {
    ConvNorm: fold_depthwise_residual,
    FeedForward: FusedFeedForward,
    SingleHeadAttention: FusedAttention,
}


def fuse(module: nn.Module) -> nn.Module:
    """Return the fused form of one of SHViT's layers."""
    if isinstance(module, Residual):
        return RESIDUALS[type(module.m)](module.m)
    if isinstance(module, PatchMerging):
        return FusedPatchMerging(module)
    if isinstance(module, nn.Identity):
        return nn.Identity()
    raise TypeError(f'no fused form of {type(module).__name__}')
