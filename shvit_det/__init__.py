"""SHViT for MMDetection: ``custom_imports = dict(imports=['shvit_det'])``, then ``backbone=dict(type='SHViT')``."""

from . import compat

compat.prepare()  # before anything that imports mmcv.ops

from . import contract  # noqa: E402  (the stack has to be prepared first)
from .arch import ARCHS, Arch  # noqa: E402
from .backbone import SHViT  # noqa: E402
from .checkpoint import SHViTPretrained, load_checkpoint  # noqa: E402
from .deployment import deploy  # noqa: E402
from .engine.amp import BFloat16OptimWrapper  # noqa: E402
from .engine.clipping import AdaptiveGradientClippingHook  # noqa: E402
from .engine.layer_decay import LayerDecayOptimWrapperConstructor  # noqa: E402
from .errors import UsageError  # noqa: E402
from .neck import SHViTFPN  # noqa: E402
from .prediction import Predictor  # noqa: E402
from .registry import MODELS, register_lazily  # noqa: E402
from .version import __version__  # noqa: E402

contract.install()
register_lazily(MODELS, 'SHViTHead', 'shvit_det.classifier')  # needs mmpretrain, which detector users may not have
register_lazily(MODELS, 'SHViTRPNHead', 'shvit_det.rpn')  # needs mmdet, which users of backbones may not have

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
