"""The COCO data sets of a config: where their files are, what the config uses of them, and the check before a run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import is_abs

from ..common.errors import UsageError
from ..data.checking.all_checks import check_content, check_file
from ..data.checking.check_report import refusal
from ..data.checking.files import check_presence, is_local
from ..data.checking.findings import Finding, Repair, errors_among
from ..data.checking.image import Loader
from ..data.checking.objects import Use
from ..data.checking.reading import read_annotations
from ..data.coco_dataset import BAD_DATA, CHECK, CheckedCocoDataset
from .detector_or_classifier import Task
from .reading import dataset_places, evaluators_of, named_classes, type_of


@dataclass
class CocoSet:
    """An annotation file with its folder of images.

    Attributes:
        annotations: The file.
        images: The folder, or None if it is on remote storage.
        classes: The classes of the config, or None where it states none.
        bad_data: What a run does with bad data, ``'refuse'`` or ``'skip'``.
        loader: How images are decoded.
        is_plain: Whether the dataset's class reads the file as ``CocoDataset`` does.
        use: What the config does with the annotations.
        splits: The splits that use it.
        places: Where the config names the file, as ``--cfg-options`` spells it.
    """

    annotations: Path
    images: Path | None
    classes: tuple[str, ...] | None
    bad_data: str
    loader: Loader
    is_plain: bool = True
    use: Use = field(default_factory=Use)
    splits: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def coco_sets(task: Task, config: Config, splits: Sequence[str]) -> list[CocoSet]:
    """Return the COCO data sets of the splits, each once even if several loaders share it.

    An annotation file on remote storage is left out with a line in the log: the run checks it after reading it.

    Raises:
        UsageError: If ``bad_data`` of the config is none of the choices, or there is no such storage.
    """
    sets: dict[tuple, CocoSet] = {}
    for split in splits:
        for place, dataset in dataset_places(config, split):
            kind = task.dataset_class(dataset)
            if kind is None or not issubclass(kind, CocoDataset) or 'ann_file' not in dataset:
                continue
            annotations = place_within(dataset, dataset['ann_file'])
            if not is_local(annotations, dataset.get('backend_args')):
                print_log(f'{annotations} is on remote storage, and not looked at before the start', 'current')
                continue
            images = place_within(dataset, (dataset.get('data_prefix') or {}).get('img', ''))
            found = CocoSet(
                annotations=Path(annotations),
                images=Path(images) if is_local(images, storage_of_images(dataset)) else None,
                classes=named_classes(dataset, kind),
                bad_data=bad_data_of(config, dataset),
                loader=loader_of(dataset),
                is_plain=is_plain(kind),
            )
            key = (found.annotations, found.images, found.classes, found.bad_data, found.loader, found.is_plain)
            known = sets.setdefault(key, found)
            known.use |= use_of(config, split, dataset)
            known.places.append(f'{place}.ann_file')
            if split not in known.splits:
                known.splits.append(split)
                known.places += evaluator_places(config, split, known.annotations)
    return list(sets.values())


def place_within(dataset: Mapping, place: str) -> str:
    """Return a file or folder that a dataset dict names, as mmengine joins it with the data root."""
    return place if is_abs(place) else os.path.join(dataset.get('data_root') or '', place)


def storage_of_images(dataset: Mapping) -> Mapping | None:
    """Return the ``backend_args`` with which the pipeline of a dataset dict reads images."""
    return next((transform.get('backend_args') for transform in transforms_of(dataset, 'LoadImageFromFile')), None)


def is_plain(kind: type[CocoDataset]) -> bool:
    """Return whether a class reads annotations as ``CocoDataset`` does, unlike for instance LVIS's with other keys."""
    return kind.parse_data_info is CocoDataset.parse_data_info and (
        kind.load_data_list in (CocoDataset.load_data_list, CheckedCocoDataset.load_data_list)
    )


def check_annotations_of(data: CocoSet, content: Mapping[str, Any]) -> list[Finding]:
    """Return what is wrong with an annotation file; one that is not plain gets the checks of its structure only."""
    if data.is_plain:
        return check_content(content, data.use, data.annotations, data.classes)
    return list(check_file(content, data.annotations, data.classes))


def bad_data_of(config: Config, dataset: Mapping) -> str:
    """Return ``bad_data`` of the dataset dict, or else of the config.

    Raises:
        UsageError: If it is none of the choices.
    """
    bad_data = dataset.get('bad_data', config.get('bad_data', BAD_DATA[0]))
    if bad_data not in BAD_DATA:
        raise UsageError(f'bad_data is {bad_data!r}: choose from {", ".join(BAD_DATA)}')
    return bad_data


def check_before_run(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Check the annotations of the splits, and that their images exist without opening any, before a run starts.

    Raises:
        UsageError: If there is an error that ``bad_data`` does not allow to skip.
    """
    for data in coco_sets(task, config, splits):
        content = read_annotations(data.annotations)
        findings = check_annotations_of(data, content)
        if data.images is not None:
            findings += check_presence(content, data.images)
        refused = [finding for finding in errors_among(findings) if not _is_skipped(finding, data)]
        if refused:
            raise UsageError(refusal(refused, data.annotations, CHECK))


def _is_skipped(finding: Finding, data: CocoSet) -> bool:
    if data.bad_data == 'refuse' or finding.repair == Repair.NONE:
        return False
    return finding.kind == 'image_missing' or data.splits == ['train']  # evaluators read the whole annotation file


def check_during_run(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Replace mmdet's ``CocoDataset`` in a config by ours, which checks each image that it loads."""
    for split in splits:
        for _, dataset in dataset_places(config, split):
            if task.dataset_class(dataset) is CocoDataset:
                dataset['type'] = f'shvit_det.{CheckedCocoDataset.__name__}'
                dataset['bad_data'] = bad_data_of(config, dataset)


def transforms_of(dataset: Mapping, name: str) -> Iterator[Mapping]:
    """Yield the dicts of the transforms called ``name`` in a pipeline, however deeply nested."""
    pending = [dataset.get('pipeline')]
    while pending:
        node: Any = pending.pop(0)
        if isinstance(node, Mapping):
            if type_of(node) == name:
                yield node
            pending.extend(node.values())
        elif isinstance(node, Sequence) and not isinstance(node, str):
            pending.extend(node)


def loader_of(dataset: Mapping) -> Loader:
    """Return how the pipeline of a dataset dict decodes images."""
    for transform in transforms_of(dataset, 'LoadImageFromFile'):
        return Loader(transform.get('color_type', 'color'), transform.get('imdecode_backend', 'cv2'))
    return Loader()


def use_of(config: Config, split: str, dataset: Mapping) -> Use:
    """Return what a split uses of the annotation file of a dataset dict."""
    loading = [t for t in transforms_of(dataset, 'LoadAnnotations') if t.get('with_mask', False)]
    coco = [evaluator for _, evaluator in evaluators_of(config, split) if type_of(evaluator) == 'CocoMetric']
    metrics = [str(metric) for evaluator in coco for metric in _as_list(evaluator.get('metric'))]
    return Use(
        masks=bool(loading) or 'segm' in metrics,
        polygons_only=any(not transform.get('poly2mask', True) for transform in loading),
        evaluated=bool(coco),
    )


def evaluator_places(config: Config, split: str, annotations: Path) -> list[str]:
    """Return where the evaluators of a split name an annotation file."""
    named = ((place, evaluator.get('ann_file')) for place, evaluator in evaluators_of(config, split))
    return [f'{place}.ann_file' for place, file in named if file and Path(file).resolve() == annotations.resolve()]


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]
