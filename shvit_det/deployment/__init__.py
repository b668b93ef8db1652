"""The exact, faster form of a trained backbone or detector."""

import copy
from typing import Any

import torch
from torch import nn

from ..backbone import SHViT
from ..errors import UsageError
from ..neck import SHViTFPN
from .backbone import FusedSHViT
from .neck import FusedSHViTFPN

__all__ = ['deploy', 'is_deployed']
FUSED: dict[type, type] = {SHViT: FusedSHViT, SHViTFPN: FusedSHViTFPN}


def is_deployed(model: nn.Module) -> bool:
    """Return whether a model is one that :func:`deploy` returned, or holds one."""
    return any(isinstance(module, tuple(FUSED.values())) for module in model.modules())


def deploy(model: nn.Module, dtype: torch.dtype | None = None, channels_last: bool = True) -> Any:
    """Return a new model for inference that computes the same, faster; the one that came in is not changed.

    All norms of the backbone, its depthwise residuals and the scale of its attention are folded into weights; the
    neck's finer levels and the RPN's convolution on the finest are single transposed convolutions; on a CPU, weights
    are laid out for oneDNN. No approximation is made: results agree up to the rounding of the arithmetic.

    Args:
        model: A :class:`shvit_det.SHViT`, a :class:`shvit_det.SHViTFPN` or an mmdet detector that has one of them.
        dtype: The type of the weights of a backbone or neck; None leaves it.
        channels_last: Whether weights, and with them all results, are laid out as NHWC.

    Raises:
        UsageError: If the model is deployed already, or holds nothing that this could make faster.
    """
    if is_deployed(model):
        raise UsageError('this model is deployed already: deploy the trained one')
    kind = next((kind for kind in FUSED if isinstance(model, kind)), None)
    if kind is not None:
        deployed = FUSED[kind](copy.deepcopy(model).eval(), channels_last)
    elif any(isinstance(getattr(model, name, None), tuple(FUSED)) for name in ('backbone', 'neck')):
        from .detector import fuse_detector  # which needs mmdet

        if dtype is not None:
            raise UsageError('dtype is for a backbone or neck alone: run a deployed detector under torch.autocast')
        deployed = copy.deepcopy(model).eval()
        fuse_detector(deployed, channels_last)
    else:
        raise UsageError(
            f'deploy takes a SHViT, a SHViTFPN, or a detector with one of them, but got a {type(model).__name__}'
        )
    deployed.eval().requires_grad_(False)
    if dtype is not None:
        deployed.to(dtype)
    if channels_last:
        deployed.to(memory_format=torch.channels_last)
    return deployed
