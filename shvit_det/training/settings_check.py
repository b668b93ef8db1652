"""Settings that mmengine takes when it builds a run, and that fail or do nothing later: checked before it starts."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from mmcv.image.io import supported_backends
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    METRICS,
    MODEL_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    TRANSFORMS,
    WEIGHT_INITIALIZERS,
)
from mmengine.runner import Priority, Runner, get_priority
from torch.distributed import Backend

from ..common.errors import UsageError
from ..configuration.build_errors import nearest, unknown_key, unknown_type, wrong_kind
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
NO_ARGUMENTS = ('type', 'priority', '_scope_')
OF_TRAINING = ('train_cfg', 'auto_scale_lr', 'optim_wrapper')
SETTINGS = (
    *OF_TRAINING,
    'channels_last',
    'env_cfg',
    'find_unused_parameters',
    'log_level',
    'log_processor',
    'randomness',
    'visualizer',
)


def check_values(config: Config, splits: Sequence[str]) -> None:
    """Check the few values that mmengine takes when it builds, and that fail or do nothing later.

    Raises:
        UsageError: Naming the first wrong one.
    """
    default = 'DefaultOptimWrapperConstructor'
    parts = dict(places_in({key: config.get(key) for key in SETTINGS}))
    if 'train' not in splits:
        parts = {place: value for place, value in parts.items() if place.split('.')[0] not in OF_TRAINING}
    for key, smallest in SMALLEST.items():
        value = parts.get(key)
        if value is not None and not (
            isinstance(value, int | float) and value >= smallest and float(value).is_integer()
        ):
            hint = '; a training without validation has val_dataloader, val_cfg and val_evaluator set to None'
            raise UsageError(
                f'{key} is {value!r}: it takes a whole number from {smallest} on'
                f'{hint if key == "train_cfg.val_interval" else ""}'
            )
    for key in SWITCHES:
        if not isinstance(parts.get(key, False), bool | int | None):
            raise UsageError(f'{key} is {parts[key]!r}, where True or False is wanted')
    endless = [
        (place, node)
        for place, node in dicts_in(config.get('train_dataloader'), 'train_dataloader')
        if place.endswith('sampler') and hasattr(class_of(DATA_SAMPLERS, node), '_infinite_indices')
    ]
    if 'train' in splits and endless and 'train_cfg.max_epochs' in parts:
        raise UsageError(
            f'{endless[0][0]} is {type_of(endless[0][1])}, with which an epoch never ends, and train_cfg counts '
            f"epochs: take train_cfg=dict(type='IterBasedTrainLoop', max_iters=...), or another sampler"
        )
    for key, choices in CHOICES.items():
        value = parts.get(key)
        named = [each.rpartition(':')[2] for each in str(value).split(',')]  # cpu:gloo,cuda:nccl
        if isinstance(value, str) and not all(each in choices or each.lower() in choices for each in named):
            raise UsageError(f'{key} is {value!r}: choose from {", ".join(choices)}')
    for key, known in KEYS.items():
        node = parts.get(key)
        if key.startswith('optim_wrapper.') and parts.get('optim_wrapper.constructor', default) != default:
            continue  # another constructor has other keys
        for name in node if isinstance(node, Mapping) else ():
            if name not in known:
                raise UsageError(unknown_key(key, name, 'mmengine', known))
    for place, node in parts.items():
        package = BACKEND_PACKAGES.get(type_of(node)) if isinstance(node, Mapping) else None
        if package is not None and find_spec(package) is None:
            raise UsageError(
                f'{place}.type is {node["type"]!r}, which needs {package}, and that is not installed: '
                f'pip install {package}, or take the backend out'
            )


def check_statistics(config: Config) -> None:
    """Check ``custom_cfg`` of the log, which mmengine reads when it writes the first line.

    Raises:
        UsageError: Naming the first wrong window or method.
    """
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
    """Check the names that mmengine looks up late, or without noticing that they are not there.

    Raises:
        UsageError: Naming the first such name.
    """
    names = [('runner_type', config.runner_type, RUNNERS)]
    functions = [(f'{split}_dataloader', key) for split in splits for key in ('collate_fn', 'worker_init_fn')]
    looked_up = [(loader, key, FUNCTIONS) for loader, key in functions]
    if 'train' in splits:
        looked_up.append(('optim_wrapper', 'optimizer', OPTIMIZERS))
    for part, key, registry in looked_up:
        node = config[part].get(key) if isinstance(config.get(part), Mapping) else None
        if isinstance(node, Mapping):
            if 'type' not in node:
                raise UsageError(f'{part}.{key} has no type, which names the {registry.name}')
            names.append((f'{part}.{key}.type', node['type'], registry))
    if 'type' in (wrapper := config.get('model_wrapper_cfg') or {}):
        names.append(('model_wrapper_cfg.type', wrapper['type'], MODEL_WRAPPERS))
    for place, node in dicts_in(config.model, 'model'):
        if '.init_cfg' in place and 'type' in node:
            names.append((f'{place}.type', node['type'], WEIGHT_INITIALIZERS))
    for place, name, registry in names:
        if isinstance(name, str) and registered(registry, name) is None:
            raise UsageError(unknown_type(place, name, registry))


def hooks_of(config: Config) -> Iterator[tuple[str, Mapping, type]]:
    """Yield the hooks of a config: the place, the dict, the class."""
    for part in HOOK_PARTS:
        for place, node in dicts_in(config.get(part), part):
            kind = class_of(HOOKS, node) if place.count('.') == 1 else None
            if kind is not None:
                yield place, node, kind


def check_keys(config: Config, splits: Sequence[str]) -> None:
    """Check the keys of data sets and evaluators that are looked up, so that a wrong one does nothing or misleads.

    Raises:
        UsageError: Naming the first wrong one.
    """
    for split in splits:
        for place, node in dicts_in(config.get(f'{split}_dataloader'), f'{split}_dataloader'):
            backend = node.get('imdecode_backend')
            if backend not in (None, *supported_backends):
                known = ', '.join(supported_backends)
                raise UsageError(f'{place}.imdecode_backend is {backend!r}: choose from {known}')
        for place, dataset in dataset_places(config, split):
            kind, settings = class_of(DATASETS, dataset), dataset.get('filter_cfg')
            method = getattr(kind, 'filter_data', None)
            if method is not None and method.__module__.startswith('mmdet.') and isinstance(settings, Mapping):
                for name in set(settings) - set(FILTER_KEYS):
                    raise UsageError(unknown_key(f'{place}.filter_cfg', name, type_of(dataset), FILTER_KEYS))
        for place, node in dicts_in(config.get(f'{split}_evaluator'), f'{split}_evaluator'):
            metric = class_of(METRICS, node)
            if metric is not None and 'metrics' in node and 'metrics' not in parameters_of(metric):
                raise UsageError(unknown_key(place, 'metrics', type_of(node), list(parameters_of(metric))))


def check_hooks(config: Config) -> None:
    """Check priorities, and the arguments that ``CheckpointHook`` takes unseen for ``Runner.save_checkpoint``.

    Raises:
        UsageError: Naming the first wrong one.
    """
    for place, node, kind in hooks_of(config):
        try:
            get_priority(node.get('priority', 'NORMAL'))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f'{place}.priority is {node["priority"]!r}: choose from {", ".join(Priority.__members__)}, '
                f'or give a number from 0 to 100'
            ) from error
        if issubclass(kind, CheckpointHook):
            own = list(parameters_of(kind))
            for name in set(node) - {*own, *parameters_of(Runner.save_checkpoint), *NO_ARGUMENTS}:
                raise UsageError(unknown_key(place, name, kind.__name__, own))


def check_texts(config: Config, splits: Sequence[str]) -> None:
    """Check that no text stands where a schedule, a hook or a transform takes numbers, which it may notice much later.

    Raises:
        UsageError: Naming the first such text.
    """
    parts = {f'{split}_dataloader': TRANSFORMS for split in splits} | dict.fromkeys(HOOK_PARTS, HOOKS)
    parts |= {f'{split}_evaluator': METRICS for split in splits} | {'log_processor': LOG_PROCESSORS}
    if 'train' in splits:
        parts['param_scheduler'] = PARAM_SCHEDULERS
    for part, registry in parts.items():
        for place, node in dicts_in(config.get(part), part):
            kind = class_of(registry, node)
            parameters = {} if kind is None else parameters_of(kind)
            for name, value in node.items():
                if isinstance(value, str) and name in parameters and not fits(value, parameters[name]):
                    raise UsageError(wrong_kind(f'{place}.{name}', value, type_of(node)))


def check_settings(config: Config, splits: Sequence[str]) -> None:
    """Check everything here that can be checked before anything is built.

    Raises:
        UsageError: Naming the first wrong setting.
    """
    for split in splits:
        list(dataset_tree(config, split))  # raises
    check_values(config, splits)
    check_statistics(config)
    check_names(config, splits)
    check_keys(config, splits)
    check_hooks(config)
    check_texts(config, splits)
