"""The COCO data sets of a config: where they are, what the config does with them, and their check before a run."""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.evaluation import LVISMetric
from mmengine.config import Config
from mmengine.logging import print_log

from ..common.errors import UsageError
from ..data.checking.annotation_file import (
    WHERE_TO_GET_DATA,
    Use,
    annotations_of,
    is_hashable,
    read_annotations,
    require_annotations,
)
from ..data.checking.cleaning import clean
from ..data.checking.data_set_check import CocoSet
from ..data.checking.findings import KINDS, Finding, errors_among, refusal
from ..data.checking.image_checks import DecodeSettings, check_presence, image_paths, inspect_image, is_local
from ..data.checking.set_comparison import repeated_image, scoring_difference, shared_images
from ..data.coco_dataset import BAD_DATA, CHECK, CheckedCocoDataset
from ..data.sample import ensure_sample
from .build_errors import parameters_of, unknown_key
from .cfg_options import pasteable
from .evaluators import ONE_EACH, Scoring, check_evaluators, scorings
from .reading import dataset_places, named_classes, path_within
from .task import Task

Contents = Mapping[Path, Mapping[str, Any]]
FirstImages = Mapping[Path, Mapping[str, Any]]  # the content of annotation files, cut down to a few images
NUM_FIRST = 4
MOST_COMPARED = 20_000  # training images whose contents are compared before a run, and not only by check_data


def coco_sets(task: Task, config: Config, splits: Sequence[str]) -> list[CocoSet]:
    """Return the COCO data sets of the splits, each once even if several loaders share it.

    An annotation file that only an evaluator names is one more, at the end. One on remote storage is left out with a
    line in the log: the run checks it after reading it.

    Raises:
        UsageError: If ``bad_data`` of the config is none of the choices, or there is no such storage.
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
            images = path_within(dataset, prefix.get('img') or '')
            loading = next(task.transforms_of(dataset, LoadImageFromFile), {})
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
        is_standard=not issubclass(scoring.kind or object, LVISMetric),
        use=Use(masks='segm' in scoring.scored, evaluated=_computes_scores(scoring)),
        splits=[scoring.split],
        scored_only=True,
    )


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


def check_files(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Check that the files and folders exist that data sets of any kind name, but for COCO's, which are read.

    Raises:
        UsageError: If one does not.
    """
    for split in splits:
        for place, dataset in dataset_places(config, split):
            kind, prefix = task.dataset_class(dataset), dataset.get('data_prefix')
            is_coco = kind is not None and issubclass(kind, CocoDataset)
            read = ('ann_file', 'data_prefix.img') if is_coco else ()
            named = {key: value for key, value in dataset.items() if key.endswith('_file') and isinstance(value, str)}
            if isinstance(prefix, Mapping):
                named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
            for key, value in named.items():
                path = path_within(dataset, value) if value and key not in read else None
                if path and is_local(path, dataset.get('backend_args')) and not any(map(os.path.exists, (path, value))):
                    raise UsageError(f'{place}.{key}: there is no {path}; {WHERE_TO_GET_DATA}')


@dataclass(frozen=True)
class Comparison:
    """A metric, and the annotation files that have to agree for its scores to be right.

    Attributes:
        scoring: The metric.
        evaluator: The file that it scores by; None if it takes the ground truth from the data sets.
        predicted: The data sets whose images are predicted.
    """

    scoring: Scoring
    evaluator: CocoSet | None
    predicted: list[CocoSet]

    @property
    def sets(self) -> list[CocoSet]:
        return [*self.predicted, *([self.evaluator] if self.evaluator else [])]

    def fault(self, contents: Contents) -> str | None:
        """Return a sentence on what does not agree, or None."""
        key, first = f'{self.scoring.key}.ann_file', self.predicted[0].annotations
        way_out = f'let both name one file: {pasteable({key: str(first)})}'
        if len(self.predicted) > 1:
            way_out = f'{self.scoring.split}_evaluator={ONE_EACH} scores each data set by itself, with its own file'
        predicted = [contents[data.annotations] for data in self.predicted]
        repeated = repeated_image(predicted)
        if repeated is not None:
            return (
                f'{self.scoring.key} would mix up two images, since data sets of {self.scoring.split}_dataloader share '
                f'the id {repeated!r}: {way_out}'
            )
        if self.evaluator is None:
            return None
        difference = scoring_difference(
            contents[self.evaluator.annotations], predicted, masks='segm' in self.scoring.scored
        )
        names = ' and '.join(str(data.annotations) for data in self.predicted)
        return difference and f'{key}={self.evaluator.annotations} {difference} of {names}: {way_out}'


