"""Settings that mmengine takes when it builds a run, and that fail or do nothing later: checked before it starts."""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from mmcv.image.io import supported_backends
from mmengine import registry as root
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.runner import Priority, Runner, get_priority
from torch.distributed import Backend

from ..common.errors import UsageError
from ..configuration.build_errors import NO_ARGUMENTS, nearest, unknown_key, unknown_type, wrong_kind
from ..configuration.cfg_options import dicts_in, places_in
from ..configuration.reading import dataset_places, dataset_tree, type_of
from ..configuration.type_names import class_of, registered
from ..configuration.value_kinds import fits, parameters_of

# Values that mmengine takes when it builds, and fails with later: the smallest whole number that has a meaning ...
SMALLEST = {
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'train_cfg.val_begin': 0,
    'log_processor.window_size': 1,
    'auto_scale_lr.base_batch_size': 1,
    'randomness.seed': 0,
}
# ... the names that exist ...
CHOICES = {
    'env_cfg.mp_cfg.mp_start_method': multiprocessing.get_all_start_methods(),
    'env_cfg.dist_cfg.backend': [name for name in Backend.backend_list if name not in (Backend.UNDEFINED, 'fake')],
    'log_level': ['CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG', 'NOTSET'],
}
# ... and keys that are looked up, so that a wrong one does nothing.
KEYS = {
    'env_cfg': ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'optim_wrapper.paramwise_cfg': (
        'custom_keys',
        'bias_lr_mult',
        'bias_decay_mult',
        'norm_decay_mult',
        'dwconv_decay_mult',
        'flat_decay_mult',
        'bypass_duplicate',
        'dcn_offset_lr_mult',
    ),
}
# The same of a data set, where mmdet's own classes read it.
FILTER_KEYS = ('filter_empty_gt', 'min_size', 'bbox_min_size')
# What backends of the visualizer import at their first use.
BACKEND_PACKAGES = dict(
    TensorboardVisBackend='tensorboard',
    WandbVisBackend='wandb',
    MLflowVisBackend='mlflow',
    ClearMLVisBackend='clearml',
    NeptuneVisBackend='neptune',
    DVCLiveVisBackend='dvclive',
    AimVisBackend='aim',
)
# Settings that are on or off: of a text, also of 'no', Python says that it is true.
SWITCHES = (
    'auto_scale_lr.enable',
    'channels_last',
    'env_cfg.cudnn_benchmark',
    'find_unused_parameters',
    'randomness.deterministic',
    'randomness.diff_rank_seed',
)
WINDOWS = ('epoch', 'global')  # of the log's averages
HOOK_PARTS = ('default_hooks', 'custom_hooks')
MONITORS: dict[type, str] = {CheckpointHook: 'save_best', EarlyStoppingHook: 'monitor'}  # the keys of scores
OF_TRAINING = ('train_cfg', 'auto_scale_lr', 'optim_wrapper')


def hooks_of(config: Config) -> Iterator[tuple[str, Any, type]]:
    """Yield the hooks of a config: the place, the dict, the class."""
    for part in HOOK_PARTS:
        for place, node in dicts_in(config.get(part), part):
            kind = class_of(root.HOOKS, node) if place.count('.') == 1 else None
            if kind is not None:
                yield place, node, kind


def has_hook(config: Config, kind: type) -> bool:
    return any(issubclass(each, kind) for _, _, each in hooks_of(config))


