"""A trial of a run before it starts: everything is built that it will build, but nothing written and no data loaded."""

import tempfile
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS, RUNNERS, DefaultScope, build_from_cfg
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from ..configuration.build_errors import raise_refusal
from ..configuration.type_names import class_of
from ..configuration.value_kinds import parameters_of
from .build_runner import name_runner, subclasses_of
from .built_parts_check import check_clipping, check_first_steps, check_monitored
from .settings_check import check_known, check_settings, hooks_of

NUM_IMAGES = 100_000


class AllBuiltError(Exception):
    """The trial has come to the first hook: all is built."""


class NotLoadedError(Exception):
    """A part needs to look into the data when it is built, so that only the run can build it."""


def do_nothing(*args: Any) -> None:
    pass


def refuse_to_load(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise NotLoadedError


# How a data set behaves that has its pipeline, but has read no annotations.
UNLOADED = dict(
    full_init=do_nothing,
    __len__=lambda self: NUM_IMAGES,
    **dict.fromkeys(('__getitem__', 'get_data_info', 'get_cat_ids', 'load_data_list', 'get_subset'), refuse_to_load),
)


def unloaded(node: Any) -> Any:
    """Return a copy of a data set's dict with classes that behave as ``UNLOADED`` says.

    It raises ``NotLoadedError`` at a class that is none of mmengine's kind, of which it is not known what it does.
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


def is_of_a_sampler(error: Exception) -> bool:
    """Tell whether an error was raised by a line of a sampler, which may be right about data that are not loaded."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        frame.f_code is build_from_cfg.__code__
        and frame.f_locals['registry'].name == DATA_SAMPLERS.name
        and 'dataset' in frame.f_locals['args']
        and frame.f_locals.get('obj_cls') is not None
        for frame in frames[:-1]
    )


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


def check_parts(config: Config, model: nn.Module, splits: Sequence[str]) -> None:
    """Build all that a run of a config builds, except for the model and the content of the data sets.

    That is done by the config's own runner up to its first hook, so that what is built is what will be built. The run
    is a training if ``'train'`` is among the splits, else a test. The config stays as it is.

    Raises:
        UsageError: If a part cannot be built, or has a value with which the run would fail later.
    """
    config = deepcopy(config)
    name_runner(config)
    with tempfile.TemporaryDirectory() as folder, own_instances():
        if scope := config.get('default_scope', 'mmengine'):
            DefaultScope.get_instance('checks', scope_name=scope)
        check_settings(config, splits)
        kind: Any = RUNNERS.get(config.runner_type)
        if not issubclass(kind, Runner):
            return  # mmengine's FlexibleRunner builds in another way
        config.work_dir = folder
        try:
            trial: Any = trial_of(kind, model).from_cfg(config)
            if 'train' in splits:
                trial.train()
            else:
                trial.test()
        except AllBuiltError:
            if 'val' in splits:
                check_monitored(config, trial.val_evaluator)
        except NotLoadedError:
            return
        except Exception as error:
            if config.get('launcher', 'none') != 'none' and 'process group' in str(error):
                return  # which the run starts
            raise_refusal(error, config)


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


def trial_of(kind: type[Runner], model: nn.Module) -> type[Runner]:
    """Return a runner that builds what ``kind`` builds, around a model that has been built."""

    class Trial(kind):  # type: ignore[misc, valid-type]
        prepare = staticmethod(do_nothing)  # would draw data and read checkpoints, which are checked after the trial
        dump_config = _log_env = do_nothing

        def setup_env(self, env_cfg: dict) -> None:
            self._rank, self._world_size = get_dist_info()
            self._timestamp = 'trial'

        def set_randomness(self, **settings: Any) -> None:
            check_known('randomness', settings, kind.__name__, list(parameters_of(kind.set_randomness)))
            self._deterministic, self._seed = False, 0

        def build_logger(self, log_level: int | str = 'INFO', *args: Any, **kwargs: Any) -> MMLogger:
            MMLogger('levels', log_level=log_level)
            return MMLogger.get_current_instance()

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
            try:
                if isinstance(dataloader, dict) and isinstance(dataloader.get('dataset'), dict):
                    dataset = DATASETS.build(unloaded(dataloader['dataset']))
                    kind.build_dataloader(dict(dataloader, dataset=dataset), *args, **kwargs)
            except Exception as error:
                if not isinstance(error, NotLoadedError) and not is_of_a_sampler(error):
                    raise
            return DataLoader(dataset)  # without workers

        def build_evaluator(self, evaluator: Any) -> Evaluator:
            try:
                return super().build_evaluator(without_files(evaluator))
            except Exception:  # also because one wants its file
                return super().build_evaluator(deepcopy(evaluator))

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
