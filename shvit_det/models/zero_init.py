"""Branches that start closed: norms whose scale is initialised with zero."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of BatchNorm1d to 3d and SyncBatchNorm; has no public name


def undo_zero_init(model: nn.Module) -> None:
    """Set the scales of BatchNorms that are all zero to one, for models that are run without having been trained.

    A zero scale closes a residual branch at the start of training. Training opens all of them, and arithmetic on zeros
    draws less power and may run faster; so neither times nor outputs of a model with closed branches mean much.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)
