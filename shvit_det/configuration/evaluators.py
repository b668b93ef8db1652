"""The evaluators of a detector's config: which data sets each of them scores, and whether it can."""

import inspect
import itertools
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from mmdet.datasets import ConcatDataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric, MultiDatasetsEvaluator
from mmengine.config import Config
from mmengine.dataset import ClassBalancedDataset, RepeatDataset
from mmengine.registry import DATA_SAMPLERS, DATASETS, EVALUATOR, METRICS

from ..common.errors import UsageError
from ..common.log import warn
from ..data.checking.findings import short
from ..data.checking.image_presence import is_local
from .cfg_options import pasteable
from .reading import dataset_places, dataset_tree, evaluators_of, path_within, type_of
from .task import Task
from .type_names import class_of

AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # what CocoMetric measures of each
ONE_EACH = "dict(type='MultiDatasetsEvaluator', metrics=[...], dataset_prefixes=[...])"


@dataclass(frozen=True)
class Scoring:
    """A metric of an evaluator with the data sets that it scores.

    Attributes:
        key: The metric's key in the config, as ``--cfg-options`` spells it.
        metric: Its dict.
        kind: Its class, or ``object`` if there is no such class.
        datasets: The innermost dataset dicts by their keys.
        name: The prefix of the data set, if the evaluator scores each by itself.
    """

    split: str
    key: str
    metric: MutableMapping
    kind: type
    datasets: dict[str, MutableMapping]
    name: str = ''

    @property
    def is_coco(self) -> bool:
        """Whether its arguments are those of ``CocoMetric``."""
        return issubclass(self.kind, CocoMetric)

    @property
    def scored(self) -> set[str]:
        """What is scored, of the choices of ``--eval``."""
        metric = self.metric.get('metric', 'bbox')
        return {metric} if isinstance(metric, str) else set(metric)

    @property
    def prefix(self) -> str:
        """What the names of its scores begin with."""
        own = self.metric.get('prefix') or getattr(self.kind, 'default_prefix', None)
        return '/'.join(filter(None, (self.name, own)))

    @property
    def writes_only(self) -> bool:
        """Whether it writes result files and computes no scores."""
        return bool(self.metric.get('format_only'))


def scorings(task: Task, config: Config, split: str) -> list[Scoring]:
    """Return the metrics of a split, each with the data sets that it scores."""
    datasets = dict(dataset_places(config, split))
    if not datasets:
        return []
    evaluator = config.get(f'{split}_evaluator')
    metrics = [(key, each, class_of(METRICS, each, task.scope) or object) for key, each in evaluators_of(config, split)]
    has_metrics = isinstance(evaluator, Mapping) and 'metrics' in evaluator
    if not has_metrics or not issubclass(class_of(EVALUATOR, evaluator, task.scope) or object, MultiDatasetsEvaluator):
        return [Scoring(split, *each, datasets) for each in metrics]
    _check_one_each(task, config, split)
    top = f'{split}_dataloader.dataset.datasets.'
    found = []
    for number, (each, name) in enumerate(zip(metrics, evaluator['dataset_prefixes'], strict=True)):
        own = {place: dataset for place, dataset in datasets.items() if f'{place}.'.startswith(f'{top}{number}.')}
        found.append(Scoring(split, *each, own, name))
    return found


def _check_one_each(task: Task, config: Config, split: str) -> None:
    """Check what ``MultiDatasetsEvaluator`` takes for granted."""
    loader, evaluator = config[f'{split}_dataloader'], config[f'{split}_evaluator']
    kind, where = class_of(DATASETS, loader['dataset'], task.scope), f'{split}_evaluator=dict({type_of(evaluator)})'
    if kind is None or not issubclass(kind, ConcatDataset) or loader['dataset'].get('lazy_init'):
        raise UsageError(
            f'{where} scores the data sets of an mmdet.ConcatDataset without lazy_init, but '
            f'{split}_dataloader.dataset is {loader["dataset"]["type"]}: write such a ConcatDataset, or a single metric'
        )
    prefixes = evaluator.get('dataset_prefixes')
    counts = {
        f'{split}_dataloader.dataset.datasets': len(loader['dataset']['datasets']),
        f'{split}_evaluator.metrics': len(list(evaluators_of(config, split))),
        f'{split}_evaluator.dataset_prefixes': len(prefixes) if isinstance(prefixes, list | tuple) else 0,
    }
    if len(set(counts.values())) > 1:
        told = ', '.join(f'{key} has {count}' for key, count in counts.items())
        raise UsageError(f'{where} needs one metric and one prefix for each data set, in the same order: {told}')
    if repeated := next((prefix for prefix in prefixes if list(prefixes).count(prefix) > 1), None):
        raise UsageError(f'{split}_evaluator.dataset_prefixes has {repeated!r} twice: name a prefix for each data set')
    sampler = loader.get('sampler') or {}
    by_default = inspect.signature(class_of(DATA_SAMPLERS, sampler, task.scope) or object).parameters.get('shuffle')
    if sampler.get('shuffle', by_default and by_default.default):
        option = pasteable({f'{split}_dataloader.sampler.shuffle': False})
        raise UsageError(f'{where} tells the data sets apart by the order of the images: add {option}')


