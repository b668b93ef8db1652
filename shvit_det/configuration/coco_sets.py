"""The COCO data sets of a config: where they are, and what the config does with them."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.evaluation import LVISMetric
from mmengine.config import Config
from mmengine.logging import print_log

from ..common.errors import UsageError
from ..data.checking.annotation_file import Use
from ..data.checking.data_set_check import CocoSet
from ..data.checking.image_checks import DecodeSettings
from ..data.checking.image_presence import is_local
from ..data.coco_dataset import BAD_DATA, CheckedCocoDataset, check_bad_data
from .evaluators import Scoring, scorings
from .reading import dataset_places, named_classes, path_within
from .task import Task

IDENTITY = attrgetter('annotations', 'images', 'classes', 'bad_data', 'decode_settings', 'is_standard')


def coco_sets(task: Task, config: Config, splits: Sequence[str]) -> list[CocoSet]:
    """Return the COCO data sets of the splits, each once even if several loaders share it.

    An annotation file that only an evaluator names is one more, at the end. One on remote storage is left out with a
    line in the log: the run checks it after reading it.
    """
    sets: dict[tuple, CocoSet] = {}
    scored = {split: scorings(task, config, split) for split in splits}
    for split in splits:
        for key, dataset in dataset_places(config, split):
            kind = task.dataset_class(dataset)
            if kind is None or not issubclass(kind, CocoDataset) or 'ann_file' not in dataset:
                continue
            annotations = path_within(dataset, dataset['ann_file'])
            if not is_local(annotations, dataset.get('backend_args')):
                print_log(f'{annotations} is on remote storage, and not looked at before the start', 'current')
                continue
            prefix = dataset.get('data_prefix') or {}
            if not isinstance(prefix, Mapping):
                raise UsageError(f'{key}.data_prefix is {prefix!r}, and dict(img={prefix!r}) is wanted')
            bad_data = dataset.get('bad_data', config.get('bad_data', BAD_DATA[0]))
            check_bad_data(bad_data)
            images = path_within(dataset, prefix.get('img') or '')
            loading = next(task.transforms_of(dataset, LoadImageFromFile), {})
            data = CocoSet(
                annotations=Path(annotations),
                images=Path(images) if is_local(images, loading.get('backend_args')) else None,
                classes=named_classes(dataset, kind),
                bad_data=bad_data,
                decode_settings=DecodeSettings(
                    loading.get('color_type', 'color'), loading.get('imdecode_backend', 'cv2')
                ),
                is_standard=_reads_as_coco(kind),
            )
            data = sets.setdefault(IDENTITY(data), data)
            metrics = [each for each in scored[split] if key in each.datasets]
            data.use |= _use_of(task, dataset, metrics, trained=split == 'train')
            data.keys.append(f'{key}.ann_file')
            if split not in data.splits:
                data.splits.append(split)
    found = list(sets.values())
    trained = [data for data in found if 'train' in data.splits]
    if len(trained) == 1:  # beside others, one may hold images without objects on purpose
        trained[0].use |= Use(needs_objects=True)
    for scoring in (each for split in splits for each in scored[split]):
        file = scoring.metric.get('ann_file')
        if not (scoring.is_coco and scoring.datasets and isinstance(file, str)):
            continue
        if not is_local(file, scoring.metric.get('backend_args')):
            continue
        same = [each for each in found if each.annotations.resolve() == Path(file).resolve()]
        scored_by = next((each for each in same if each.scored_only or scoring.split in each.splits), None)
        if scored_by is None:
            scored_by = _set_of_evaluator(task, scoring)
            found.append(scored_by)
        elif scoring.split not in scored_by.splits:
            scored_by.splits.append(scoring.split)
        scored_by.keys.append(f'{scoring.key}.ann_file')
        if not scoring.writes_only and not scoring.name:
            scored_by.use |= Use(needs_objects=True)
    return found


def _set_of_evaluator(task: Task, scoring: Scoring) -> CocoSet:
    """Return the annotation file of an evaluator as a data set without images."""
    dataset = next(iter(scoring.datasets.values()))
    kind = task.dataset_class(dataset)
    is_sorted = scoring.metric.get('sort_categories', False)  # whatever the order in the file is
    return CocoSet(
        annotations=Path(scoring.metric['ann_file']),
        images=None,
        classes=None if kind is None or is_sorted else named_classes(dataset, kind),
        bad_data='refuse',
        decode_settings=DecodeSettings(),
        is_standard=not issubclass(scoring.kind, LVISMetric),
        use=Use(masks='segm' in scoring.scored, evaluated=not scoring.writes_only),
        splits=[scoring.split],
        scored_only=True,
    )


def _reads_as_coco(kind: type[CocoDataset]) -> bool:
    """Tell whether a class reads annotations as ``CocoDataset`` does: LVIS for instance has other keys."""
    return kind.parse_data_info is CocoDataset.parse_data_info and (
        kind.load_data_list in (CocoDataset.load_data_list, CheckedCocoDataset.load_data_list)
    )


def _use_of(task: Task, dataset: Mapping, scored: Sequence[Scoring], trained: bool) -> Use:
    """Return what a config does with the annotation file of a dataset dict: train on it, or score it by metrics."""
    with_mask = [each for each in task.transforms_of(dataset, LoadAnnotations) if each.get('with_mask', False)]
    coco = [scoring for scoring in scored if scoring.is_coco]
    filter_cfg = dataset.get('filter_cfg') or {}
    min_size = filter_cfg.get('min_size', 0)
    if not isinstance(min_size, int | float):
        raise UsageError(f'filter_cfg.min_size of a data set is {min_size!r}: it takes a number of pixels')
    return Use(
        masks=bool(with_mask) or any('segm' in scoring.scored for scoring in coco),
        polygons_only=any(not transform.get('poly2mask', True) for transform in with_mask),
        evaluated=not all(scoring.writes_only for scoring in coco),
        needs_objects=trained and bool(filter_cfg.get('filter_empty_gt', False)),
        min_size=min_size if trained else 0,
    )
