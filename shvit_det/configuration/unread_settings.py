"""Settings in a config that nothing reads, or that make scores wrong without an error: found before a run starts."""

import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from torch import nn

from ..common.errors import UsageError
from ..common.log import warn
from .build_errors import nearest, unknown_key
from .cfg_options import dicts_in
from .reading import dataset_tree, type_of
from .type_names import class_of

MODEL_PARTS = ('train_cfg', 'test_cfg')
HISTORICAL = ('debug', 'score_voting')  # in configs of mmdet itself, which does not read them any more
USUAL = ('score_thr', 'nms', 'nms_pre', 'max_per_img', 'min_bbox_size', 'mask_thr_binary', 'assigner', 'sampler', 'rpn')
SHARED = ('mmdet.models.layers', 'mmdet.models.task_modules', 'mmdet.models.utils', 'mmdet.structures')
ATTRIBUTES_AND_TEXTS = re.compile(r"""[.'"](\w+)""")  # in a model's own code, which may look up a key in any way
KEYS_OF_SETTINGS = re.compile(r"""cfg(?:\.get\(\s*|\[|\.)['"]?(\w+)""")  # in all of mmdet
CUSTOM_KEYS = ('lr_mult', 'decay_mult')
CONSTRUCTORS = ('DefaultOptimWrapperConstructor', 'LayerDecayOptimWrapperConstructor')  # that read them
# Transforms that move pixels. Predictions are scaled back to the image of the file, and not moved.
MOVING = (
    *('RandomFlip', 'RandomCrop', 'RandomShift', 'MinIoURandomCrop', 'RandomCenterCropPad', 'Expand'),
    *('RandomAffine', 'Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'),
    *('Mosaic', 'CachedMosaic', 'MixUp', 'CachedMixUp', 'CopyPaste'),
)
MERGING = ('TestTimeAug', 'MultiScaleFlipAug')  # predictions of several views are moved back by what merges them


def check_model_settings(config: Config, model: nn.Module) -> None:
    """Refuse keys in ``train_cfg`` and ``test_cfg`` of the model, which its parts look up by name, that nothing reads.

    Known are the names that the model's own code may look up, and those that any code of mmdet looks up in settings:
    configs of mmdet have keys that only other models read.
    """
    of_mmdet = frozenset(name for name in sys.modules if name.startswith('mmdet.models.'))
    known = words_in(own_modules(model), ATTRIBUTES_AND_TEXTS) | words_in(of_mmdet, KEYS_OF_SETTINGS)
    for place, part in dicts_in(config.get('model'), 'model'):
        for name in MODEL_PARTS:
            for key, siblings in untyped_keys(part.get(name), f'{place}.{name}'):
                last = key.rpartition('.')[2]
                if last not in HISTORICAL and last not in known:
                    near = nearest(last, (*siblings, *USUAL))
                    hint = f'did you mean {near!r}?' if near else 'leave it out'
                    raise UsageError(f'nothing in {type(model).__name__} reads {key}: {hint}')


