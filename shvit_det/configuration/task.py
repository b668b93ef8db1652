"""What the tools ask of a task, detection or classification: one class answers for each."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from ..common.errors import UsageError
from .config import datasets_of, evaluators_of, type_of
from .prediction_dump import WholeDump


class Task(ABC):
    """The part of training and testing that knows what the model predicts.

    Everything here either answers or raises ``UsageError``, before a run starts and writes anything.
    """

    scope: str
    noun: str
    metrics: tuple[str, ...]

    @abstractmethod
    def register(self) -> None:
        """Import the project that the task's models, data sets and metrics come from."""

    @abstractmethod
    def check_model(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Compare the parts of the model with each other and with what the config says of the data."""

    @abstractmethod
    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Look at the files of the data sets."""

    @abstractmethod
    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the metrics of the test evaluator, all of them among ``self.metrics``."""

    @abstractmethod
    def dump(self, path: str) -> WholeDump:
        """Return the evaluator that writes all predictions into a ``.pkl`` file."""

    @abstractmethod
    def draw_into(self, config: Config, folder: str) -> None:
        """Let every test image be drawn, with its prediction, into ``folder``."""

    @abstractmethod
    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the scores among ``metrics`` as a table."""

    def build(self, config: Config) -> nn.Module:
        """Build the model of a config once, to see that it can be built.

        Raises:
            UsageError: If it cannot.
        """
        self.register()
        model = copy.deepcopy(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)  # as the runner does
        with DefaultScope.overwrite_default_scope(config.get('default_scope', self.scope)):
            try:
                built = MODELS.build(model)
            except (TypeError, KeyError, RuntimeError, AttributeError) as error:
                raise UsageError(f'cannot build the model of this config: {error}') from error
        return built

    def select_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the metrics of the test evaluator, ``--eval`` of the test tool.

        Raises:
            UsageError: If the task has no such metric, or this model cannot be scored by it.
        """
        for metric in metrics:
            if metric not in self.metrics:
                raise UsageError(
                    f'unknown metric {metric!r} for --eval of a {self.noun}: choose from {", ".join(self.metrics)}'
                )
        self.set_metrics(config, model, metrics)

    def datasets(self, config: Config, splits: Sequence[str]) -> Iterator[tuple[str, MutableMapping, type]]:
        """Yield the data sets of the splits: the split, the dict in the config, the class."""
        for split in splits:
            for dataset in datasets_of(config, split):
                kind = self.dataset_class(dataset)
                if kind is not None:
                    yield split, dataset, kind

    def dataset_class(self, dataset: Mapping) -> type | None:
        """Return the class that a dataset dict names, or None where it is none."""
        kind = dataset['type']
        if isinstance(kind, str):
            scope = DefaultScope.overwrite_default_scope(self.scope)
            with scope, DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        return kind if isinstance(kind, type) else None


def named_classes(dataset: MutableMapping, kind: type) -> tuple[str, ...] | None:
    """Return the names of the classes that a dataset dict or its class states, or None where neither does."""
    classes: str | Sequence[str] | None = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if classes is None:
        return None
    return (classes,) if isinstance(classes, str) else tuple(classes)


def coco_evaluators(config: Config, option: str) -> list[MutableMapping]:
    """Return the COCO evaluators of the test split; ``option`` is what needs them.

    Raises:
        UsageError: If there is none.
    """
    found = [evaluator for _, evaluator in evaluators_of(config, 'test') if type_of(evaluator) == 'CocoMetric']
    if not found:
        raise UsageError(f'{option} needs a CocoMetric in test_evaluator, and this config has none')
    return found


def draw_by_hook(config: Config, **settings: object) -> None:
    """Change the visualization hook of a config.

    Raises:
        UsageError: If the config has none.
    """
    hook = (config.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UsageError('--show-dir needs default_hooks.visualization in the config, and this one has none')
    hook.update(settings)
