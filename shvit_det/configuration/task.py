"""What training and testing need to know about what a model predicts; detection and classification inherit it."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from torch import nn

from ..checkpoint.stored_config import stored_classes
from ..common.errors import UsageError
from ..data.checking.findings import short
from .build_errors import build_from_config
from .cfg_options import dicts_in
from .reading import dataset_places, named_classes
from .type_names import class_of


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
    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> Mapping[Path, Mapping[str, Any]]:
        """Check the files of the data sets; return the first images of those that a trial can load alone."""

    @abstractmethod
    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the metrics of the test evaluator, all of them among ``self.metrics``."""

    def set_classwise(self, config: Config) -> None:
        """Make the test print the scores of each class."""
        raise UsageError(f'--classwise needs a CocoMetric in test_evaluator, and this is a {self.noun}')

    def set_format_only(self, config: Config, folder: Path) -> list[Path]:
        """Make the test write result files and compute no score; return what their names will begin with.

        ``PART`` follows that until they are complete.
        """
        raise UsageError(f'--format-only needs a CocoMetric in test_evaluator, and this is a {self.noun}')

    def check_report(self, config: Config) -> None:
        """Check that the test evaluator has what a report is made of."""
        raise UsageError(f'--report needs a CocoMetric in test_evaluator, and this is a {self.noun}')

    def score_names(self, config: Config) -> list[str]:
        """Return the names of all scores of the validation, the main one first; none if they are not known before."""
        return []

    @abstractmethod
    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the scores among ``metrics`` as a table."""

    def build(self, config: Config) -> nn.Module:
        """Build the model of a config."""
        self.register()
        model = copy.deepcopy(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)  # as the runner does
        scope = config.get('default_scope', self.scope)
        beginning = 'cannot build the model of this config: '
        built: nn.Module = build_from_config(MODELS, model, config, 'model', scope, beginning)
        return built

    def select_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Set the metrics of the test evaluator, ``--eval`` of the test tool."""
        for metric in metrics:
            if metric not in self.metrics:
                raise UsageError(
                    f'unknown metric {metric!r} for --eval of a {self.noun}: choose from {", ".join(self.metrics)}'
                )
        self.set_metrics(config, model, metrics)

    def datasets(self, config: Config, splits: Sequence[str]) -> Iterator[tuple[str, MutableMapping, type]]:
        """Yield the data sets of the splits: the split, the dict in the config, the class."""
        for split in splits:
            for _, dataset in dataset_places(config, split):
                if (kind := self.dataset_class(dataset)) is not None:
                    yield split, dataset, kind

    def stated_classes(self, config: Config, splits: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the names of the classes that the data sets of the splits state, each with its split."""
        for split, dataset, kind in self.datasets(config, splits):
            if (classes := named_classes(dataset, kind)) is not None:
                yield split, classes

    def class_difference(self, config: Config, splits: Sequence[str]) -> str | None:
        """Return how the classes that the data sets name differ; None if they do not.

        A model has one list of classes. Where it reads them as text, each data set may have its own.
        """
        stated = [] if 'language_model' in config.model else list(self.stated_classes(config, splits))
        for split, classes in stated[1:]:
            first_split, first = stated[0]
            if found := first_difference(first, classes, f'the {first_split} data set', f'a {split} data set'):
                return f'{found}: give all data sets the same metainfo=dict(classes=...), in one order'
        return None

    def checkpoint_class_difference(self, config: Config, content: Any, path: str, splits: Sequence[str]) -> str | None:
        """Return how the classes that a checkpoint was trained on differ from those of the data sets."""
        stored = stored_classes(content)
        if stored is None or 'language_model' in config.model:
            return None
        for split, classes in self.stated_classes(config, splits):
            if found := first_difference(stored, classes, path, f'the {split} data set'):
                return found
        return None

    def check_checkpoint_classes(self, config: Config, content: Any, path: str, splits: Sequence[str]) -> None:
        """Refuse a checkpoint whose classes have other names than those of the data sets, or another order."""
        if difference := self.checkpoint_class_difference(config, content, path, splits):
            raise UsageError(
                f'{difference}: write metainfo=dict(classes=...) as the file has it, {short(stored_classes(content))}, '
                f'or if the names alone have changed, drop those in the file: shvit-det convert-checkpoint {path} '
                f'NEW.safetensors --to ours'
            )

    def dataset_class(self, dataset: Mapping) -> type | None:
        """Return the class that a dataset dict names, or None if there is no such class."""
        return class_of(DATASETS, dataset, self.scope)

    def transforms_of(self, dataset: Mapping, kind: type) -> Iterator[Mapping]:
        """Yield the dicts of the transforms of a class in a pipeline, however deeply it is nested."""
        for _, node in dicts_in(dataset.get('pipeline'), 'pipeline'):
            if issubclass(class_of(TRANSFORMS, node, self.scope) or object, kind):
                yield node


def first_difference(one: Sequence[str], other: Sequence[str], name: str, other_name: str) -> str | None:
    """Return the first label that has two names, as a sentence without end; None if there is none."""
    if len(one) != len(other):
        return f'{name} has {len(one)} classes and {other_name} {len(other)}'
    for number, (here, there) in enumerate(zip(one, other, strict=True)):
        if here != there:
            return f'class {number} is {here!r} in {name} and {there!r} in {other_name}'
    return None


def table_of_numbers(metrics: Mapping[str, Any], if_empty: str) -> str:
    """Return the numbers among ``metrics``, one per line, or ``if_empty`` if there are none."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, Real)}
    width = max(map(len, numbers), default=0)
    return '\n'.join(f'{name:<{width}}  {value:.4g}' for name, value in numbers.items()) or if_empty
