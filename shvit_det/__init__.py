"""SHViT for MMDetection: ``custom_imports = dict(imports=['shvit_det'])``, then ``backbone=dict(type='SHViT')``."""

import sys
from typing import TYPE_CHECKING, Any

from .commands import needs_stack

if TYPE_CHECKING:
    from .prediction import Predictor

if needs_stack(sys.argv, sys.orig_argv):
    from . import compat

    compat.prepare()  # before anything that imports mmcv.ops

    from .checkpoint import SHViTPretrained, load_checkpoint
    from .common.errors import UsageError
    from .configuration import names_for_mmengine
    from .configuration.model_zoo import config_file
    from .deployment import deploy
    from .models import detector_check
    from .models.arch import ARCHS, Arch
    from .models.backbone import SHViT
    from .models.neck import SHViTFPN
    from .registry import MODELS, register_lazily
    from .training import AdaptiveGradientClippingHook, BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor
    from .version import __version__

    detector_check.install()
    names_for_mmengine.install()
    register_lazily(
        MODELS, 'SHViTHead', 'shvit_det.models.classifier'
    )  # needs mmpretrain, which detector users may not have
    register_lazily(
        MODELS, 'SHViTRPNHead', 'shvit_det.models.rpn'
    )  # needs mmdet, which users of backbones may not have


def __getattr__(name: str) -> Any:
    """Import what draws and reads pictures only where it is asked for; it needs mmdet."""
    if name == 'Predictor':
        from .prediction import Predictor

        return Predictor
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'ARCHS',
    'AdaptiveGradientClippingHook',
    'Arch',
    'BFloat16OptimWrapper',
    'LayerDecayOptimWrapperConstructor',
    'Predictor',
    'SHViT',
    'SHViTFPN',
    'SHViTPretrained',
    'UsageError',
    '__version__',
    'config_file',
    'deploy',
    'load_checkpoint',
]
