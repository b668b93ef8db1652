"""SHViT's layers with their norms folded in, their residuals and activations fused: for inference only.

A layer is fused only if it is exactly what SHViT builds: a subclass, a hook or an exchanged child may compute something
else, so that such a layer stays as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model.utils import _BatchNormXd  # what mmengine makes of a SyncBatchNorm; has no public name
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..kernels.operands import Operands
from ..models.layers import ConvNorm, FeedForward, PatchMerging, Residual, SingleHeadAttention, SqueezeExcite
from ..models.unmodified import is_stock
from .backends.choice import Backend
from .backends.convolutions import FusedConv, FusedPointwiseConv
from .backends.packed import Constants, cast, own_kernels
from .backends.packing import fused_conv, is_simple

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, _BatchNormXd)  # which are the same in eval mode


def foldable(layer: Any) -> bool:
    """Return whether a layer is a :class:`ConvNorm` and no more, so that its norm can be folded in."""
    if not (is_stock(layer, ConvNorm) and is_stock(layer.c, nn.Conv2d) and is_stock(layer.bn, *NORMS)):
        return False
    return is_simple(layer.c) and layer.bn.affine and layer.bn.running_mean is not None


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
    conv, norm = layer.c, layer.bn
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach().double(),
        None if conv.bias is None else conv.bias.detach().double(),
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
        backend, dtype = self.expand.choose(x, self._suits_kernels)
        if backend is Backend.KERNELS:
            layers = self.expand.operands(dtype), self.reduce.operands(dtype)
            return cast(own_kernels().feed_forward(cast(x, dtype), *layers), x.dtype)
        return self.reduce.add_to(x, self.expand(x))

    def _suits_kernels(self, x: Tensor) -> bool:
        return self.expand.suits_kernels(x) and self.reduce.has_kernel(x.dtype)


class FusedAttention(Constants):
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

    def forward(self, x: Tensor) -> Tensor:
        backend, dtype = self.proj.choose(x, self._suits_kernels)
        if backend is Backend.KERNELS:
            norm = self.made('norm', self._norm_operands)
            layers = self.qkv.operands(dtype), self.proj.operands(dtype)
            attended = own_kernels().attention(cast(x, dtype), norm, self.eps, *layers, self.query_key_value[0])
            return cast(attended, x.dtype)
        return cast(self._by_operations(cast(x, dtype)), x.dtype)

    def _suits_kernels(self, x: Tensor) -> bool:
        # Those of the attention have pairs of channels in bfloat16 even if those that attend are odd.
        return self.proj.suits_kernels(x) and self.qkv.has_kernel(torch.float32)

    def _by_operations(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, passing = x.split(self.split, dim=1)
        norm = cast(self.norm_weight, x.dtype), cast(self.norm_bias, x.dtype)
        normed = functional.group_norm(attending, 1, *norm, self.eps)
        tokens = self.qkv.compute(normed).permute(0, 2, 3, 1).reshape(batch, height * width, sum(self.query_key_value))
        query, key, value = tokens.split(self.query_key_value, dim=-1)
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1)  # unlike matmul it copies no operand
        attended = torch.bmm(weights, value)
        attended = attended.view(batch, height, width, self.split[0]).permute(0, 3, 1, 2)
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
        backend, dtype = self.reduce.choose(x, self._suits_kernels)
        if backend is Backend.KERNELS:
            layers = self.reduce.operands(dtype), self.expand.operands(dtype)
            return cast(own_kernels().squeeze_excite(cast(x, dtype), *layers), x.dtype)
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True))).sigmoid_()

    def _suits_kernels(self, x: Tensor) -> bool:
        return self.reduce.suits_kernels(x) and self.expand.has_kernel(x.dtype)


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


def fuse(module: nn.Module) -> nn.Module | None:
    """Return the fused form of one of SHViT's layers; None if it is not exactly one of them."""
    if is_stock(module, PatchMerging):
        return FusedPatchMerging(module) if _merges_patches(module) else None  # type: ignore[arg-type]
    if not is_stock(module, Residual) or not is_stock(module.drop_path, nn.Identity, DropPath):  # type: ignore[arg-type]
        return None
    branch: Any = module.m
    found = next((made for known, made in RESIDUALS if known(branch)), None)
    return None if found is None else found(branch)


def _is_depthwise(branch: Any) -> bool:
    if not foldable(branch):
        return False
    conv = branch.c
    same = conv.stride == (1, 1) and conv.groups == conv.in_channels == conv.out_channels
    return same and conv.kernel_size == (2 * conv.padding[0] + 1,) * 2


def _is_pointwise(layer: Any) -> bool:
    conv = layer.c if foldable(layer) else layer
    if not is_stock(conv, nn.Conv2d) or not is_simple(conv):
        return False
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _is_feed_forward(branch: Any) -> bool:
    if not is_stock(branch, FeedForward) or not is_stock(branch.act, nn.ReLU):
        return False
    return all(foldable(layer) and _is_pointwise(layer) for layer in (branch.pw1, branch.pw2))


def _is_attention(branch: Any) -> bool:
    if not is_stock(branch, SingleHeadAttention) or not is_stock(branch.proj, nn.Sequential) or len(branch.proj) != 2:
        return False
    norm, (relu, proj) = branch.pre_norm, branch.proj
    if not is_stock(norm, nn.GroupNorm) or norm.num_groups != 1 or not norm.affine or not is_stock(relu, nn.ReLU):
        return False
    return all(foldable(layer) and _is_pointwise(layer) for layer in (branch.qkv, proj))


def _merges_patches(module: Any) -> bool:
    gate = module.se
    if not is_stock(gate, SqueezeExcite) or not all(is_stock(act, nn.ReLU) for act in (module.act, gate.act)):
        return False
    return all(map(foldable, (module.conv1, module.conv2, module.conv3))) and all(
        map(_is_pointwise, (gate.fc1, gate.fc2))
    )


RESIDUALS: tuple[tuple[Callable[[Any], bool], Callable[[Any], nn.Module]], ...] = (
    (_is_depthwise, fold_depthwise_residual),
    (_is_feed_forward, FusedFeedForward),
    (_is_attention, FusedAttention),
)
