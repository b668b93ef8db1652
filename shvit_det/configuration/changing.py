"""Configs: changed by the options of the tools."""

import os
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.utils import is_abs
from torch import nn

from ..common.errors import UsageError
from .cfg_options import dicts_in, pasteable
from .model_zoo import config_file
from .reading import SPLITS, dataset_places, evaluators_of, load_config, path_within, type_of
from .type_names import class_of

SEPARATORS = '/\\'  # Windows takes both
SMALLEST_FROM_SCRATCH = 128  # pixels from which norms can learn from a single image: the last map has 2x2 positions


def set_data_root(config: Config, root: str) -> None:
    """Point every loader and evaluator of ``config`` at another folder of the same layout.

    Raises:
        UsageError: If there is no such folder, the config names no folder that could be replaced, or data sets that
            have different files would get the same.
    """
    if not Path(root).is_dir():
        raise UsageError(f'no such data folder: {root}')
    places = {place: dataset for split in SPLITS for place, dataset in dataset_places(config, split)}
    own_roots = {dataset['data_root'] for dataset in places.values() if dataset.get('data_root')}
    old_roots = own_roots | ({config.data_root} if config.get('data_root') else set())
    if not old_roots:
        raise UsageError('--data-root needs a config whose datasets have a data_root, and this one has none')
    # with several folders the one above them first, so that they stay apart; otherwise the one of the data sets
    roots = sorted([*old_roots, *_roots_of_evaluators(config)], key=len, reverse=len(own_roots) < 2)
    files = {place: path_within(dataset, dataset.get('ann_file') or '') for place, dataset in places.items()}
    new = os.path.join(root, '')
    for split in SPLITS:
        for part in ('dataloader', 'evaluator'):
            _replace_root(config.get(f'{split}_{part}'), roots, new)
        for key, evaluator in evaluators_of(config, split):
            if not str(evaluator.get('ann_file', new)).startswith(new):
                print_log(
                    f'--data-root: {key}.ann_file stays {evaluator["ann_file"]}, which is not below data_root',
                    'current',
                )
    config.data_root = new
    config.pop('sample_set', None)
    first: dict[str, str] = {}
    for place, dataset in places.items():
        file = path_within(dataset, dataset.get('ann_file') or '')
        other = first.setdefault(file, place)
        if files[other] != files[place]:
            raise UsageError(
                f'--data-root {root} would give {other} and {place} the same file {file}, and they have '
                f'{files[other]} and {files[place]}: set both, {pasteable({f"{place}.data_root": "DIR"})}'
            )


def _roots_of_evaluators(config: Config) -> Iterator[str]:
    """Yield the folders in which evaluators expect the annotation files that the data sets have below ``data_root``."""
    for split in SPLITS:
        names = [dataset.get('ann_file') for _, dataset in dataset_places(config, split)]
        for _, evaluator in evaluators_of(config, split):
            file = str(evaluator.get('ann_file'))
            yield from (file.removesuffix(name) for name in names if name and file.endswith(f'/{name}'))


def _replace_root(node: Any, old_roots: Sequence[str], new: str) -> None:
    items: Any = ()
    if isinstance(node, MutableMapping):
        items = list(node.items())
    elif isinstance(node, MutableSequence):
        items = enumerate(node)
    for key, value in items:
        if isinstance(value, str):
            below = next((found for old in old_roots if (found := _below(value, old)) is not None), None)
            if below is not None:
                node[key] = os.path.join(new, below)
        else:
            _replace_root(value, old_roots, new)


def _below(path: str, root: str) -> str | None:
    """Return a path relative to a folder, or None if it is not below it; a relative folder may have absolute paths."""
    root = root.rstrip(SEPARATORS)
    if Path(path).is_absolute() and not is_abs(root):
        root = str(Path(root).absolute())
    below = path.removeprefix(root)
    return below.lstrip(SEPARATORS) if below != path and below[:1] in ('', *SEPARATORS) else None


def remove_pretrained(config: Config, teachers: bool = False) -> None:
    """Make every part of a model that has pretrained weights in the config start from random ones, except teachers.

    A backbone may be anywhere, as in the ``detector`` of a semi-supervised one. What a teacher of a distillation knows
    is not for the model to start from; ``teachers`` removes that too.
    """
    for place, node in list(dicts_in(config.model, 'model')):
        if '.teacher' in place and not teachers:
            continue
        initial = node.get('init_cfg')
        found = initial if isinstance(initial, list | tuple) else [initial]
        kept = [each for each in found if not (isinstance(each, Mapping) and 'checkpoint' in each)]
        if len(kept) < len(found):
            node['init_cfg'] = kept or None
        if node.get('pretrained'):  # of backbones of timm, and of older ones
            node['pretrained'] = False if node['pretrained'] is True else None


def drop_pretrained(config: Config) -> dict[str, Any]:
    """Take all pretrained weights out of a config's model; return what has changed, by dotted keys."""
    before = deepcopy(config.model)
    remove_pretrained(config)
    return dict(_changes(before, config.model, 'model'))


def apply_recipe(config: Config, model: nn.Module) -> dict[str, Any]:
    """Set norms, optimizer and rate as ``configs/_base_/from_scratch.py`` has them, in a config with this model.

    Return what has changed, by dotted keys.
    """
    recipe = load_config(config_file('_base_/from_scratch'))
    backbone = getattr(model, 'backbone', None)
    values = {
        f'model.backbone.{name}': value
        for name, value in recipe.model.backbone.items()
        if getattr(backbone, name, value) != value
    }
    values |= {'optim_wrapper': {**recipe.optim_wrapper, '_delete_': True}, 'auto_scale_lr': recipe.auto_scale_lr}
    config.auto_scale_lr = config.get('auto_scale_lr') or {}
    config.merge_from_dict(deepcopy(values))  # which takes _delete_ out
    return values


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in after.items():
        former = before.get(name)
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            yield from _changes(former, value, f'{key}.{name}')
        elif value != former:
            yield f'{key}.{name}', value


def enable_auto_scale_lr(config: Config) -> None:
    """Make mmengine scale the learning rate by the real total batch over ``auto_scale_lr.base_batch_size``."""
    if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, and this one has none')
    config.auto_scale_lr.enable = True


def use_checked_datasets(config: Config) -> None:
    """Replace mmdet's ``CocoDataset`` by ours, which checks what it loads as ``bad_data`` says, wherever one is."""
    for split in SPLITS:
        for _, node in list(dicts_in(config.get(f'{split}_dataloader'), split)):
            if type_of(node) != 'CocoDataset':
                continue
            kind = class_of(DATASETS, node, node.get('_scope_', config.get('default_scope')))
            if kind is not None and kind.__module__ == 'mmdet.datasets.coco':  # by name: mmdet need not be installed
                node['type'] = 'shvit_det.CheckedCocoDataset'
                node.setdefault('bad_data', config.get('bad_data', 'refuse'))
