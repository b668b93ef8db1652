"""Registration: ``type='SHViT'`` and ``type='shvit_det.SHViT'`` both resolve, from any OpenMMLab project.

mmengine looks a plain name up in the project's own registry and then in the root; it looks a scoped name up in the
child of the root that carries the scope. So every class of ours is entered twice: in the root and in our child of it.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = 'shvit_det'


def _child_of(parent: Registry, *modules: str) -> Registry:
    """Return our child of a root registry; ``modules`` are those that fill it."""
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=[f'{SCOPE}.{module}' for module in modules])


MODELS = _child_of(root.MODELS, 'models.backbone', 'models.neck')
DATASETS = _child_of(root.DATASETS, 'data.coco_dataset')
WEIGHT_INITIALIZERS = _child_of(root.WEIGHT_INITIALIZERS, 'checkpoint')
RUNNERS = _child_of(root.RUNNERS, 'training')
LOOPS = _child_of(root.LOOPS, 'training')
HOOKS = _child_of(root.HOOKS, 'training')
OPTIM_WRAPPERS = _child_of(root.OPTIM_WRAPPERS, 'training')
OPTIM_WRAPPER_CONSTRUCTORS = _child_of(root.OPTIM_WRAPPER_CONSTRUCTORS, 'training')

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
