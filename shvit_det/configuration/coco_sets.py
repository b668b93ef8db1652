"""The COCO data sets of a config: where they are, what the config does with them, and their check before a run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import is_abs

from ..common.errors import UsageError
from ..data.checking.annotation_file import Use, read_annotations
from ..data.checking.cleaning import clean
from ..data.checking.data_set_check import CocoSet
from ..data.checking.findings import errors_among, refusal
from ..data.checking.image_checks import DecodeSettings, check_presence, is_local
from ..data.coco_dataset import BAD_DATA, CHECK, CheckedCocoDataset
from .reading import dataset_places, evaluators_of, named_classes, type_of
from .task import Task


def coco_sets(task: Task, config: Config, splits: Sequence[str]) -> list[CocoSet]:
    """Return the COCO data sets of the splits, each once even if several loaders share it.

    An annotation file on remote storage is left out with a line in the log: the run checks it after reading it.

    Raises:
        UsageError: If ``bad_data`` of the config is none of the choices, or there is no such storage.
    """
    sets: dict[tuple, CocoSet] = {}
    for split in splits:
        for key, dataset in dataset_places(config, split):
            kind = task.dataset_class(dataset)
            if kind is None or not issubclass(kind, CocoDataset) or 'ann_file' not in dataset:
                continue
            annotations = _path_within(dataset, dataset['ann_file'])
            if not is_local(annotations, dataset.get('backend_args')):
                print_log(f'{annotations} is on remote storage, and not looked at before the start', 'current')
                continue
            images = _path_within(dataset, (dataset.get('data_prefix') or {}).get('img', ''))
            loading = next(_transforms_of(dataset, 'LoadImageFromFile'), {})
            data = CocoSet(
                annotations=Path(annotations),
                images=Path(images) if is_local(images, loading.get('backend_args')) else None,
                classes=named_classes(dataset, kind),
                bad_data=bad_data_of(config, dataset),
                decode_settings=DecodeSettings(
                    loading.get('color_type', 'color'), loading.get('imdecode_backend', 'cv2')
                ),
                is_standard=_reads_as_coco(kind),
            )
            identity = (
                data.annotations,
                data.images,
                data.classes,
                data.bad_data,
                data.decode_settings,
                data.is_standard,
            )
            data = sets.setdefault(identity, data)
            data.use |= _use_of(config, split, dataset)
            data.keys.append(f'{key}.ann_file')
            if split not in data.splits:
                data.splits.append(split)
                data.keys += _evaluator_keys(config, split, data.annotations)
    trained = [data for data in sets.values() if 'train' in data.splits]
    if len(trained) == 1:  # beside others, one may hold images without objects on purpose
        trained[0].use |= Use(needs_objects=True)
    return list(sets.values())


def _path_within(dataset: Mapping, path: str) -> str:
    """Return a file or folder that a dataset dict names, joined with the data root as mmengine does."""
    return path if is_abs(path) else os.path.join(dataset.get('data_root') or '', path)


def _reads_as_coco(kind: type[CocoDataset]) -> bool:
    """Tell whether a class reads annotations as ``CocoDataset`` does: LVIS for instance has other keys."""
    return kind.parse_data_info is CocoDataset.parse_data_info and (
        kind.load_data_list in (CocoDataset.load_data_list, CheckedCocoDataset.load_data_list)
    )


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
        UsageError: If there is an error that ``bad_data`` does not skip.
    """
    for data in coco_sets(task, config, splits):
        content = read_annotations(data.annotations)
        findings = data.check_content(content)
        if data.bad_data == 'skip' and data.splits == ['train']:  # evaluators read the file as it is
            findings = clean(content, findings, data.use, data.annotations, data.classes).left
        if data.images is not None:
            missing = check_presence(content, data.images)
            findings += [each for each in missing if data.bad_data == 'refuse' or each.kind != 'image_missing']
        if errors_among(findings):
            raise UsageError(refusal(findings, data.annotations, CHECK))


def use_checked_datasets(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Replace mmdet's ``CocoDataset`` in a config by ours, which checks each image that it loads."""
    for split in splits:
        for _, dataset in dataset_places(config, split):
            if task.dataset_class(dataset) is CocoDataset:
                dataset['type'] = f'shvit_det.{CheckedCocoDataset.__name__}'
                dataset['bad_data'] = bad_data_of(config, dataset)


def _transforms_of(dataset: Mapping, name: str) -> Iterator[Mapping]:
    """Yield the dicts of the transforms called ``name`` in a pipeline, however deeply it is nested."""
    pending = [dataset.get('pipeline')]
    while pending:
        node: Any = pending.pop(0)
        if isinstance(node, Mapping):
            if type_of(node) == name:
                yield node
            pending.extend(node.values())
        elif isinstance(node, Sequence) and not isinstance(node, str):
            pending.extend(node)


def _use_of(config: Config, split: str, dataset: Mapping) -> Use:
    """Return what a split does with the annotation file of a dataset dict."""
    with_mask = [each for each in _transforms_of(dataset, 'LoadAnnotations') if each.get('with_mask', False)]
    coco = [evaluator for _, evaluator in evaluators_of(config, split) if type_of(evaluator) == 'CocoMetric']
    scores_masks = any('segm' in evaluator.get('metric', ()) for evaluator in coco)  # one name or several
    filter_cfg = dataset.get('filter_cfg') or {}
    return Use(
        masks=bool(with_mask) or scores_masks,
        polygons_only=any(not transform.get('poly2mask', True) for transform in with_mask),
        evaluated=bool(coco),
        needs_objects=split == 'train' and bool(filter_cfg.get('filter_empty_gt', False)),
        min_size=filter_cfg.get('min_size', 0) if split == 'train' else 0,
    )


def _evaluator_keys(config: Config, split: str, annotations: Path) -> list[str]:
    """Return the keys of a split's evaluators that name an annotation file."""
    named = ((key, evaluator.get('ann_file')) for key, evaluator in evaluators_of(config, split))
    return [f'{key}.ann_file' for key, file in named if file and Path(file).resolve() == annotations.resolve()]