def comparisons(task: Task, config: Config, splits: Sequence[str], sets: Sequence[CocoSet]) -> Iterator[Comparison]:
    """Yield what has to be compared for the COCO metrics of the splits, as far as the files are on this machine."""
    by_key = {key: data for data in sets for key in data.keys}
    for split in splits:
        for scoring in scorings(task, config, split):
            predicted = [by_key.get(f'{place}.ann_file') for place in scoring.datasets]
            evaluator = by_key.get(f'{scoring.key}.ann_file')
            found = [data for data in predicted if data is not None]
            is_one = len(found) == 1 and evaluator in (None, found[0])
            if scoring.is_coco and found and len(found) == len(predicted) and not is_one:
                yield Comparison(scoring, evaluator, found)


def draw_sample_set(config: Config) -> None:
    """Draw the sample set of a config that has one, unless it is there.

    Raises:
        UsageError: If its settings are wrong, or something else is in its folder.
    """
    settings, known = config.get('sample_set'), parameters_of(ensure_sample)
    for name, value in (settings or {}).items():
        if name not in known:
            raise UsageError(unknown_key('sample_set', name, 'the sample set', list(known)))
        if not isinstance(value, int):
            raise UsageError(f'sample_set.{name} is {value!r}, where a whole number is wanted')
    if settings:
        ensure_sample(config.data_root, **settings)


def check_before_run(task: Task, config: Config, splits: Sequence[str]) -> FirstImages:
    """Check the annotations of the splits, and that their images exist without opening any, before a run starts.

    Returns:
        The first images of each annotation file with their objects.

    Raises:
        UsageError: If there is an error that ``bad_data`` does not skip.
    """
    sets = coco_sets(task, config, splits)
    for data in sets:
        if not data.scored_only:
            require_annotations(data.annotations)
    check_files(task, config, splits)
    check_evaluators(task, config, splits)
    compared = list(comparisons(task, config, splits, sets))
    whole = {data.annotations for comparison in compared for data in comparison.sets}
    contents: dict[Path, Mapping[str, Any]] = {}
    first: dict[Path, Mapping[str, Any]] = {}
    for data in sets:
        content = read_annotations(data.annotations, data.images_only)
        _check_set(data, content)
        if data.images is not None:
            first[data.annotations] = first_images(content, data.images)
        # the objects of COCO's training images take a gigabyte
        contents[data.annotations] = content if data.annotations in whole else {'images': content['images']}
    for comparison in compared:
        if fault := comparison.fault(contents):
            raise UsageError(fault)
    trained = sum(len(contents[data.annotations]['images']) for data in sets if 'train' in data.splits)
    for data in sets:
        leaked = list(leaked_images(sets, data, contents, by_content=trained <= MOST_COMPARED))
        if leaked:
            print_log(
                f'{len(leaked)} of the {len(contents[data.annotations]["images"])} images of {data.annotations} '
                f'({", ".join(data.splits)}) are trained on too, so that scores say little about new images: '
                f'{leaked[0].message}; {CHECK} lists them',
                'current',
                logging.WARNING,
            )
    return first


