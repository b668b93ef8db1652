"""Backbones to compare with: timm's by name, and SHViT's own variants."""

from difflib import get_close_matches

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of BatchNorm1d to 3d and SyncBatchNorm; has no public name

from ..common.errors import UsageError
from ..models.arch import ARCHS
from ..models.backbone import SHViT

REPARAMETERISED = 're-parameterised'


def build_backbone(source: str) -> tuple[nn.Module, list[str]]:
    """Return a backbone in eval mode, (B, 3, H, W) -> feature maps, and the list of what was done to it.

    Its weights are random, with no branch closed, and the same at every call; the caller's random state stays as it is.
    timm's models are re-parameterised where they offer it: branches that add up to one convolution become one, and in
    some families BatchNorms are folded on the way;
    :func:`shvit_det.models.batch_norm_folding.fold_batch_norms` folds the others.

    Args:
        source: ``timm:NAME`` or ``shvit:ARCH``.

    Raises:
        UsageError: If there is no such source, or timm is not installed.
    """
    kind, _, name = source.partition(':')
    builders = {'timm': _build_timm, 'shvit': _build_shvit}
    if kind not in builders or not name:
        raise UsageError(f'no backbone {source!r}: name one as timm:NAME or shvit:ARCH, shvit:s4 for example')
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs' generators too
        return builders[kind](name)


def open_branches(model: nn.Module) -> None:
    """Set the scales of norms that start at zero to one.

    They close residual branches for the start of training. After training none is closed, and arithmetic on zeros draws
    less power and so may run faster.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)


def _build_shvit(arch: str) -> tuple[nn.Module, list[str]]:
    if arch.lower() not in ARCHS:
        raise UsageError(f'no SHViT {arch!r}: choose one of {", ".join(ARCHS)}')
    backbone = SHViT(arch).eval()
    open_branches(backbone)
    return backbone, []


def _build_timm(name: str) -> tuple[nn.Module, list[str]]:
    try:
        import timm
        from timm.utils import reparameterize_model
    except ModuleNotFoundError as error:
        if error.name != 'timm':
            raise
        raise UsageError(f"timm:{name} needs timm, which is not installed: pip install 'shvit_det[peers]'") from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models())
        raise UsageError(
            f'timm {timm.__version__} has no model {name!r}: '
            + (f'did you mean {" or ".join(near)}?' if near else 'timm.list_models() names all')
        )
    try:
        model = timm.create_model(name, pretrained=False, features_only=True).eval()
    except RuntimeError as error:  # timm's way to refuse features_only, or the tag after a name
        raise UsageError(f'timm cannot build {name} as a backbone of feature maps: {error}') from error
    open_branches(model)
    reparameterised = reparameterize_model(model).eval()
    changed = len(list(reparameterised.modules())) != len(list(model.modules()))
    return reparameterised, [REPARAMETERISED] if changed else []