def untyped_keys(node: Any, place: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the keys in dicts from which no class is built, each with those beside it."""
    if isinstance(node, list | tuple):
        for number, each in enumerate(node):
            yield from untyped_keys(each, f'{place}.{number}')
    elif isinstance(node, Mapping) and 'type' not in node:
        for key, value in node.items():
            if not str(key).startswith('_'):
                yield f'{place}.{key}', [str(other) for other in node if other != key]
                yield from untyped_keys(value, f'{place}.{key}')


def own_modules(model: nn.Module) -> frozenset[str]:
    """Return the names of the Python modules that may read a model's settings.

    Those are the modules of the classes that have settings, with all of a package that is not mmdet, and what mmdet's
    classes share.
    """
    parts = [module for module in model.modules() if any(hasattr(module, name) for name in MODEL_PARTS)]
    own = {kind.__module__ for module in parts for kind in type(module).__mro__}
    packages = {name.partition('.')[0] for name in own} - {'builtins', 'torch', 'mmengine', 'mmcv', 'mmdet'}
    return frozenset(
        own | {name for name in sys.modules if name.partition('.')[0] in packages or name.startswith(SHARED)}
    )


@functools.cache
def words_in(modules: frozenset[str], pattern: re.Pattern) -> frozenset[str]:
    """Return what a pattern finds in the sources of modules."""
    words: set[str] = set()
    for name in modules:
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and file.endswith('.py') and Path(file).is_file():
            words.update(pattern.findall(Path(file).read_text(encoding='utf-8', errors='replace')))
    return frozenset(words)


def check_optimizer_keys(config: Config, model: nn.Module) -> None:
    """Check ``custom_keys`` of the optimizer: parts of names of parameters, each with factors.

    A key that no parameter has is a line in the log.
    """
    wrapper = config.get('optim_wrapper')
    settings = wrapper.get('paramwise_cfg') if isinstance(wrapper, Mapping) else None
    if not isinstance(settings, Mapping):
        return
    if str(wrapper.get('constructor', CONSTRUCTORS[0])).rpartition('.')[2] not in CONSTRUCTORS:
        return
    place, keys = 'optim_wrapper.paramwise_cfg.custom_keys', settings.get('custom_keys') or {}
    if not isinstance(keys, Mapping):
        raise UsageError(f'{place} is {keys!r}, where a dict is wanted: custom_keys=dict(backbone=dict(lr_mult=0.1))')
    names = [name for name, _ in model.named_parameters()]
    for key, factors in keys.items():
        if not isinstance(factors, Mapping):
            raise UsageError(f'{place}.{key} is {factors!r}, where a dict is wanted: dict(lr_mult={factors!r})')
        for name in factors:
            if name not in CUSTOM_KEYS:
                raise UsageError(unknown_key(f'{place}.{key}', name, 'mmengine', CUSTOM_KEYS))
        if not any(key in name for name in names):
            parts = dict.fromkeys(name.partition('.')[0] for name in names)
            warn(f'{place}.{key} changes nothing: no parameter has {key!r} in its name; they begin with '
                 f'{", ".join(parts)}')  # fmt: skip


def warn_of_moving(config: Config, splits: Sequence[str]) -> None:
    """Log the transforms of a validation or test after which predictions do not lie where the image has its objects."""
    for split in splits:
        if split == 'train':
            continue
        for place, dataset, _ in dataset_tree(config, split):
            steps = list(dicts_in(dataset.get('pipeline'), f'{place}.pipeline'))
            if any(type_of(node) in MERGING for _, node in steps):
                continue
            for inner, node in steps:
                kind = class_of(TRANSFORMS, node)
                if kind is not None and kind.__name__ in MOVING and node.get('prob') != 0:
                    warn(f'{inner} is {kind.__name__}: predictions are not moved back, so that scores and pictures '
                         f'will be wrong: leave it out in {split}_dataloader')  # fmt: skip


def warn_of_normalization(config: Config, splits: Sequence[str]) -> None:
    """Log images that are normalized twice, or by numbers for images with values from 0 to 1."""
    preprocessor = (config.get('model') or {}).get('data_preprocessor') or {}
    mean, deviation = preprocessor.get('mean'), preprocessor.get('std')
    if not isinstance(mean, Sequence) or not isinstance(deviation, Sequence) or not any(mean):
        return
    if max(*mean, *deviation) <= 1:
        warn(f'data_preprocessor has mean={list(mean)} and std={list(deviation)}, which are for values from 0 to 1; '
             f'images have values from 0 to 255: multiply both by 255')  # fmt: skip
    for split in splits:
        for place, node in dicts_in(config.get(f'{split}_dataloader'), f'{split}_dataloader'):
            if type_of(node) == 'Normalize':
                warn(f'{place} normalizes images, and data_preprocessor does so again: leave one of them out')
