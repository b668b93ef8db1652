"""Registration: ``type='SHViT'`` and ``type='shvit_det.SHViT'`` both resolve, from any OpenMMLab project.

mmengine looks a plain name up in the project's own registry and then in the root; it looks a scoped name up in the
child of the root that carries the scope. So every class of ours is entered twice: in the root and in our child of it.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as ROOT_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

SCOPE = 'shvit_det'

MODELS = Registry(
    'model', parent=ROOT_MODELS, scope=SCOPE, locations=['shvit_det.models.backbone', 'shvit_det.models.neck']
)
OPTIM_WRAPPERS = Registry(
    'optimizer wrapper', parent=ROOT_OPTIM_WRAPPERS, scope=SCOPE, locations=['shvit_det.training.mixed_precision']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['shvit_det.training.layer_decay'],
)
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope=SCOPE, locations=['shvit_det.data.coco_dataset'])
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope=SCOPE,
    locations=[
        f'shvit_det.training.{name}' for name in ('clipping', 'checkpoint_hook', 'finite', 'randomness', 'termination')
    ],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=ROOT_WEIGHT_INITIALIZERS, scope=SCOPE, locations=['shvit_det.checkpoint']
)

Registered = TypeVar('Registered', bound=type)


def register(registry: Registry) -> Callable[[Registered], Registered]:
    """Return a class decorator that enters the class in ``registry`` and in the root registry above it."""

    def enter(cls: Registered) -> Registered:
        registry.register_module(module=cls)
        assert registry.parent is not None
        registry.parent.register_module(module=cls)
        return cls

    return enter


def register_lazily(registry: Registry, name: str, module: str) -> None:
    """Enter the class ``name`` of ``module``, whose import needs an optional package: it happens at the first build."""

    def build(**kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(**kwargs)

    for target in (registry, registry.parent):
        assert target is not None
        target.register_module(name=name, module=build)
