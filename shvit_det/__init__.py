"""SHViT for MMDetection: ``custom_imports = dict(imports=['shvit_det'])``, then ``backbone=dict(type='SHViT')``."""

import sys
from typing import TYPE_CHECKING, Any

from .commands import needs_stack

if TYPE_CHECKING:
    from .prediction import Predictor

if needs_stack(sys.argv, sys.orig_argv):
    from . import compat

    compat.prepare()  # before anything that imports mmcv.ops

    from . import by_name, contract
    from .arch import ARCHS, Arch
    from .backbone import SHViT
    from .checkpoint import SHViTPretrained, load_checkpoint
    from .deployment import deploy
    from .engine.amp import BFloat16OptimWrapper
    from .engine.clipping import AdaptiveGradientClippingHook
    from .engine.layer_decay import LayerDecayOptimWrapperConstructor
    from .errors import UsageError
    from .neck import SHViTFPN
    from .registry import MODELS, register_lazily
    from .version import __version__
    from .zoo import config_file

    contract.install()
    by_name.install()
    register_lazily(MODELS, 'SHViTHead', 'shvit_det.classifier')  # needs mmpretrain, which detector users may not have
    register_lazily(MODELS, 'SHViTRPNHead', 'shvit_det.rpn')  # needs mmdet, which users of backbones may not have


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
