"""Everything that can be seen to be wrong before a run starts and writes anything."""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import nn

from ..data.annotations import check_categories, check_images, read_annotations
from ..data.sample import ensure_sample
from ..errors import UsageError
from .config import datasets_of

COCO_METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')


def check_data(config: Config, splits: Sequence[str]) -> None:
    """Look at the annotation files and the image folders of COCO data sets, once each.

    A config with ``sample_set`` gets its data drawn first, where it is not there yet.

    Raises:
        UsageError: If a file or folder is missing, or its content does not fit the config.
    """
    if 'sample_set' in config:
        ensure_sample(config.data_root, **config.sample_set)
    seen: set[tuple] = set()
    for split in splits:
        for dataset in datasets_of(config, split):
            kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
            if not (isinstance(kind, type) and issubclass(kind, CocoDataset)):
                continue
            root = dataset.get('data_root') or ''
            annotations = Path(os.path.join(root, dataset['ann_file']))
            images = Path(os.path.join(root, dataset.get('data_prefix', {}).get('img', '')))
            classes = classes_of(dataset, kind)
            if (annotations, images, classes) in seen:
                continue
            seen.add((annotations, images, classes))
            content = read_annotations(annotations)
            check_categories(content, classes, annotations)
            check_images(content, images, annotations)


def classes_of(dataset: MutableMapping, kind: type) -> tuple[str, ...]:
    """Return the names of the classes that a dataset dict trains or tests."""
    metainfo: Mapping = dataset.get('metainfo') or {}
    classes: str | Sequence[str] = metainfo.get('classes') or kind.METAINFO['classes']  # type: ignore[attr-defined]
    return (classes,) if isinstance(classes, str) else tuple(classes)


def build_detector(config: Config) -> nn.Module:
    """Build the model of a config once, to see that it can be built.

    Raises:
        UsageError: If it cannot, or if it was made for another number of classes than the data have.
    """
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
        try:
            detector = MODELS.build(config.model)
        except (TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise UsageError(f'cannot build the model of this config: {error}') from error
    return detector


def check_num_classes(config: Config, detector: nn.Module, splits: Sequence[str]) -> None:
    """Compare the classes of the data with those the heads were made for.

    Raises:
        UsageError: If they differ in number.
    """
    heads = {
        name: module.num_classes
        for name, module in detector.named_modules()
        if name.endswith(('bbox_head', 'mask_head')) and hasattr(module, 'num_classes')
    }
    for split in splits:
        for dataset in datasets_of(config, split):
            kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
            if not hasattr(kind, 'METAINFO'):
                continue
            num_classes = len(classes_of(dataset, kind))
            for name, value in heads.items():
                if value != num_classes:
                    raise UsageError(
                        f'{name}.num_classes is {value}, but the {split} data set has {num_classes} classes: '
                        f'set it, or metainfo=dict(classes=...) of the datasets'
                    )


def has_masks(detector: nn.Module) -> bool:
    """Tell whether a detector predicts masks; True for the kinds that this cannot be seen of."""
    if not isinstance(detector, SingleStageDetector | TwoStageDetector):
        return True
    heads = [getattr(detector, name, None) for name in ('roi_head', 'bbox_head', 'mask_head')]
    return detector.with_mask or any(hasattr(head, 'mask_head') for head in heads)


def select_metrics(config: Config, metrics: Sequence[str], detector: nn.Module) -> None:
    """Set the metrics of the test evaluator, ``--eval`` of the test tool.

    Raises:
        UsageError: If a metric is unknown, the evaluator is not COCO's, or the model predicts no masks.
    """
    unknown = [metric for metric in metrics if metric not in COCO_METRICS]
    if unknown:
        raise UsageError(f'unknown metric {unknown[0]!r} for --eval: choose from {", ".join(COCO_METRICS)}')
    if 'segm' in metrics and not has_masks(detector):
        raise UsageError(f'--eval segm needs masks, and {config.model.type} predicts boxes only: use --eval bbox')
    for evaluator in coco_evaluators(config, '--eval'):
        evaluator.metric = list(metrics)


def coco_evaluators(config: Config, option: str) -> list[ConfigDict]:
    """Return the COCO evaluators of the test split; ``option`` is what needs them.

    Raises:
        UsageError: If there is none.
    """
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    found = [evaluator for evaluator in evaluators if evaluator['type'] == 'CocoMetric']
    if not found:
        raise UsageError(f'{option} needs a CocoMetric in test_evaluator, and this config has none')
    return found
