"""A trial of a run before it starts: everything is built that it will build, but nothing written and no data loaded."""

import inspect
import multiprocessing
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import get_dist_info
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import (
    DATASETS,
    FUNCTIONS,
    HOOKS,
    METRICS,
    MODEL_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)
from mmengine.runner import Priority, Runner, get_priority
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer
from torch import nn
from torch.distributed import Backend
from torch.utils.data import DataLoader

from ..common.errors import RunError, UsageError
from ..configuration.build_errors import (
    dicts_in,
    fits,
    nearest,
    parameters_of,
    refusal_of,
    unknown_key,
    unknown_type,
    values_in,
)
from ..configuration.reading import type_of
from .build_runner import name_runner

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
AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # what CocoMetric measures of boxes and masks
MONITORS: dict[type, str] = {CheckpointHook: 'save_best', EarlyStoppingHook: 'monitor'}
HOOK_PARTS = ('default_hooks', 'custom_hooks')
NO_ARGUMENTS = ('type', 'priority', '_scope_')
OF_TRAINING = ('train_cfg', 'auto_scale_lr', 'optim_wrapper')
SETTINGS = (*OF_TRAINING, 'log_processor', 'randomness', 'env_cfg', 'log_level', 'visualizer')
NUM_IMAGES = 100_000


class AllBuiltError(Exception):
    """The trial has come to the first hook: all is built."""


class NotLoadedError(Exception):
    """A part needs to look into the data when it is built, so that only the run can build it."""


