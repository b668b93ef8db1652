"""Configs: loaded from a file with ``--cfg-options``, and asked what they say."""

import inspect
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string, is_abs

from ..common.errors import UsageError
from ..data.checking.findings import short
from .model_zoo import PREFIX, config_file

SPLITS = ('train', 'val', 'test')


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
        _name_classes(config)
    except (OSError, SyntaxError, AssertionError, KeyError, TypeError, ImportError, NameError) as error:
        raise UsageError(f'cannot read the config {path}: {type(error).__name__}: {error}') from error
    _remove_none(config)
    return config


def warn_if_new(config: Config, key: str) -> None:
    """Log a warning if ``key``, with dots, names nothing that the config has, which mostly is a typing error."""
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


def _name_classes(config: Config) -> None:
    """Replace every class or function that stands as a type by its dotted name, so that the tools meet text only.

    mmengine writes the same names when it saves a config with classes, and resolves them wherever it builds.
    """
    pending: list[Any] = [config._cfg_dict]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            for key, value in dict.items(node):  # dict's own method, which does not import mmengine's lazy objects
                if key in ('type', 'runner_type'):
                    node[key] = dotted_name(value)
                else:
                    pending.append(value)
        elif isinstance(node, list | tuple):
            pending.extend(node)


def dotted_name(kind: Any) -> Any:
    """Return the dotted name by which a class or function can be imported; anything else is returned unchanged.

    Raises:
        UsageError: If it has none, so that a config with it could not be saved.
    """
    if isinstance(kind, LazyAttr | LazyObject):
        kind = kind.build()
    if not (inspect.isclass(kind) or inspect.isfunction(kind)):
        return kind
    packages = kind.__module__.split('.')
    for length in range(len(packages), 0, -1):  # a shorter one if a function hides the module of the same name
        name = '.'.join([*packages[:length], kind.__qualname__])
        if get_object_from_string(name) is kind:
            return name
    raise UsageError(f'type={kind.__qualname__} cannot be imported from anywhere: put it into a module of its own')


def _remove_none(config: Config) -> None:
    """Remove settings of mmengine's runner that are None although it wants a value, so that it takes its default.

    None as ``default_scope`` has a meaning: no project is searched for names.
    """
    for name, parameter in inspect.signature(Runner.__init__).parameters.items():
        wants_value = parameter.default not in (None, inspect.Parameter.empty)
        if wants_value and name != 'default_scope' and name in config and config[name] is None:
            config.pop(name)


def name_of(path: str) -> str:
    """Return the name of a config, a file or one of an installed project, without folders, project and suffix."""
    return Path(path.rpartition('::')[2]).stem


def type_of(node: Mapping[str, Any], default: str = '') -> str:
    """Return the name of the class that a dict in a config names, without its project."""
    kind = node.get('type', default)
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).rsplit('.', 1)[-1]


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


def dataset_tree(config: Config, split: str) -> Iterator[tuple[str, MutableMapping, bool]]:
    """Yield the dataset dicts of a split, wrappers such as ``ConcatDataset`` before what is inside.

    With each comes its place in the config, as ``--cfg-options`` spells it, and whether it is a wrapper.

    Raises:
        UsageError: If one is no dict: mmdet 2 took lists of data sets and of annotation files.
    """
    loader = config.get(f'{split}_dataloader')
    pending = [(f'{split}_dataloader.dataset', loader['dataset'])] if loader else []
    while pending:
        place, dataset = pending.pop(0)
        if not isinstance(dataset, MutableMapping):
            raise UsageError(
                f'{place} is {short(dataset)}, and one dict is wanted: several data sets are joined by '
                f"dict(type='ConcatDataset', datasets=[...])"
            )
        inner: list[tuple[str, Any]] = []
        if 'dataset' in dataset:
            inner = [(f'{place}.dataset', dataset['dataset'])]
        elif 'datasets' in dataset:
            inner = [(f'{place}.datasets.{number}', each) for number, each in enumerate(dataset['datasets'])]
        elif isinstance(dataset.get('ann_file'), list | tuple):
            raise UsageError(
                f'{place}.ann_file is {short(dataset["ann_file"])}, and one file is wanted: several data sets are '
                f"joined by dict(type='ConcatDataset', datasets=[...])"
            )
        yield place, dataset, bool(inner)
        pending = inner + pending


def dataset_places(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the innermost dataset dicts of a split, each with its place in the config."""
    return ((place, dataset) for place, dataset, is_wrapper in dataset_tree(config, split) if not is_wrapper)


def path_within(dataset: Mapping, path: str) -> str:
    """Return a file or folder that a dataset dict names, joined with its ``data_root`` as mmengine does."""
    return path if is_abs(path) else os.path.join(dataset.get('data_root') or '', path)


def datasets_of(config: Config, split: str) -> Iterator[MutableMapping]:
    """Yield the innermost dataset dicts of a split."""
    return (dataset for _, dataset in dataset_places(config, split))


def inference_split(config: Config) -> str | None:
    """Return the split whose pipeline and classes are those for new images: test, or else val; None without both."""
    return next((split for split in ('test', 'val') if config.get(f'{split}_dataloader')), None)


def inference_pipeline(config: Config) -> list[Mapping]:
    """Return the steps that make an input for the model from a new image, and perhaps load annotations too.

    Raises:
        UsageError: If the config has none.
    """
    split = inference_split(config)
    dataset = next(datasets_of(config, split), {}) if split else {}
    pipeline = dataset.get('pipeline') or config.get('test_pipeline')
    if not pipeline:
        raise UsageError(
            'the config does not say how a new image is read: it needs a test_dataloader or a val_dataloader with a '
            'pipeline, or test_pipeline'
        )
    return list(pipeline)


def named_classes(dataset: Mapping, kind: type) -> tuple[str, ...] | None:
    """Return the names of the classes that a dataset dict or its class states, or None if neither does."""
    classes: str | Sequence[str] | None = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if classes is None:
        return None
    return (classes,) if isinstance(classes, str) else tuple(classes)


def evaluators_of(config: Config, split: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the evaluators of a split, each with its place in the config as ``--cfg-options`` spells it."""
    place = f'{split}_evaluator'
    found: Any = config.get(place) if split != 'train' else None
    if isinstance(found, Mapping) and 'metrics' in found:  # mmengine's Evaluator, which a config may name itself
        place, found = f'{place}.metrics', found['metrics']
    if isinstance(found, MutableMapping):
        yield place, found
    else:
        yield from ((f'{place}.{number}', each) for number, each in enumerate(found or ()))


def pretrained_arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of the backbone's ``SHViTPretrained``; empty if there is nothing to load."""
    init_cfg = config.model.get('backbone', {}).get('init_cfg')
    if not isinstance(init_cfg, Mapping) or type_of(init_cfg) != 'SHViTPretrained':
        return {}
    return {name: value for name, value in init_cfg.items() if name != 'type'}
