"""SHViT's attention in operations for which the runtimes of phones have kernels."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..deployment.layers import FusedAttention


class PhoneAttention(nn.Module):
    """A deployed attention without GroupNorm, splits and broadcast products, for which XNNPACK has no kernels.

    An operation that XNNPACK lacks cuts the network in two, and feature maps are copied between the pieces. Here the
    norm is written as means and products, and its scale and shift are folded into the weights that follow it. On a
    desktop CPU the whole network took the same time either way.
    """

    def __init__(self, source: FusedAttention) -> None:
        super().__init__()
        self.attn_dim = source.split[0]
        self.query_key_dim = source.query_key_value[0]
        self.eps = source.eps
        weight, bias = source.qkv.weight.double(), source.qkv.bias.double()
        scaled = weight * source.norm_weight.double()[:, None, None]
        shift = bias + (weight * source.norm_bias.double()[:, None, None]).sum((1, 2, 3))
        self.weight = nn.Parameter(scaled.to(source.qkv.weight), requires_grad=False)
        self.bias = nn.Parameter(shift.to(source.qkv.bias), requires_grad=False)
        self.proj = source.proj

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, passing = x[:, : self.attn_dim], x[:, self.attn_dim :]
        centred = attending - image_mean(attending)
        normed = centred * torch.rsqrt(image_mean(centred * centred) + self.eps)
        tokens = functional.conv2d(normed, self.weight, self.bias).flatten(2)
        value_start = 2 * self.query_key_dim
        query = tokens[:, : self.query_key_dim]
        key = tokens[:, self.query_key_dim : value_start]
        value = tokens[:, value_start:]
        scores = torch.bmm(query.transpose(1, 2), key).softmax(dim=-1)
        attended = torch.bmm(value, scores.transpose(1, 2)).view(batch, self.attn_dim, height, width)
        return self.proj.add_to(x, torch.cat((attended, passing), dim=1).relu())


def image_mean(x: Tensor) -> Tensor:
    """Return the mean of each image, (B, C, H, W) -> (B, 1, 1, 1), in two steps: XNNPACK has no mean over channels."""
    means = x.mean((2, 3), keepdim=True)
    return means.view(x.shape[0], 1, x.shape[1], 1).mean((2, 3), keepdim=True)


def replace_attention(module: nn.Module) -> None:
    """Replace every deployed attention of a module by :class:`PhoneAttention`, in place."""
    for name, child in list(module.named_modules()):
        if isinstance(child, FusedAttention):
            module.set_submodule(name, PhoneAttention(child))