def refuse_to_load(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise NotLoadedError


# How a data set behaves that has its pipeline, but has read no annotations.
UNLOADED = dict(
    full_init=lambda self: None,
    __len__=lambda self: NUM_IMAGES,
    **dict.fromkeys(('__getitem__', 'get_data_info', 'get_cat_ids', 'load_data_list', 'get_subset'), refuse_to_load),
)


def class_of(registry: Registry, node: Mapping) -> type | None:
    """Return the class that a dict of a config names, or None if there is no such class."""
    kind = node.get('type')
    if isinstance(kind, str):
        kind = registered(registry, kind)
    return kind if inspect.isclass(kind) else None


def registered(registry: Registry, name: str) -> Any:
    """Return what a registry of mmengine, or of the project whose scope is set, has under a name, or None."""
    with registry.switch_scope_and_registry(None) as switched:
        try:
            return switched.get(name)
        except RuntimeError:  # a module of that name cannot be imported
            return None


def unloaded(node: Any) -> Any:
    """Return a copy of a data set's dict with classes that behave as ``UNLOADED`` says.

    Raises:
        NotLoadedError: If a class is none of mmengine's kind, so that it is not known what it does.
    """
    copied = dict(node)
    inner = copied.get('datasets')
    if isinstance(inner, list | tuple):
        copied['datasets'] = [unloaded(each) for each in inner]
    elif isinstance(copied.get('dataset'), Mapping):
        copied['dataset'] = unloaded(copied['dataset'])
    elif (kind := class_of(DATASETS, copied)) is not None:  # else mmengine says that there is none
        if not issubclass(kind, BaseDataset):
            raise NotLoadedError
        copied['type'] = type(kind.__name__, (kind,), UNLOADED)
    return copied


def without_files(evaluator: Any) -> Any:
    """Return a copy of an evaluator in which metrics read no annotation file, if they need none to be built."""
    if isinstance(evaluator, list | tuple):
        return [without_files(each) for each in evaluator]
    if not isinstance(evaluator, Mapping):
        return evaluator
    copied = ConfigDict(evaluator)
    if 'metrics' in copied:
        copied['metrics'] = without_files(copied['metrics'])
    elif 'ann_file' in copied and (kind := class_of(METRICS, copied)) is not None:
        parameter = parameters_of(kind).get('ann_file')
        if parameter is not None and parameter.default is None:
            del copied['ann_file']
    return copied


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
        if value is not None and not (isinstance(value, int | float) and value >= smallest and value == int(value)):
            hint = '; a training without validation has val_dataloader, val_cfg and val_evaluator set to None'
            raise UsageError(
                f'{key} is {value!r}: it takes a whole number from {smallest} on'
                f'{hint if key == "train_cfg.val_interval" else ""}'
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
    """Check the names that mmengine looks up in a registry without noticing that they are not there.

    Raises:
        UsageError: Naming the first such name.
    """
    functions = [f'{split}_dataloader.{key}' for split in splits for key in ('collate_fn', 'worker_init_fn')]
    tables = {RUNNERS: [''], MODEL_WRAPPERS: ['model_wrapper_cfg'], FUNCTIONS: functions}
    if 'train' in splits:
        tables[OPTIMIZERS] = ['optim_wrapper.optimizer']
    for registry, places in tables.items():
        for place in places:
            node: Any = config
            for key in filter(None, place.split('.')):
                node = node.get(key) if isinstance(node, Mapping | Config) else None
            key = 'type' if place else 'runner_type'
            name = node.get(key) if isinstance(node, Mapping | Config) else None
            if isinstance(node, Mapping) and name is None and registry is not MODEL_WRAPPERS:
                raise UsageError(f'{place} has no type, which names the {registry.name}')
            if isinstance(name, str) and registered(registry, name) is None:
                raise UsageError(unknown_type(f'{place}.{key}'.lstrip('.'), name, registry))


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


def check_kinds(config: Config, splits: Sequence[str]) -> None:
    """Check that no text stands where a schedule, a hook or a transform takes numbers, which it may notice much later.

    Raises:
        UsageError: Naming the first such text.
    """
    parts = {f'{split}_dataloader': TRANSFORMS for split in splits} | dict.fromkeys(HOOK_PARTS, HOOKS)
    if 'train' in splits:
        parts['param_scheduler'] = PARAM_SCHEDULERS
    for part, registry in parts.items():
        for place, node in dicts_in(config.get(part), part):
            kind = class_of(registry, node)
            parameters = {} if kind is None else parameters_of(kind)
            for name, value in node.items():
                if isinstance(value, str) and name in parameters and not fits(value, parameters[name]):
                    raise UsageError(f'{place}.{name} is the text {value!r}, but {type_of(node)} takes no text there')


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
            raise UsageError(f'{part}.{key} ({type(each).__name__}) cannot be followed: {error}') from error


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
                near = next((each for each in known if each.endswith(f'/{name}')), nearest(name, known))
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


def check_parts(config: Config, model: nn.Module, splits: Sequence[str]) -> None:
    """Build all that a run of a config builds, except for the model and the content of the data sets.

    That is done by the config's own runner up to its first hook, so that what is built is what will be built.

    Args:
        config: The config, which stays as it is.
        model: The model of the config.
        splits: With ``'train'`` the run is a training with its validation, else a test.

    Raises:
        UsageError: If a part cannot be built, or has a value with which the run would fail later.
    """
    config = deepcopy(config)
    name_runner(config)
    with tempfile.TemporaryDirectory() as folder, own_instances():
        if scope := config.get('default_scope', 'mmengine'):
            DefaultScope.get_instance('checks', scope_name=scope)
        check_values(config, splits)
        check_names(config, splits)
        check_hooks(config)
        check_kinds(config, splits)
        kind: Any = RUNNERS.get(config.runner_type)
        if not issubclass(kind, Runner):
            return  # mmengine's FlexibleRunner builds in another way
        config.work_dir = folder
        try:
            trial: Any = trial_of(kind, model).from_cfg(config)
            try:
                if 'train' in splits:
                    trial.train()
                else:
                    trial.test()
            except AllBuiltError:
                if 'val' in splits:
                    check_monitored(config, trial.val_evaluator)
        except NotLoadedError:
            return
        except (UsageError, RunError):
            raise
        except Exception as error:
            if config.get('launcher', 'none') != 'none' and 'process group' in str(error):
                return  # which the run starts
            sentence = refusal_of(error, config)
            if sentence is None:
                raise
            raise UsageError(sentence) from error


@contextmanager
def own_instances() -> Iterator[None]:
    """Keep what a program shares - logger, message hub, visualizer, scope - apart, and be quiet, within the context."""
    before = {kind: kind._instance_dict for kind in subclasses_of(ManagerMixin)}  # type: ignore[attr-defined]
    for kind in before:
        kind._instance_dict = OrderedDict()  # type: ignore[attr-defined]
    try:
        MMLogger.get_instance('mmengine', log_level='CRITICAL')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for kind in subclasses_of(ManagerMixin):
            kind._instance_dict = before.get(kind, OrderedDict())  # type: ignore[attr-defined]


def subclasses_of(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses_of(each)


def trial_of(kind: type[Runner], model: nn.Module) -> type[Runner]:
    """Return a runner that builds what ``kind`` builds, around a model that has been built."""

    class Trial(kind):  # type: ignore[misc, valid-type]
        def setup_env(self, env_cfg: dict) -> None:
            self._rank, self._world_size = get_dist_info()
            self._timestamp = 'trial'

        def set_randomness(self, **settings: Any) -> None:
            unknown = set(settings) - set(parameters_of(kind.set_randomness))
            for name in unknown:
                known = list(parameters_of(kind.set_randomness))
                raise UsageError(unknown_key('randomness', name, kind.__name__, known))
            self._deterministic, self._seed = False, 0

        def build_logger(self, log_level: int | str = 'INFO', *args: Any, **kwargs: Any) -> MMLogger:
            MMLogger('levels', log_level=log_level)
            return MMLogger.get_current_instance()

        def _log_env(self, env_cfg: dict) -> None:
            pass

        def dump_config(self) -> None:
            pass

        def build_visualizer(self, visualizer: Any = None) -> Visualizer:
            built = super().build_visualizer(visualizer)
            built._vis_backends.clear()  # they begin to write when they are given the config
            return built

        def build_model(self, _: Any) -> nn.Module:
            return model

        def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
            return model

        @staticmethod
        def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
            dataset: Any = range(NUM_IMAGES)
            with suppress(NotLoadedError):
                if isinstance(dataloader, dict) and isinstance(dataloader.get('dataset'), dict):
                    dataset = DATASETS.build(unloaded(dataloader['dataset']))
                    kind.build_dataloader(dict(dataloader, dataset=dataset), *args, **kwargs)
            return DataLoader(dataset)  # without workers

        def build_evaluator(self, evaluator: Any) -> Evaluator:
            return super().build_evaluator(without_files(evaluator))

        def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
            built = super().build_optim_wrapper(optim_wrapper)
            for each in built.values() if isinstance(built, OptimWrapperDict) else [built]:
                check_clipping(each)
            return built

        def build_param_scheduler(self, scheduler: Any) -> Any:
            built = super().build_param_scheduler(scheduler)
            check_first_steps(built)
            return built

        def call_hook(self, fn_name: str, **kwargs: Any) -> None:
            for hook in self._hooks:
                if isinstance(hook, EMAHook):
                    hook.before_run(self)  # builds the averaged model
            for _, node, _ in hooks_of(self.cfg):
                Compose(deepcopy(node.get('switch_pipeline')))  # which the run builds in the middle
            raise AllBuiltError

    return Trial
