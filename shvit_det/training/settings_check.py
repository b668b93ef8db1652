"""Settings that mmengine takes when it builds a run, and that fail or do nothing later: checked before it starts."""

import inspect
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import (
    DATA_SAMPLERS,
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
    Registry,
)
from mmengine.runner import Priority, Runner, get_priority
from torch import nn
from torch.distributed import Backend

from ..common.errors import UsageError
from ..configuration.build_errors import (
    dicts_in,
    fits,
    nearest,
    parameters_of,
    unknown_key,
    unknown_type,
    values_in,
    wrong_kind,
)
from ..configuration.reading import dataset_tree, type_of
from ..registry import real_class

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
AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # what CocoMetric measures of boxes and masks
MONITORS: dict[type, str] = {CheckpointHook: 'save_best', EarlyStoppingHook: 'monitor'}
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


def class_of(registry: Registry, node: Mapping) -> type | None:
    """Return the class that a dict of a config names, or None if there is no such class."""
    kind = node.get('type')
    if isinstance(kind, str):
        kind = real_class(registered(registry, kind))
    return kind if inspect.isclass(kind) else None


def registered(registry: Registry, name: str) -> Any:
    """Return what a registry of mmengine, or of the project whose scope is set, has under a name, or None."""
    with registry.switch_scope_and_registry(None) as switched:
        try:
            return switched.get(name)
        except RuntimeError:  # a module of that name cannot be imported
            return None


def check_values(config: Config, splits: Sequence[str]) -> None:
    """Check the few values that mmengine takes when it builds, and that fail or do nothing later.

    Raises:
        UsageError: Naming the first wrong one.
    """
    default = 'DefaultOptimWrapperConstructor'
    parts = dict(values_in({key: config.get(key) for key in SETTINGS}, ''))
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
    check_names(config, splits)
    check_hooks(config)
    check_texts(config, splits)


def check_first_steps(schedulers: Any, part: str = 'param_scheduler') -> None:
    """Take a few steps of the schedules.

    Raises:
        UsageError: If one cannot.
    """
    for key, each in schedulers.items() if isinstance(schedulers, dict) else enumerate(schedulers):
        if isinstance(each, list):
            check_first_steps(each, f'{part}.{key}')
            continue
        try:
            for _ in range(3):
                each.step()
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UsageError(f'{part}.{key} ({type(each).__name__}) fails in its first steps: {error}') from error


def check_monitored(config: Config, evaluator: Evaluator) -> None:
    """Check that what hooks compare between validations is measured, as far as the metrics' names are known before.

    Raises:
        UsageError: If it is not.
    """
    if type(evaluator) is not Evaluator:
        return  # others may give the names further prefixes
    metrics = [metric for metric in evaluator.metrics if not isinstance(metric, DumpResults)]
    for place, node, kind in hooks_of(config):
        key = next((key for known, key in MONITORS.items() if issubclass(kind, known)), '')
        wanted = node.get(key) or ()
        for name in [wanted] if isinstance(wanted, str) else wanted:
            if name != 'auto' and not any(may_measure(metric, name) for metric in metrics):
                known = [f'{metric.prefix}/{item}' for metric in metrics for item in average_precisions(metric)]
                near = next((each for each in known if each.endswith(name)), nearest(name, known))
                begin = ', '.join(f'{metric.prefix}/' for metric in metrics)
                hint = f'did you mean {near!r}?' if near else f'its names begin with {begin}'
                raise UsageError(f'{place}.{key} is {name!r}, which val_evaluator does not measure: {hint}')


def may_measure(metric: BaseMetric, name: str) -> bool:
    """Tell whether a metric may have a score of that name; what it does not tell before is taken for measured."""
    if not metric.prefix:
        return True
    prefix, _, item = name.rpartition('/')
    items = average_precisions(metric)
    return prefix == metric.prefix and (not items or item in items)


def average_precisions(metric: Any) -> list[str]:
    """Return the names of all that a ``CocoMetric`` of boxes and masks measures; empty for other metrics."""
    if type(metric).__name__ != 'CocoMetric' or metric.classwise or not set(metric.metrics) <= {'bbox', 'segm'}:
        return []
    return [f'{kind}_{item}' for kind in metric.metrics for item in metric.metric_items or AP_ITEMS]


def check_clipping(wrapper: Any) -> None:
    """Clip a gradient by the settings of an optimizer's wrapper, which mmengine does not look at before the first step.

    Raises:
        UsageError: If that is not possible.
    """
    settings = getattr(wrapper, 'clip_grad_kwargs', None)
    if not settings:
        return
    place, clip = 'optim_wrapper.clip_grad', wrapper.clip_func
    known = [name for name in parameters_of(clip) if name != 'parameters']
    for name in settings:
        if name not in known:
            raise UsageError(unknown_key(place, name, clip.__name__, known))
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        clip([parameter], **settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f'{place} is {settings}, which {clip.__name__} refuses: {error}') from error
