"""What training and testing need to know about what a model predicts; detection and classification inherit it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from numbers import Real
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from ..common.errors import UsageError
from .reading import datasets_of


class Task(ABC):
    """The part of training and testing that depends on what the model predicts.

    Every method either answers or raises ``UsageError``, before a run starts and writes anything.
    """

    scope: str
    noun: str
    metrics: tuple[str, ...]
    dump_type: type[DumpResults]  # the evaluator that writes all predictions into a file

    @abstractmethod
    def register(self) -> None:
        """Import the project that the task's models, data sets and metrics come from."""

    @abstractmethod
    def check_model(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Compare the parts of the model with each other and with what the config says of the data."""

    @abstractmethod
    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Check the files of the data sets."""

    @abstractmethod
    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the metrics of the test evaluator, all of them among ``self.metrics``."""

    @abstractmethod
    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the scores among ``metrics`` as a table."""

    def build(self, config: Config) -> nn.Module:
        """Build the model of a config.

        Raises:
            UsageError: If it cannot be built.
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
        """Return the class that a dataset dict names, or None if there is no such class."""
        kind = dataset['type']
        if isinstance(kind, str):
            scope = DefaultScope.overwrite_default_scope(self.scope)
            with scope, DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        return kind if isinstance(kind, type) else None


def table_of_numbers(metrics: Mapping[str, Any], if_empty: str) -> str:
    """Return the numbers among ``metrics``, one per line, or ``if_empty`` if there are none."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, Real)}
    width = max(map(len, numbers), default=0)
    return '\n'.join(f'{name:<{width}}  {value:.4g}' for name, value in numbers.items()) or if_empty
