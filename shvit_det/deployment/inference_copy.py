"""A copy of a trained model for inference, with plain weights in place of those that are computed at each call."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

Module = TypeVar('Module', bound=nn.Module)


def copied_for_inference(model: Module) -> Module:
    """Return a copy in eval mode whose pruned, normalised and parametrised weights are what they amount to.

    Weights that are not the same at every call stay as they are computed.
    """
    computed = {  # of other tensors, which torch does not copy
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copied = copy.deepcopy(model, computed).eval()
    for module in list(copied.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                if torch.equal(getattr(module, name), getattr(module, name)):
                    parametrize.remove_parametrizations(module, name)
    return copied
