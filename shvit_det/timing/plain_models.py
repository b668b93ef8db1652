"""Models that compute what they are written as, to compare with."""

from torch import nn

from ..models.layers import ConvNorm
from ..models.neck import SHViTFPN


def write_out(model: nn.Module) -> bool:
    """Let SHViT's layers in a model compute what they are written as, and return whether there are any.

    By itself, training applies fixed norms to the kernels and composes the neck's finer levels.
    """
    found = False
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.fold_fixed = False
        elif isinstance(module, SHViTFPN):
            module.compose = False
        found |= isinstance(module, ConvNorm | SHViTFPN)
    return found
