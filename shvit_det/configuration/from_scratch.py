"""What a config needs to train a detector from random weights: the settings of ``configs/_base_/from_scratch.py``."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from torch import nn

from .changing import remove_pretrained
from .model_zoo import config_file
from .reading import load_config

SMALLEST_SIDE = 128  # pixels from which norms can learn from a single image: the last map has 2x2 positions


def drop_pretrained(config: Config) -> dict[str, Any]:
    """Take all pretrained weights out of a config's model; return what has changed, by dotted keys."""
    before = deepcopy(config.model)
    remove_pretrained(config)
    return dict(_changes(before, config.model, 'model'))


def apply_recipe(config: Config, model: nn.Module) -> dict[str, Any]:
    """Set norms, optimizer and rate in a config, whose model this is; return what has changed, by dotted keys."""
    recipe = load_config(config_file('_base_/from_scratch'))
    backbone = getattr(model, 'backbone', None)
    values = {
        f'model.backbone.{name}': value
        for name, value in recipe.model.backbone.items()
        if getattr(backbone, name, value) != value
    }
    values |= {'optim_wrapper': {**recipe.optim_wrapper, '_delete_': True}, 'auto_scale_lr': recipe.auto_scale_lr}
    config.merge_from_dict(deepcopy(values))  # which takes _delete_ out
    return values


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in after.items():
        former = before.get(name)
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            yield from _changes(former, value, f'{key}.{name}')
        elif value != former:
            yield f'{key}.{name}', value
