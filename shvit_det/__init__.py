"""SHViT for MMDetection: ``custom_imports = dict(imports=['shvit_det'])``, then ``backbone=dict(type='SHViT')``.

The import registers the names of our classes with mmengine (:mod:`.on_import`). Classes and functions are imported when
they are first used, so that this works where torch is broken, and ``python -m shvit_det.doctor`` can tell why.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import on_import
from .common.errors import UsageError
from .version import __version__

if TYPE_CHECKING:
    from .checkpoint import SHViTPretrained, load_checkpoint
    from .configuration.model_zoo import config_file
    from .deployment import deploy
    from .models.arch import ARCHS, Arch
    from .models.backbone import SHViT
    from .models.neck import SHViTFPN
    from .prediction import Predictor
    from .training.hooks.adaptive_clipping import AdaptiveGradientClippingHook
    from .training.layer_decay import LayerDecayOptimWrapperConstructor
    from .training.mixed_precision import BFloat16OptimWrapper

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

# The modules of the names above that are imported at first use.
MODULES = {
    'ARCHS': 'models.arch',
    'AdaptiveGradientClippingHook': 'training.hooks.adaptive_clipping',
    'Arch': 'models.arch',
    'BFloat16OptimWrapper': 'training.mixed_precision',
    'LayerDecayOptimWrapperConstructor': 'training.layer_decay',
    'Predictor': 'prediction',
    'SHViT': 'models.backbone',
    'SHViTFPN': 'models.neck',
    'SHViTPretrained': 'checkpoint',
    'config_file': 'configuration.model_zoo',
    'deploy': 'deployment',
    'load_checkpoint': 'checkpoint',
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{MODULES[name]}'), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


on_import.install()
