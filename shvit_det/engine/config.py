"""Configs: read, and changed by the options of the tools."""

import os
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..errors import UsageError
from ..zoo import PREFIX, config_file

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
    except (OSError, SyntaxError, AssertionError, KeyError, TypeError, ImportError, NameError) as error:
        raise UsageError(f'cannot read the config {path}: {type(error).__name__}: {error}') from error
    return config


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
    init_cfg = config.model.get('backbone', {}).get('init_cfg') or {}
    kind = init_cfg.get('type') if isinstance(init_cfg, Mapping) else None
    if kind not in ('SHViTPretrained', 'shvit_det.SHViTPretrained'):
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
    if 'base_batch_size' not in config.get('auto_scale_lr', {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, and this one has none')
    config.auto_scale_lr.enable = True
