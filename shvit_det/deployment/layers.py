"""SHViT's layers with their norms folded in, their residuals and activations fused: for inference only.

A layer is fused only if it is exactly what SHViT builds. A layer with a hook, a replaced child or a subclass in it may
compute something else and stays as it is. Where no shapes are given, they are (B, C, H, W) -> (B, C, H, W).
"""

import copy
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model.utils import _BatchNormXd  # mmengine converts a SyncBatchNorm into it; has no public name
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.packed_weights import PackedWeights
from ..models.batch_norm_folding import folded_weights
from ..models.composition import is_plain_conv
from ..models.layers import ConvNorm, FeedForward, PatchMerging, Residual, SingleHeadAttention, SqueezeExcite
from ..models.unmodified import is_unmodified
from .backends.backend_choice import Backend
from .backends.convolutions import FusedConv, FusedPointwiseConv
from .backends.deployed_layer import DeployedLayer, cast, own_kernels
from .layer_replacement import conv_with_weights, deployed_conv, is_simple

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, _BatchNormXd)  # which are the same in eval mode


def is_unmodified_conv_norm(layer: Any) -> bool:
    """Return whether a layer is exactly a :class:`ConvNorm`, with a norm that can be folded in for inference."""
    if not (is_unmodified(layer, ConvNorm) and is_unmodified(layer.c, nn.Conv2d) and is_unmodified(layer.bn, *NORMS)):
        return False
    return is_simple(layer.c) and layer.bn.affine and layer.bn.running_mean is not None


def folded_in_float64(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its norm folded in, in float64, even if the layer is in float32."""
    double = copy.deepcopy(layer).double()
    weight, bias = folded_weights(double.c, double.bn)
    return weight.detach(), bias.detach()


def fold(layer: Any, relu: bool = False) -> FusedConv:
    """Return a :class:`ConvNorm`'s convolution and norm as one layer."""
    return conv_with_weights(layer.c, *folded_in_float64(layer), relu)


def fold_pointwise(layer: Any, relu: bool = False) -> FusedPointwiseConv:
    """Return a 1x1 :class:`ConvNorm` as one layer that can also add to a residual."""
    conv = fold(layer, relu)
    assert isinstance(conv, FusedPointwiseConv)
    return conv


def fold_depthwise_residual(layer: ConvNorm) -> FusedConv:
    """Return ``x + norm(depthwise(x))`` as one depthwise convolution: the identity is a kernel too."""
    weight, bias = folded_in_float64(layer)
    centre = weight.shape[-1] // 2
    weight[:, :, centre, centre] += 1
    return conv_with_weights(layer.c, weight, bias)


class FusedFeedForward(DeployedLayer):
    """``x + pw2(relu(pw1(x)))``."""

    operations = FusedPointwiseConv.operations

    def __init__(self, source: FeedForward) -> None:
        super().__init__()
        self.expand = fold_pointwise(source.pw1, relu=True)
        self.reduce = fold_pointwise(source.pw2)
        self.in_channels = self.expand.in_channels

    def forward(self, x: Tensor) -> Tensor:
        backend, dtype = self.choice_for_input(x)
        if backend is Backend.KERNELS:
            layers = self.expand.kernel_weights(dtype), self.reduce.kernel_weights(dtype)
            return cast(own_kernels().feed_forward(cast(x, dtype), *layers), x.dtype)
        return self.reduce.add_to(x, self.expand(x))

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        return self.expand.supports_kernels(dtype) and self.reduce.supports_kernels(dtype)


class FusedAttention(DeployedLayer):
    """``x + proj(relu(cat(attention(norm(x[:, :a])), x[:, a:])))``; the queries' weights hold the scores' scale."""

    operations = FusedPointwiseConv.operations

    def __init__(self, source: SingleHeadAttention) -> None:
        super().__init__()
        self.split = source.split
        self.query_key_value = source.query_key_value
        norm = source.pre_norm
        self.eps = norm.eps
        self.norm_weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.norm_bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)
        weight, bias = folded_in_float64(source.qkv)
        for values in (weight, bias):
            values[: self.query_key_value[0]] *= source.scale
        self.qkv = conv_with_weights(source.qkv.c, weight, bias)
        self.proj = fold_pointwise(source.proj[1])
        self.in_channels = self.proj.in_channels

    def forward(self, x: Tensor) -> Tensor:
        backend, dtype = self.choice_for_input(x)
        if backend is Backend.KERNELS:
            norm = self.constant('norm', lambda: PackedWeights(self.norm_weight.detach().float(), self.norm_bias))
            layers = self.qkv.kernel_weights(dtype), self.proj.kernel_weights(dtype)
            attended = own_kernels().attention(cast(x, dtype), norm, self.eps, *layers, self.query_key_value[0])
            return cast(attended, x.dtype)
        return cast(self._by_operations(cast(x, dtype)), x.dtype)

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        # In bfloat16, layers need an even number of input channels, which ``qkv`` may lack. The attention kernel pads
        # its inputs itself, so ``qkv`` only has to fit in other respects.
        return self.proj.supports_kernels(dtype) and self.qkv.supports_kernels(torch.float32)

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


