"""A checkpoint as a detector for inference: its config, its weights, the names and colours of its classes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry

from ..checkpoint import find_checkpoint, load_content
from ..checkpoint.reading import read_content
from ..checkpoint.stored_config import stored_classes, stored_config, stored_data_meta
from ..common.errors import UsageError
from ..common.log import warn
from ..configuration.detector_or_classifier import task_of
from ..configuration.reading import change_and_check, inference_split, load_config
from ..configuration.task import Task
from ..configuration.test_time_augmentation import with_tta
from ..deployment import deploy
from .drawing import Color, class_colors

SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'shvit_det')
EVALUATED = ('dtype', 'warp_mode')  # arguments whose text mmpretrain (of a transform) and mmdet (of a tracker) evaluate
DATA = ('metainfo',)  # the key of a dataset from whose content nothing is built


def load_detector(
    weights: str | Path,
    config_path: str | None,
    options: Mapping[str, Any] | None,
    device: torch.device,
    deployed: bool,
    tta: bool = False,
) -> tuple[Any, Config, tuple[str, ...], tuple[Color, ...]]:
    """Build the detector of a checkpoint; see :class:`shvit_det.Predictor` for the arguments.

    Returns:
        The model in eval mode, its config, the names of the classes by label, which are none if neither the checkpoint
        nor the config has them, and a colour for each.

    Raises:
        UsageError: If the file cannot be found or read, has no config, or does not fit its config.
    """
    content = read_content(find_checkpoint(weights))
    config = load_config(config_path, options) if config_path else config_of_checkpoint(content, weights, options)
    if 'model' not in config:
        raise UsageError(f'{config_path or weights} has no model in its config')
    task = task_of(config)
    if task.scope != 'mmdet':
        raise UsageError(f'{weights} is a {task.noun}: pictures are predicted by detectors')
    task.register()
    if config_path is None:
        check_types(config, weights)
    model = task.build(config)
    if difference := task.checkpoint_class_difference(config, content, str(weights), ('test',)):
        warn(f'{difference}; the names in the file are used')
    load_content(model, content, str(weights))
    model.eval().requires_grad_(False).to(device)
    if deployed:
        try:
            model = deploy(model)
        except UsageError as error:
            print_log(f'predicting with the model as it is: {error}', 'current')
    if tta:
        model = with_tta(config, model)
    classes = classes_of(content, config, task)
    return model, config, classes, class_colors(stored_data_meta(content).get('palette'), len(classes))


def config_of_checkpoint(content: Any, weights: str | Path, options: Mapping[str, Any] | None) -> Config:
    """Return the config in a checkpoint, with ``--cfg-options`` merged into it.

    Raises:
        UsageError: If there is none, or it is more than plain data.
    """
    stored = stored_config(content)
    if stored is None:
        raise UsageError(f'{weights} does not carry its config: name it with --config CONFIG')
    try:
        config = Config(stored)
    except (KeyError, TypeError) as error:
        raise UsageError(f'the config in {weights} cannot be used: {error}') from error
    change_and_check(config, options)
    return config


def check_types(config: Config, weights: str | Path) -> None:
    """Check that a config from a checkpoint names nothing but registered parts of the installed projects.

    mmengine imports a ``type`` or ``_scope_`` by its name, mmcv evaluates the type of an NMS, and a few arguments are
    evaluated too: without this check, a file could run code. All other text is data: names of classes, folders, files.

    Raises:
        UsageError: Naming the first other part.
    """
    from mmcv import ops

    trees = (registry.MODELS, registry.WEIGHT_INITIALIZERS, registry.TASK_UTILS, registry.TRANSFORMS, registry.DATASETS)
    known = {name for tree in trees for name in registered_in(tree)} | set(vars(ops))
    used = [config.get(name) for name in ('model', 'data_preprocessor', 'test_pipeline', 'tta_pipeline', 'tta_model')]
    if split := inference_split(config):
        used.append(config[f'{split}_dataloader'].get('dataset'))
    for part in used:
        for name, value in strings_in(part):
            scope, _, last = value.rpartition('.')
            is_part = last in known and (not scope or (is_dotted_name(scope) and scope.split('.')[0] in SCOPES))
            if (name == 'type' and not is_part) or (name == '_scope_' and value not in SCOPES):
                raise UsageError(
                    f'the config in {weights} names the type {value!r}, which no installed project registers: import '
                    f'the module that has it, or name the config with --config CONFIG'
                )
            if name in EVALUATED and not is_dotted_name(value):
                raise UsageError(f'the config in {weights} holds code, {value!r}: name the config with --config CONFIG')


def is_dotted_name(text: str) -> bool:
    """Tell whether a text is a name such as ``mmdet.RetinaNet``, and no other expression."""
    return all(part.isidentifier() for part in text.split('.'))


def registered_in(tree: Registry) -> Iterator[str]:
    """Yield the names in a registry and in its children."""
    yield from tree.module_dict
    for child in tree.children.values():
        yield from registered_in(child)


def strings_in(node: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Yield the strings in nested dicts and lists, each with its key, except for those under ``DATA``."""
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key not in DATA:
                yield from strings_in(value, str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from strings_in(value, name)


def classes_of(content: Any, config: Config, task: Task) -> tuple[str, ...]:
    """Return the names of the classes, from the checkpoint or else from the config."""
    classes = stored_classes(content)
    if classes is None:
        splits = [split] if (split := inference_split(config)) else []
        classes = next((found for _, found in task.stated_classes(config, splits) if found), ())
    return classes
