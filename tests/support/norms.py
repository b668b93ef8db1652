"""What the tests do with BatchNorms."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomise_norms(model: nn.Module) -> None:
    """Give every BatchNorm statistics and scales away from 0 and 1, so that no branch is closed."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms_of(model):
        for tensor in (norm.weight, norm.running_var):
            if tensor is not None:
                tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        for tensor in (norm.bias, norm.running_mean):
            if tensor is not None:
                tensor.data.copy_(0.2 * torch.randn(tensor.shape, generator=generator))


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
