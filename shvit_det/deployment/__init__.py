"""The exact, faster form of a trained model for inference: what is folded, fused and composed, and who computes it."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ..common.errors import UsageError
from ..models.backbone import SHViT
from ..models.neck import SHViTFPN
from ..models.unmodified import is_unmodified
from .backbone import FusedSHViT
from .backends.backend_choice import Backend, say_if_slow
from .backends.deployed_layer import DeployedLayer, layer_backends, refuse_training
from .calibration import calibrate, check_quantisable
from .compilation import compile_parts
from .neck import FusedSHViTFPN, compose_finer, supports_neck

__all__ = ['check_deployable', 'deploy', 'is_deployed', 'layer_backends']
BACKEND_NAMES = {
    Backend.KERNELS.value: 'our own kernels',
    Backend.ONEDNN.value: 'oneDNN',
    Backend.INT8.value: 'oneDNN in int8',
    Backend.PLAIN.value: 'plain torch',
}


def is_deployed(model: nn.Module) -> bool:
    """Return whether a model is one that :func:`deploy` returned, or holds one."""
    return any(isinstance(module, FusedSHViT | FusedSHViTFPN) for module in model.modules())


def deploy(
    model: nn.Module,
    dtype: torch.dtype | Literal['int8'] | None = None,
    channels_last: bool = True,
    compile: bool | Mapping[str, Any] = False,
    native: bool = True,
    calibration: Iterable[Any] | None = None,
) -> Any:
    """Return a new model for inference that computes the same, faster; the one that came in is not changed.

    All norms of the backbone, its depthwise residuals and the scale of its attention are folded into weights; the
    neck's finer levels and the RPN's convolution on the finest are single transposed convolutions; of masks, only those
    of the predicted classes are computed; on a CPU, weights are packed once. Nothing is approximated: results agree up
    to the rounding of the arithmetic, in ``dtype``.

    Args:
        model: A :class:`shvit_det.SHViT`, a :class:`shvit_det.SHViTFPN` or an mmdet detector that has one of them.
        dtype: The type in which the networks compute, ``torch.bfloat16`` for instance, which does round; None leaves
            it. A detector takes images as before and gives boxes, scores and masks in float32. ``'int8'``: large layers
            of the neck and the heads of a detector compute in 8-bit integers on a CPU with VNNI, all else in float32.
        channels_last: Whether weights, and with them all results, are laid out as NHWC.
        compile: Whether the backbone, and on a GPU the neck and the head of a one-stage detector, run compiled; or the
            arguments for ``torch.compile``. The first size of images is compiled for a minute or so, and the second for
            all further ones, which the log says. True leaves out what kernels of our own compute faster.
        native: Whether kernels of our own are used on a CPU. Where there are none for it, oneDNN is used.
        calibration: For ``dtype='int8'``: batches as ``test_step`` takes them, of a few dozen typical images. They tell
            what the inputs of each layer lie between.

    Which backend computes each layer is chosen here, and again when the model is moved or loaded. The log has a
    summary, and :func:`.layer_backends` names each layer.

    What is not exactly a layer of SHViT, mmdet, mmcv or torch stays as it is, and the log names it: subclasses, layers
    with hooks, exchanged layers. Pruned and parametrised weights are taken as they are when this is called.

    The weights of a deployed model are constants: load a state dict or move it, nothing else. It is never trained.

    Raises:
        UsageError: If the model is deployed already, or holds nothing that this could make faster, or ``dtype`` is
            given for a detector that is neither one-stage nor two-stage, or ``'int8'`` for a model that is not a
            detector in float32 on a CPU, or without ``calibration``.
    """
    check_deployable(model)
    if isinstance(dtype, str) and dtype != 'int8':
        raise UsageError(f"dtype must be 'int8' or a data type of torch such as torch.bfloat16, but got {dtype!r}")
    if (dtype == 'int8') != (calibration is not None):
        raise UsageError("dtype='int8' and calibration, batches of a few dozen images, need each other: give both")
    if dtype == 'int8':
        check_quantisable(model)
    left: list[nn.Module] = []
    with torch.inference_mode(False), torch.no_grad():
        deployed: Any = copied_for_inference(model)
        if type(model) is SHViT:
            deployed = FusedSHViT(deployed, channels_last, left)
        elif type(model) is SHViTFPN:
            deployed = FusedSHViTFPN(deployed, channels_last, compose_finer(deployed))
        else:
            from .detector import check_castable, fuse_detector  # which needs mmdet

            if isinstance(dtype, torch.dtype):
                check_castable(model)
            for part in [module for module in deployed.modules() if parts_of(module)]:  # the detectors in a wrapper
                fuse_detector(part, channels_last, left)
        deployed.eval().requires_grad_(False)
        if isinstance(dtype, torch.dtype):
            deployed.to(dtype)
        if channels_last:
            deployed.to(memory_format=torch.channels_last)
    for part in deployed.modules():
        if isinstance(part, DeployedLayer):
            part.native = native
        part.train = partial(refuse_training, part)
    if left:
        names = _names([(name, part) for name, part in deployed.named_modules() if part in left])
        print_log(f'not in the deployed form, because they may compute something else: {names}', 'current')
    if isinstance(dtype, torch.dtype) and next(deployed.parameters()).device.type == 'cpu':
        say_if_slow(dtype)
    if calibration is not None:
        unseen = calibrate(deployed, calibration)
        if unseen:
            print_log(f'in float32, because no calibration image reached them: {", ".join(unseen)}', 'current')
    counts = Counter(layer_backends(deployed).values())
    summary = ', '.join(f'{counts[key]} layers by {name}' for key, name in BACKEND_NAMES.items() if counts[key])
    print_log(f'deployed: {summary}', 'current')
    if compile:
        compile_parts(deployed, {} if compile is True else compile)
    return deployed


def copied_for_inference(model: nn.Module) -> nn.Module:
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


def parts_of(detector: nn.Module) -> dict[str, nn.Module]:
    """Return the backbone and the neck of a detector that are ours, by name; empty for any other module."""
    named = {name: getattr(detector, name, None) for name in ('backbone', 'neck')}
    return {name: part for name, part in named.items() if isinstance(part, SHViT | SHViTFPN)}


def check_deployable(model: nn.Module) -> None:
    """Raise ``UsageError`` if a model is deployed already, or holds nothing that could be."""
    if is_deployed(model):
        raise UsageError('this model is deployed already: deploy the trained one')
    parts: list[tuple[str, nn.Module]] = [('', model)] if isinstance(model, SHViT | SHViTFPN) else []
    for place, module in model.named_modules():
        parts += [(f'{place}.{name}'.lstrip('.'), part) for name, part in parts_of(module).items()]
    if not parts:
        raise UsageError(
            f'only a SHViT, a SHViTFPN, or a detector with one of them can be deployed, not a {type(model).__name__}'
        )
    if not any(is_unmodified(part, SHViT) or supports_neck(copied_for_inference(part)) for _, part in parts):
        raise UsageError(
            f'nothing of this model can be deployed, because {_names(parts)} may compute something else than SHViT and '
            'SHViTFPN do (a subclass, a hook, an exchanged layer): use the model as it is'
        )


def _names(parts: Sequence[tuple[str, nn.Module]]) -> str:
    return ', '.join(f'{name} ({type(part).__name__})' if name else type(part).__name__ for name, part in parts)