def compared_scores(config: Config) -> Iterator[tuple[str, Any, str, list[str]]]:
    """Yield the hooks of a config that compare scores of validations: the place, the dict, the key, the scores."""
    for place, node, kind in hooks_of(config):
        key = next((key for each, key in MONITORS.items() if issubclass(kind, each)), '')
        names = as_list(node.get(key))
        if all(isinstance(name, str) and name != 'auto' for name in names):
            yield place, node, key, names


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def check_known(place: str, names: Iterable[str], owner: str, known: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first key of a dict that the class it is for does not take."""
    for name in names:
        if name not in known:
            raise UsageError(unknown_key(place, name, owner, known))


def check_values(config: Config, splits: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first of a few values that mmengine takes, and that fail or do nothing later."""
    left_out = () if 'train' in splits else OF_TRAINING
    parts = dict(places_in({key: value for key, value in config.items() if key not in left_out}))
    for key, smallest in SMALLEST.items():
        value = parts.get(key, smallest)
        if value is not None and (not isinstance(value, int | float) or value < smallest or value % 1):
            hint = '; a training without validation has val_dataloader, val_cfg and val_evaluator set to None'
            raise UsageError(
                f'{key} is {value!r}: it takes a whole number from {smallest} on'
                f'{hint if key == "train_cfg.val_interval" else ""}'
            )
    for key in SWITCHES:
        if not isinstance(parts.get(key, False), bool | int | None):
            raise UsageError(f'{key} is {parts[key]!r}, where True or False is wanted')
    for place, node in dicts_in(config.get('train_dataloader'), 'train_dataloader'):
        is_endless = place.endswith('sampler') and hasattr(class_of(root.DATA_SAMPLERS, node), '_infinite_indices')
        if is_endless and 'train_cfg.max_epochs' in parts:
            raise UsageError(
                f'{place} is {type_of(node)}, with which an epoch never ends, and train_cfg counts '
                f"epochs: take train_cfg=dict(type='IterBasedTrainLoop', max_iters=...), or another sampler"
            )
    for key, choices in CHOICES.items():
        value = parts.get(key)
        named = [each.rpartition(':')[2] for each in str(value).split(',')]  # cpu:gloo,cuda:nccl
        if isinstance(value, str) and not all(each in choices or each.lower() in choices for each in named):
            raise UsageError(f'{key} is {value!r}: choose from {", ".join(choices)}')
    default = DefaultOptimWrapperConstructor.__name__
    constructor = parts.get('optim_wrapper.constructor', default)
    for key, known in KEYS.items():
        is_read = constructor == default or not key.startswith('optim_wrapper.')  # another has other keys
        if is_read and isinstance(parts.get(key), Mapping):
            check_known(key, parts[key], 'mmengine', known)
    for place, node in dicts_in(config.get('visualizer'), 'visualizer'):
        package = BACKEND_PACKAGES.get(type_of(node))
        if package is not None and find_spec(package) is None:
            raise UsageError(
                f'{place}.type is {node["type"]!r}, which needs {package}, and that is not installed: '
                f'pip install {package}, or take the backend out'
            )


def check_statistics(config: Config) -> None:
    """Raise ``UsageError`` at the first wrong window or method of the log, which mmengine reads at its first line."""
    methods = list(HistoryBuffer()._statistics_methods)
    for place, node in dicts_in(config.get('log_processor'), 'log_processor'):
        size, method = node.get('window_size'), node.get('method_name')
        if isinstance(size, str) and size not in WINDOWS:
            near = nearest(size, WINDOWS)
            raise UsageError(f'{place}.window_size is {size!r}: it takes a number, {" or ".join(WINDOWS)}'
                             f'{f": did you mean {near!r}?" if near else ""}')  # fmt: skip
        if method is not None and method not in methods:
            raise UsageError(f'{place}.method_name is {method!r}: choose from {", ".join(methods)}')


def check_names(config: Config, splits: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first unknown name that mmengine looks up late, or does not miss."""
    parts = dict(places_in(config))
    built = {
        f'{split}_dataloader.{key}': root.FUNCTIONS for split in splits for key in ('collate_fn', 'worker_init_fn')
    }
    if 'train' in splits:
        built['optim_wrapper.optimizer'] = root.OPTIMIZERS
    for place, registry in built.items():
        if isinstance(parts.get(place), Mapping) and 'type' not in parts[place]:
            raise UsageError(f'{place} has no type, which names the {registry.name}')
    built |= {'model_wrapper_cfg': root.MODEL_WRAPPERS}
    built |= {place: root.WEIGHT_INITIALIZERS for place, _ in dicts_in(config.model, 'model') if '.init_cfg' in place}
    named = {'runner_type': root.RUNNERS} | {f'{place}.type': registry for place, registry in built.items()}
    for place, registry in named.items():
        name = parts.get(place)
        if isinstance(name, str) and registered(registry, name) is None:
            raise UsageError(unknown_type(place, name, registry))


def check_keys(config: Config, splits: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first wrong key of a data set or evaluator that would do nothing or mislead."""
    for split in splits:
        for place, node in dicts_in(config.get(f'{split}_dataloader'), f'{split}_dataloader'):
            backend = node.get('imdecode_backend')
            if backend not in (None, *supported_backends):
                known = ', '.join(supported_backends)
                raise UsageError(f'{place}.imdecode_backend is {backend!r}: choose from {known}')
        for place, dataset in dataset_places(config, split):
            settings, method = dataset.get('filter_cfg'), getattr(class_of(root.DATASETS, dataset), 'filter_data', None)
            if method is not None and method.__module__.startswith('mmdet.') and isinstance(settings, Mapping):
                check_known(f'{place}.filter_cfg', settings, type_of(dataset), FILTER_KEYS)
        for place, node in dicts_in(config.get(f'{split}_evaluator'), f'{split}_evaluator'):
            metric = class_of(root.METRICS, node)
            if node.get('collect_device', 'cpu') not in ('cpu', 'gpu'):
                raise UsageError(f'{place}.collect_device is {node["collect_device"]!r}: choose from cpu, gpu')
            if metric is not None and 'metrics' in node and 'metrics' not in parameters_of(metric):
                raise UsageError(unknown_key(place, 'metrics', type_of(node), list(parameters_of(metric))))


def check_hooks(config: Config) -> None:
    """Raise ``UsageError`` at the first wrong priority, or argument that ``CheckpointHook`` takes unseen for later."""
    for place, node, kind in hooks_of(config):
        try:
            get_priority(node.get('priority', 'NORMAL'))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f'{place}.priority is {node["priority"]!r}: choose from {", ".join(Priority.__members__)}, '
                f'or give a number from 0 to 100'
            ) from error
        if issubclass(kind, CheckpointHook):
            others = {*parameters_of(Runner.save_checkpoint), *NO_ARGUMENTS}
            check_known(place, set(node) - others, kind.__name__, list(parameters_of(kind)))


def check_texts(config: Config, splits: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first text where a schedule, hook, transform or metric takes something else.

    They may notice it much later.
    """
    parts = {f'{split}_dataloader': root.TRANSFORMS for split in splits} | dict.fromkeys(HOOK_PARTS, root.HOOKS)
    parts |= {f'{split}_evaluator': root.METRICS for split in splits} | {'log_processor': root.LOG_PROCESSORS}
    if 'train' in splits:
        parts['param_scheduler'] = root.PARAM_SCHEDULERS
    for part, registry in parts.items():
        for place, node in dicts_in(config.get(part), part):
            kind = class_of(registry, node)
            parameters = {} if kind is None else parameters_of(kind)
            for name, value in node.items():
                if isinstance(value, str) and name in parameters and not fits(value, parameters[name]):
                    raise UsageError(wrong_kind(f'{place}.{name}', value, type_of(node)))


def check_settings(config: Config, splits: Sequence[str]) -> None:
    """Raise ``UsageError`` at the first wrong setting that is found before anything is built."""
    for split in splits:
        list(dataset_tree(config, split))  # raises
    check_values(config, splits)
    check_statistics(config)
    check_names(config, splits)
    check_keys(config, splits)
    check_hooks(config)
    check_texts(config, splits)