class FusedSqueezeExcite(DeployedLayer):
    """Squeeze-excite, unchanged but for the fused activation."""

    operations = FusedPointwiseConv.operations

    def __init__(self, source: SqueezeExcite) -> None:
        super().__init__()
        self.reduce = deployed_conv(source.fc1, relu=True)
        self.expand = deployed_conv(source.fc2)
        self.in_channels = self.reduce.in_channels

    def forward(self, x: Tensor) -> Tensor:
        backend, dtype = self.choice_for_input(x)
        if backend is Backend.KERNELS:
            layers = self.reduce.kernel_weights(dtype), self.expand.kernel_weights(dtype)
            return cast(own_kernels().squeeze_excite(cast(x, dtype), *layers), x.dtype)
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True))).sigmoid_()

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        return self.reduce.supports_kernels(dtype) and self.expand.supports_kernels(dtype)


class FusedPatchMerging(nn.Sequential):
    """Patch merging with its norms folded in."""

    def __init__(self, source: PatchMerging) -> None:
        super().__init__()
        self.expand = fold(source.conv1, relu=True)
        self.subsample = fold(source.conv2, relu=True)
        self.squeeze_excite = FusedSqueezeExcite(source.se)
        self.reduce = fold(source.conv3)


def fuse(module: Any) -> nn.Module | None:
    """Return the fused form of one of SHViT's layers; None if it is not exactly one of them."""
    if is_unmodified(module, PatchMerging):
        return FusedPatchMerging(module) if _is_patch_merging(module) else None
    if not is_unmodified(module, Residual) or not is_unmodified(module.drop_path, nn.Identity, DropPath):
        return None
    branch = module.m
    if _is_depthwise(branch):
        return fold_depthwise_residual(branch)
    if _is_feed_forward(branch):
        return FusedFeedForward(branch)
    return FusedAttention(branch) if _is_attention(branch) else None


def _is_depthwise(branch: Any) -> bool:
    if not is_unmodified_conv_norm(branch):
        return False
    conv = branch.c
    same = conv.stride == (1, 1) and conv.groups == conv.in_channels == conv.out_channels
    return same and conv.kernel_size == (2 * conv.padding[0] + 1,) * 2


def _is_feed_forward(branch: Any) -> bool:
    if not is_unmodified(branch, FeedForward) or not is_unmodified(branch.act, nn.ReLU):
        return False
    return _are_pointwise_conv_norms(branch.pw1, branch.pw2)


def _is_attention(branch: Any) -> bool:
    if not is_unmodified(branch, SingleHeadAttention) or not is_unmodified(branch.proj, nn.Sequential):
        return False
    norm, layers = branch.pre_norm, list(branch.proj)
    if not is_unmodified(norm, nn.GroupNorm) or norm.num_groups != 1 or not norm.affine or len(layers) != 2:
        return False
    return is_unmodified(layers[0], nn.ReLU) and _are_pointwise_conv_norms(branch.qkv, layers[1])


def _is_patch_merging(module: Any) -> bool:
    gate = module.se
    if not is_unmodified(gate, SqueezeExcite) or not all(is_unmodified(act, nn.ReLU) for act in (module.act, gate.act)):
        return False
    norms_can_be_folded = all(map(is_unmodified_conv_norm, (module.conv1, module.conv2, module.conv3)))
    return norms_can_be_folded and is_plain_conv(gate.fc1, 1) and is_plain_conv(gate.fc2, 1)


def _are_pointwise_conv_norms(*layers: Any) -> bool:
    return all(is_unmodified_conv_norm(layer) and is_plain_conv(layer.c, 1) for layer in layers)
