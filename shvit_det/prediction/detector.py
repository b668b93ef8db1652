"""From a checkpoint to a detector that is ready: its config, its weights, the names and colours of its classes."""

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from ..checkpoint import find_checkpoint, load_content
from ..checkpoint.reading import read_content
from ..checkpoint.stored_config import stored_config
from ..common.errors import UsageError
from ..configuration.detector_or_classifier import Task, task_of
from ..configuration.reading import load_config, named_classes, warn_if_new
from ..deployment import check_deployable, deploy

Color = tuple[int, int, int]  # red, green, blue
GOLDEN_RATIO = 0.618034
SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'shvit_det')
# Arguments whose text is evaluated as Python: of torchvision's transforms by mmpretrain, of a tracker by mmdet.
EVALUATED = ('dtype', 'warp_mode')
DATA = ('metainfo',)  # of a dataset: nothing is built from what is in it


@dataclass(frozen=True)
class Detector:
    """A detector for inference.

    Args:
        model: In eval mode, on its device.
        config: What it was built from.
        classes: Names by label; empty if neither the checkpoint nor the config has them.
        colors: A colour for each class.
    """

    model: Any
    config: Config
    classes: tuple[str, ...]
    colors: tuple[Color, ...]


def load_detector(
    weights: str | Path,
    config_path: str | None,
    options: Mapping[str, Any] | None,
    device: torch.device,
    deployed: bool,
) -> Detector:
    """Build the detector of a checkpoint; see :class:`shvit_det.Predictor` for the arguments.

    Raises:
        UsageError: If the file cannot be had or read, there is no config, or they do not belong together.
    """
    content = read_content(find_checkpoint(weights))
    config = load_config(config_path, options) if config_path else config_within(content, weights, options)
    if 'model' not in config:
        raise UsageError(f'{config_path or weights} has no model in its config')
    task = task_of(config)
    if task.scope != 'mmdet':
        raise UsageError(f'{weights} is a {task.noun}: pictures are predicted by detectors')
    task.register()
    if config_path is None:
        check_types(config, weights)
    model = task.build(config)
    load_content(model, content, str(weights))
    model.eval().requires_grad_(False).to(device)
    if deployed:
        model = deployed_if_possible(model)
    classes, palette = named_in(content, config, task)
    number = max(len(classes), 1)
    return Detector(model, config, classes, colors_of(palette, number))


def config_within(content: Any, weights: str | Path, options: Mapping[str, Any] | None) -> Config:
    """Return the config that a checkpoint carries, with ``--cfg-options`` merged into it.

    Raises:
        UsageError: If there is none, or it cannot be read as plain data.
    """
    stored = stored_config(content)
    if stored is None:
        raise UsageError(f'{weights} does not carry its config: name it with --config CONFIG')
    try:
        config = Config(stored)
        for key in options or {}:
            warn_if_new(config, key)
        config.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError, AssertionError) as error:
        raise UsageError(f'the config in {weights}, or --cfg-options for it, cannot be used: {error}') from error
    return config


def check_types(config: Config, weights: str | Path) -> None:
    """Refuse a config from a checkpoint that names anything but parts of the installed projects.

    mmengine imports a ``type`` or ``_scope_`` by its name, mmcv evaluates the type of an NMS, and a few arguments are
    evaluated too, so that text from a file could run code; a config that the user names may. All other text is data,
    whatever it looks like: names of classes, folders, files.

    Raises:
        UsageError: Naming the first such part.
    """
    from mmcv import ops

    trees = (registry.MODELS, registry.WEIGHT_INITIALIZERS, registry.TASK_UTILS, registry.TRANSFORMS, registry.DATASETS)
    known = {name for tree in trees for name in registered_in(tree)} | set(vars(ops))
    used = [config.model, config.get('data_preprocessor'), config.get('test_dataloader', {}).get('dataset')]
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
    return all(part.isidentifier() for part in text.split('.'))


def registered_in(tree: Registry) -> Iterator[str]:
    yield from tree.module_dict
    for child in tree.children.values():
        yield from registered_in(child)


def strings_in(node: Any, name: str = '') -> Iterator[tuple[str, str]]:
    """Yield the strings in nested dicts and lists, each with the key that it stands under; not those under ``DATA``."""
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key not in DATA:
                yield from strings_in(value, str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from strings_in(value, name)


def deployed_if_possible(model: nn.Module) -> nn.Module:
    """Return the deployed form of a model, or the model where there is nothing to deploy, which the log says."""
    try:
        check_deployable(model)
    except UsageError as error:
        print_log(f'predicting with the model as it is: {error}', 'current')
        return model
    form: nn.Module = deploy(model)
    return form


def named_in(content: Any, config: Config, task: Task) -> tuple[tuple[str, ...], Any]:
    """Return the names of the classes and the palette: those of the checkpoint, else the names that the config has."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    stored = meta.get('dataset_meta')
    named = {str(key).lower(): value for key, value in (stored if isinstance(stored, Mapping) else meta).items()}
    classes = named.get('classes')
    if isinstance(classes, str):
        classes = (classes,)
    if not isinstance(classes, list | tuple):
        classes = next(
            (found for _, d, kind in task.datasets(config, ('test',)) if (found := named_classes(d, kind))), ()
        )
    return tuple(str(name) for name in classes), named.get('palette')


def colors_of(palette: Any, number: int) -> tuple[Color, ...]:
    """Return a colour for each of ``number`` classes: the palette's if it has enough, else hues far from each other."""
    if isinstance(palette, Sequence) and not isinstance(palette, str) and len(palette) >= number:
        try:
            return tuple((int(red), int(green), int(blue)) for red, green, blue in palette[:number])
        except (TypeError, ValueError):
            pass
    colors = []
    for index in range(number):
        lightness, saturation = ((0.5, 0.9), (0.62, 0.8), (0.4, 0.95))[index // 8 % 3]
        red, green, blue = colorsys.hls_to_rgb((0.97 + index * GOLDEN_RATIO) % 1, lightness, saturation)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)
