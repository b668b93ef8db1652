"""The exact, faster form of a trained backbone or detector."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..backbone import SHViT
from ..errors import UsageError
from ..neck import SHViTFPN
from .backbone import FusedSHViT
from .compiled import compile_parts, runs_own_kernels
from .neck import FusedSHViTFPN
from .packed import HasKernels

__all__ = ['check_deployable', 'deploy', 'is_deployed']
FUSED: dict[type, type] = {SHViT: FusedSHViT, SHViTFPN: FusedSHViTFPN}


def is_deployed(model: nn.Module) -> bool:
    """Return whether a model is one that :func:`deploy` returned, or holds one."""
    return any(isinstance(module, tuple(FUSED.values())) for module in model.modules())


def deploy(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool | Mapping[str, Any] = False,
    native: bool = True,
) -> Any:
    """Return a new model for inference that computes the same, faster; the one that came in is not changed.

    All norms of the backbone, its depthwise residuals and the scale of its attention are folded into weights; the
    neck's finer levels and the RPN's convolution on the finest are single transposed convolutions; of masks, only those
    of the predicted classes are computed; on a CPU, weights are laid out for the kernels. No approximation is made:
    results agree up to the rounding of the arithmetic, in ``dtype``.

    Args:
        model: A :class:`shvit_det.SHViT`, a :class:`shvit_det.SHViTFPN` or an mmdet detector that has one of them.
        dtype: The type in which the networks compute, ``torch.bfloat16`` for instance, which does round; None leaves
            it. A detector takes images as before and gives boxes, scores and masks in float32.
        channels_last: Whether weights, and with them all results, are laid out as NHWC.
        compile: Whether the backbone, and on a GPU the neck and the head of a one-stage detector, run compiled; or the
            arguments for ``torch.compile``. The first size of images is compiled for a minute or so, and the second for
            all further ones, which the log says. True leaves out what kernels of our own compute faster.
        native: Whether kernels of our own are used on a CPU with AVX-512. They are compiled in some seconds at the
            first use on a machine; without a C++ compiler oneDNN's serve.

    Raises:
        UsageError: If the model is deployed already, or holds nothing that this could make faster, or ``dtype`` is
            given for a detector that is neither one-stage nor two-stage.
    """
    check_deployable(model)
    deployed: nn.Module
    kind = next((kind for kind in FUSED if isinstance(model, kind)), None)
    if kind is not None:
        deployed = FUSED[kind](copy.deepcopy(model).eval(), channels_last)
    else:
        from .detector import cast_detector, fuse_detector  # which needs mmdet

        deployed = copy.deepcopy(model).eval()
        fuse_detector(deployed, channels_last)
    deployed.eval().requires_grad_(False)
    if dtype is not None and kind is not None:
        deployed.to(dtype)
    elif dtype is not None:
        cast_detector(deployed, dtype)
    if channels_last:
        deployed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
    for layer in deployed.modules():
        if isinstance(layer, HasKernels):
            layer.native = native
    runs_own_kernels(deployed)  # which are built now rather than with the first image
    if compile:
        compile_parts(deployed, {} if compile is True else compile)
    return deployed


def check_deployable(model: nn.Module) -> None:
    """Raise ``UsageError`` if a model is deployed already, or holds nothing that could be."""
    if is_deployed(model):
        raise UsageError('this model is deployed already: deploy the trained one')
    if not any(isinstance(part, tuple(FUSED)) for part in (model, *model.children())):
        raise UsageError(
            f'only a SHViT, a SHViTFPN, or a detector with one of them can be deployed, not a {type(model).__name__}'
        )
