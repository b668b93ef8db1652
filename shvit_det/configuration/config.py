"""Configs: read, and changed by the options of the tools."""

import inspect
import os
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string

from ..common.errors import UsageError
from .model_zoo import PREFIX, config_file

SPLITS = ('train', 'val', 'test')
SEPARATORS = '/\\'  # Windows takes both


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a file with ``--cfg-options`` merged into it.

    Args:
        path: A file, or a config of an installed project: ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``, or
            ``shvit_det::mask_rcnn_shvit_s4_coco.py``.
        options: Changes of single values, dotted names.

    Raises:
        UsageError: If the config does not exist or cannot be read.
    """
    if path.startswith(PREFIX):
        path = config_file(path)
    installed = '::' in path
    if not installed and not Path(path).is_file():
        raise UsageError(f'no such config: {path}')
    try:
        config = Config.fromstring(f'_base_ = {path!r}', '.py') if installed else Config.fromfile(path)
        for key in options or {}:
            warn_if_new(config, key)
        config.merge_from_dict(dict(options or {}))
        name_classes(config)
    except (OSError, SyntaxError, AssertionError, KeyError, TypeError, ImportError, NameError) as error:
        raise UsageError(f'cannot read the config {path}: {type(error).__name__}: {error}') from error
    leave_out_none(config)
    return config


def name_classes(config: Config) -> None:
    """Replace every class or function that stands as a ``type`` by its dotted name.

    mmengine writes the same names when it saves a config with classes, and resolves them wherever it builds. The rest
    of the tools then meets text only.
    """
    pending: list[Any] = [config._cfg_dict]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            for key, value in dict.items(node):  # the dict's own, which leaves mmengine's lazy imports as they are
                if key == 'type':
                    node[key] = dotted_name(value)
                else:
                    pending.append(value)
        elif isinstance(node, list | tuple):
            pending.extend(node)


def dotted_name(kind: Any) -> Any:
    """Return the dotted name by which a class or function can be imported; anything else as it is.

    Raises:
        UsageError: If it has none, so that a config with it could not be saved.
    """
    if isinstance(kind, LazyAttr | LazyObject):
        kind = kind.build()
    if not (inspect.isclass(kind) or inspect.isfunction(kind)):
        return kind
    packages = kind.__module__.split('.')
    for length in range(len(packages), 0, -1):  # a shorter one where a function hides the module of the same name
        name = '.'.join([*packages[:length], kind.__qualname__])
        if get_object_from_string(name) is kind:
            return name
    raise UsageError(f'type={kind.__qualname__} cannot be imported from anywhere: put it into a module of its own')


def type_of(node: Mapping[str, Any], default: str = '') -> str:
    """Return the name of the class that a dict in a config is about, without its project."""
    kind = node.get('type', default)
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).rsplit('.', 1)[-1]


def leave_out_none(config: Config) -> None:
    """Remove the settings of mmengine's runner that are None where the runner wants a value, so that it takes its own.

    None as ``default_scope`` means something: that no project is looked through for names.
    """
    for name, parameter in inspect.signature(Runner.__init__).parameters.items():
        wants_value = parameter.default not in (None, inspect.Parameter.empty)
        if wants_value and name != 'default_scope' and name in config and config[name] is None:
            config.pop(name)


def name_of(path: str) -> str:
    """Return the name of a config, a file or one of an installed project, without folders, project and suffix."""
    return Path(path.rpartition('::')[2]).stem


def warn_if_new(config: Config, key: str) -> None:
    """Log a warning if ``key``, with dots, names nothing that the config has: most of the time a typing error."""
    node: Any = config
    for part in key.split('.'):
        if isinstance(node, Mapping | Config):
            found = part in node
        elif isinstance(node, Sequence) and not isinstance(node, str):
            found = part.isdigit() and int(part) < len(node)
        else:
            found = False
        if not found:
            print_log(f'--cfg-options {key}: the config has no {part!r} there, it is added', 'current', 30)
            return
        node = node[int(part)] if part.isdigit() and not isinstance(node, Mapping | Config) else node[part]


def dataset_places(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the innermost dataset dicts of a split, through wrappers such as ``RepeatDataset`` or ``ConcatDataset``.

    With each comes its place in the config, as ``--cfg-options`` spells it.
    """
    loader = config.get(f'{split}_dataloader')
    pending = [(f'{split}_dataloader.dataset', loader['dataset'])] if loader else []
    while pending:
        place, dataset = pending.pop(0)
        if 'dataset' in dataset:
            pending.append((f'{place}.dataset', dataset['dataset']))
        elif 'datasets' in dataset:
            pending.extend((f'{place}.datasets.{number}', inner) for number, inner in enumerate(dataset['datasets']))
        else:
            yield place, dataset