def check_evaluators(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Check that evaluators can score what their data sets hand over, and that the files that they name exist."""
    for split in splits:
        found = scorings(task, config, split)
        for place, dataset, is_wrapper in dataset_tree(config, split) if found else ():
            if is_wrapper and issubclass(task.dataset_class(dataset) or object, RepeatDataset | ClassBalancedDataset):
                raise UsageError(
                    f'{place} is a {type_of(dataset)}, and images that are repeated cannot be scored: name the data '
                    f'set in it alone'
                )
        for scoring in found:
            _check_files(scoring)
            _check_ground_truth(task, scoring)
        for one, other in itertools.combinations(found, 2):
            same = one.scored & other.scored if one.is_coco and other.is_coco else one.kind is other.kind
            writes_only = one.writes_only or other.writes_only
            if same and not writes_only and one.prefix and one.prefix == other.prefix:
                way_out = f'tell them apart with {pasteable({f"{other.key}.prefix": "NAME"})}'
                if len(one.datasets) > 1:
                    way_out = f'{split}_evaluator={ONE_EACH} scores each data set by itself'
                names = f'{one.prefix}/{min(one.scored & other.scored, default="")}...'
                raise UsageError(
                    f'{one.key} and {other.key} would give their scores the same names, {names}: {way_out}'
                )


def _check_files(scoring: Scoring) -> None:
    for name, exists in (('ann_file', os.path.isfile), ('seg_prefix', os.path.isdir)):
        path, key = scoring.metric.get(name), f'{scoring.key}.{name}'
        if path is None:
            continue
        if not isinstance(path, str):
            raise UsageError(
                f'{key} is {short(path)}, and one path is wanted: several data sets are scored by '
                f'{scoring.split}_evaluator={ONE_EACH}'
            )
        if is_local(path, scoring.metric.get('backend_args')) and not exists(path):
            meant = [path_within(dataset, path) for dataset in scoring.datasets.values()]
            if name == 'ann_file' and len(meant) == 1:
                meant += [path_within(dataset, dataset.get(name) or '') for dataset in scoring.datasets.values()]
            way_out = pasteable({key: next(filter(exists, meant), 'PATH')})
            raise UsageError(f'{key}: there is no {path}, and an evaluator does not look into data_root: {way_out}')


def _check_ground_truth(task: Task, scoring: Scoring) -> None:
    """Check that the pipelines hand over the ground truth where a COCO metric has no file of it.

    Where it has one, log which data sets take a part of the images: all of the file are scored.
    """
    for place, dataset in scoring.datasets.items() if scoring.is_coco else ():
        if scoring.metric.get('ann_file') is not None:
            for key, end in (('indices', ''), ('filter_cfg', ', if test_mode=True is not set')):
                if dataset.get(key) and not (key == 'filter_cfg' and dataset.get('test_mode')):
                    text = f'{place}.{key} leaves out images, whose objects {scoring.key} counts as missed{end}'
                    warn(text)
            continue
        for packing in task.transforms_of(dataset, PackDetInputs):
            if 'instances' not in packing.get('meta_keys', ()):
                file = path_within(dataset, dataset.get('ann_file', ''))
                raise UsageError(
                    f'{scoring.key} has no ann_file, and the pipeline of {place} passes no annotations to it: '
                    f'{pasteable({f"{scoring.key}.ann_file": file})}, or add "instances" to meta_keys of PackDetInputs'
                )


def coco_scorings(task: Task, config: Config, option: str) -> list[Scoring]:
    """Return the COCO metrics of the test split; without one, the message names the option that needs it."""
    found = [scoring for scoring in scorings(task, config, 'test') if scoring.is_coco]
    if not found:
        raise UsageError(f'{option} needs a CocoMetric in test_evaluator, and this config has none')
    return found


def merge_same(task: Task, config: Config, option: str) -> None:
    """Leave one of several COCO metrics that differ only in what they score: an option says that for all of them."""
    found = coco_scorings(task, config, option)
    settings = [(each.name, {key: value for key, value in each.metric.items() if key != 'metric'}) for each in found]
    remove_metrics(config, [each for number, each in enumerate(found) if settings[number] in settings[:number]])


def remove_metrics(config: Config, removed: Sequence[Scoring]) -> None:
    """Remove metrics from the test evaluator."""
    if not removed:
        return
    left = [metric for _, metric in evaluators_of(config, 'test') if not any(metric is each.metric for each in removed)]
    if isinstance(config.test_evaluator, MutableMapping):  # mmengine's Evaluator
        config.test_evaluator['metrics'] = left
    else:
        config.test_evaluator = left