def _check_set(data: CocoSet, content: Mapping[str, Any]) -> None:
    """Check one data set before a run.

    Raises:
        UsageError: If there is an error that ``bad_data`` does not skip.
    """
    findings, total = data.check_content(content), len(content['images'])
    if data.bad_data == 'skip' and data.splits == ['train']:  # evaluators read the file as it is
        findings = clean(content, findings, data.use, data.annotations, data.classes).left
    missing = check_presence(content, data.images) if data.images is not None else []
    findings += [each for each in missing if data.bad_data == 'refuse' or each.kind != 'image_missing']
    if errors_among(findings):
        raise UsageError(refusal(findings, data.annotations, CHECK))
    if missing:
        what = 'others are taken' if data.splits == ['train'] else 'they are scored as black pictures'
        text = f'bad_data=skip: {len(missing)} of the {total} images of {data.annotations} are missing; {what}'
        print_log(text, 'current', logging.WARNING)
    if data.bad_data == 'skip' and data.images is not None:
        _check_usable(data, content, data.images)


def _check_usable(data: CocoSet, content: Mapping[str, Any], folder: Path) -> None:
    """Open images until one can be used.

    Raises:
        UsageError: If none can.
    """
    sentence = ''
    for path in image_paths(content, folder).values():
        found = inspect_image(Path(path), None, data.decode_settings).found
        faults = [text for kind, text in found if KINDS[kind].severity == 'error']
        if not faults:
            return
        sentence = sentence or f'the image {path} {faults[0]}'
    raise UsageError(f'not one of the {len(content["images"])} images can be used, the first: {sentence}')


def first_images(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of an annotation file cut down to a few images that are there, with objects if any has."""
    with_objects = {
        entry.get('image_id')
        for entry in annotations_of(content).values()
        if is_hashable(entry.get('image_id')) and not entry.get('iscrowd')
    }
    listed = [(content['images'][index], path) for index, path in image_paths(content, folder).items()]
    listed.sort(key=lambda each: not is_hashable(each[0].get('id')) or each[0]['id'] not in with_objects)
    images = list(itertools.islice((image for image, path in listed if Path(path).is_file()), NUM_FIRST))
    ids = [image.get('id') for image in images]
    objects = [entry for entry in annotations_of(content).values() if entry.get('image_id') in ids]
    return {**content, 'images': images, 'annotations': objects}


def leaked_images(sets: Sequence[CocoSet], data: CocoSet, contents: Contents, by_content: bool) -> Iterator[Finding]:
    """Yield the images of a data set for evaluation that are in a training split too."""
    training = [
        (contents[each.annotations], each.images)
        for each in sets
        if 'train' in each.splits and each.images and each.annotations in contents
    ]
    if training and data.images and data.splits != ['train']:
        yield from shared_images(training, contents[data.annotations], data.images, by_content)


def use_checked_datasets(task: Task, config: Config, splits: Sequence[str]) -> None:
    """Replace mmdet's ``CocoDataset`` in a config by ours, which checks each image that it loads."""
    for split in splits:
        for _, dataset in dataset_places(config, split):
            if task.dataset_class(dataset) is CocoDataset:
                dataset['type'] = f'shvit_det.{CheckedCocoDataset.__name__}'
                dataset['bad_data'] = bad_data_of(config, dataset)


def _computes_scores(scoring: Scoring) -> bool:
    return not scoring.metric.get('format_only', False)


def _use_of(task: Task, dataset: Mapping, scored: Sequence[Scoring], trained: bool) -> Use:
    """Return what a config does with the annotation file of a dataset dict: train on it, or score it by metrics."""
    with_mask = [each for each in task.transforms_of(dataset, LoadAnnotations) if each.get('with_mask', False)]
    coco = [scoring for scoring in scored if scoring.is_coco]
    filter_cfg = (dataset.get('filter_cfg') or {}) if trained else {}
    return Use(
        masks=bool(with_mask) or any('segm' in scoring.scored for scoring in coco),
        polygons_only=any(not transform.get('poly2mask', True) for transform in with_mask),
        evaluated=any(map(_computes_scores, coco)),
        needs_objects=bool(filter_cfg.get('filter_empty_gt', False)),
        min_size=filter_cfg.get('min_size', 0),
    )
