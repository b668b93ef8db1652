"""Variants of one source, side by side: prefixes such as ``deployed:`` change how it is run or what is done to it."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..layers import ConvNorm
from ..neck import SHViTFPN
from .settings import Settings

VARIANTS: dict[str, dict[str, Any]] = {
    'plain:': dict(plain=True),
    'channels-last:': dict(channels_last=True),
    'bfloat16:': dict(dtype=torch.bfloat16),
    'deployed:': dict(deploy=True),
}


def split_variants(named: str, settings: Settings) -> tuple[str, str, Settings]:
    """Return the prefixes of what a user named, the source without them, and the settings with their changes."""
    source = named
    while prefix := next((prefix for prefix in VARIANTS if source.startswith(prefix)), ''):
        source = source.removeprefix(prefix)
        settings = replace(settings, **VARIANTS[prefix])
    return named.removesuffix(source), source, settings


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
