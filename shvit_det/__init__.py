"""SHViT for MMDetection: ``custom_imports = dict(imports=['shvit_det'])``, then ``backbone=dict(type='SHViT')``."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prediction import Predictor

# The doctor has to run where the stack does not, so nothing of it is imported for `python -m shvit_det.doctor`. While
# Python looks for that module, and only then, argv[0] is '-m'.
if sys.argv[:1] != ['-m'] or not any(argument.endswith('shvit_det.doctor') for argument in sys.orig_argv):
    from . import compat

    compat.prepare()  # before anything that imports mmcv.ops

    from . import contract
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

    contract.install()
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
    'deploy',
    'load_checkpoint',
]
