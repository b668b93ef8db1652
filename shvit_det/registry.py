"""Registration: ``type='SHViT'`` and ``type='shvit_det.SHViT'`` both resolve, from any OpenMMLab project.

mmengine looks for a plain name in the project's own registry and then in the root; it looks for a scoped name in the
child of the root that has the scope. So every class of ours is entered twice: in the root and in our child of it.

The names are entered here, with the modules that define them. A module is imported when one of its names is used, since
most need torch, and some mmdet or mmpretrain, which not every user has.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = 'shvit_det'

Registered = TypeVar('Registered', bound=type)


class _Unimported(type):
    """The type of classes that stand in the registries until the class of that name has been imported.

    Calling one, or asking for an attribute, imports the module and uses the real class.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return getattr(cls.real(), name)

    def real(cls) -> type:
        real: type = getattr(importlib.import_module(cls.__module__), cls.__name__)
        return real


def real_class(kind: Any) -> Any:
    """Return the class that a stand-in in the registries stands for; anything else is returned unchanged."""
    return kind.real() if isinstance(kind, _Unimported) else kind


def _child_of(parent: Registry, **modules: str) -> Registry:
    """Return our child of a root registry and enter the classes in both; ``modules`` has their modules by name."""
    child = Registry(parent.name, parent=parent, scope=SCOPE, locations=[__name__])  # no other module has to fill it
    for name, module in modules.items():
        unimported = _Unimported(name, (), {'__module__': f'{SCOPE}.{module}'})
        for registry in (child, parent):
            registry.register_module(module=unimported)
    return child


MODELS = _child_of(
    root.MODELS,
    SHViT='models.backbone',
    SHViTFPN='models.neck',
    SHViTRPNHead='models.rpn',
    SHViTHead='models.classifier',
    MaskTTAModel='models.mask_tta',
)
WEIGHT_INITIALIZERS = _child_of(root.WEIGHT_INITIALIZERS, SHViTPretrained='checkpoint.loading')
DATASETS = _child_of(root.DATASETS, CheckedCocoDataset='data.coco_dataset')
RUNNERS = _child_of(root.RUNNERS, SHViTRunner='training.runner')
LOOPS = _child_of(root.LOOPS, ResumableEpochLoop='training.loop')
HOOKS = _child_of(
    root.HOOKS,
    AdaptiveGradientClippingHook='training.hooks.adaptive_clipping',
    FiniteCheckHook='training.hooks.finite_check',
    ResumableEarlyStoppingHook='training.hooks.early_stopping',
    RunSummaryHook='training.hooks.run_summary',
    SafeCheckpointHook='training.hooks.safe_checkpoint',
    StepSeedHook='training.hooks.step_seed',
    TerminationHook='training.hooks.termination',
    ValidationLossHook='training.hooks.validation_loss',
)
OPTIM_WRAPPERS = _child_of(
    root.OPTIM_WRAPPERS,
    BFloat16OptimWrapper='training.mixed_precision',
    LossScaleOptimWrapper='training.mixed_precision',
)
OPTIM_WRAPPER_CONSTRUCTORS = _child_of(
    root.OPTIM_WRAPPER_CONSTRUCTORS, LayerDecayOptimWrapperConstructor='training.layer_decay'
)


def register(registry: Registry) -> Callable[[Registered], Registered]:
    """Return a class decorator that enters the class in ``registry`` and in the root registry above it.

    The name has to stand above, so that it is found before the class has been imported.
    """

    def enter(cls: Registered) -> Registered:
        assert registry.parent is not None
        for target in (registry, registry.parent):
            assert cls.__name__ in target.module_dict, f'add {cls.__name__} to {__name__}'
            target.register_module(module=cls, force=True)
        return cls

    return enter
