"""Configs: changed by the options of the tools."""

import os
from collections.abc import Mapping, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..common.errors import UsageError
from .reading import SPLITS, datasets_of

SEPARATORS = '/\\'  # Windows takes both


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


def remove_pretrained(config: Config, teachers: bool = False) -> None:
    """Make every part of a model that has pretrained weights in the config start from random ones, except teachers.

    A backbone may be anywhere, as in the ``detector`` of a semi-supervised one. What a teacher of a distillation knows
    is not for the model to start from; ``teachers`` removes that too.
    """
    _remove_pretrained(config.model, teachers)


def _remove_pretrained(node: Any, teachers: bool) -> None:
    if isinstance(node, MutableMapping):
        initial = node.get('init_cfg')
        found = initial if isinstance(initial, list | tuple) else [initial]
        kept = [each for each in found if not (isinstance(each, Mapping) and 'checkpoint' in each)]
        if len(kept) < len(found):
            node['init_cfg'] = kept or None
        if node.get('pretrained'):  # of backbones of timm, and of older ones
            node['pretrained'] = False if node['pretrained'] is True else None
        for name, value in node.items():
            if teachers or not str(name).startswith('teacher'):
                _remove_pretrained(value, teachers)
    elif isinstance(node, list | tuple):
        for each in node:
            _remove_pretrained(each, teachers)


def enable_auto_scale_lr(config: Config) -> None:
    """Make mmengine scale the learning rate by the real total batch over ``auto_scale_lr.base_batch_size``.

    Raises:
        UsageError: If the config does not say for which batch its learning rate is.
    """
    if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
        raise UsageError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, and this one has none')
    config.auto_scale_lr.enable = True


def draw_by_hook(config: Config, **settings: object) -> None:
    """Set arguments of the visualization hook of a config.

    Raises:
        UsageError: If the config has no such hook.
    """
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UsageError('--show-dir needs default_hooks.visualization in the config, and this one has none')
    hook.update(settings)