def datasets_of(config: Config, split: str) -> Iterator[MutableMapping]:
    """Yield the innermost dataset dicts of a split."""
    return (dataset for _, dataset in dataset_places(config, split))


def evaluators_of(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the evaluators of a split, each with its place in the config as ``--cfg-options`` spells it."""
    place = f'{split}_evaluator'
    found: Any = config.get(place) if split != 'train' else None
    if isinstance(found, Mapping) and 'metrics' in found:  # mmengine's Evaluator, which may also be written out
        place, found = f'{place}.metrics', found['metrics']
    if isinstance(found, MutableMapping):
        yield place, found
    else:
        yield from ((f'{place}.{number}', each) for number, each in enumerate(found or ()))


def splits_of(config: Config) -> list[str]:
    """Return the splits that a config says how to run.

    Raises:
        UsageError: If it says only a part of that, which mmengine refuses too.
    """
    splits = []
    for split in SPLITS:
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        names = (f'{split}_dataloader', f'{split}_cfg', last)
        missing = [name for name in names if config.get(name) is None]
        if not missing:
            splits.append(split)
        elif len(missing) < len(names):
            there = ' and '.join(name for name in names if name not in missing)
            raise UsageError(
                f'the config has {there}, but no {" and ".join(missing)}: set all three, or all three to None'
            )
    return splits


def set_data_root(config: Config, root: str) -> None:
    """Point every loader and evaluator of ``config`` at another folder of the same layout.

    Raises:
        UsageError: If there is no such folder, or the config names no folder that could be replaced.
    """
    if not Path(root).is_dir():
        raise UsageError(f'no such data folder: {root}')
    named = [config.get('data_root'), *(d.get('data_root') for split in SPLITS for d in datasets_of(config, split))]
    old_roots = {old for old in named if old}
    if not old_roots:
        raise UsageError('--data-root needs a config whose datasets have a data_root, and this one has none')
    new = os.path.join(root, '')
    for split in SPLITS:
        for part in ('dataloader', 'evaluator'):
            _replace_root(config.get(f'{split}_{part}'), old_roots, new)
    config.data_root = new
    config.pop('sample_set', None)


def _replace_root(node: Any, old_roots: set[str], new: str) -> None:
    items: Any = ()
    if isinstance(node, MutableMapping):
        items = list(node.items())
    elif isinstance(node, MutableSequence):
        items = enumerate(node)
    for key, value in items:
        if isinstance(value, str):
            for old in old_roots:
                below = value.removeprefix(old.rstrip(SEPARATORS))
                if below != value and below[:1] in ('', *SEPARATORS):
                    node[key] = os.path.join(new, below.lstrip(SEPARATORS))
                    break
        else:
            _replace_root(value, old_roots, new)


def pretrained_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of a backbone's ``SHViTPretrained``; empty where there is nothing to load."""
    init_cfg = config.model.get('backbone', {}).get('init_cfg')
    if not isinstance(init_cfg, Mapping) or type_of(init_cfg) != 'SHViTPretrained':
        return {}
    return {name: value for name, value in init_cfg.items() if name != 'type'}


def remove_pretrained(config: Config) -> None:
    """Let a backbone that has pretrained weights in the config start from random ones, any kind of backbone."""
    init_cfg = config.model.get('backbone', {}).get('init_cfg')
    if isinstance(init_cfg, Mapping) and 'checkpoint' in init_cfg:
        config.model.backbone.init_cfg = None


def enable_auto_scale_lr(config: Config) -> None:
    """Scale the learning rate by the real total batch over ``auto_scale_lr.base_batch_size``.

    Raises:
        UsageError: If the config does not say for which batch its learning rate is.
    """
    if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, and this one has none')
    config.auto_scale_lr.enable = True
