"""The checks of the COCO data sets of a config, before a run and by ``tools/check_data.py``."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import Config

from ..common.errors import UsageError
from ..common.log import warn
from ..data.checking.annotation_file import (
    WHERE_TO_GET_DATA,
    entries_by_place,
    is_hashable,
    read_annotations,
    require_annotations,
)
from ..data.checking.cleaning import clean
from ..data.checking.data_set_check import CocoSet
from ..data.checking.findings import CHECK, Finding, errors_among, refusal
from ..data.checking.image_checks import inspect_image
from ..data.checking.image_presence import check_presence, image_paths, is_local, require_folder
from ..data.checking.set_comparison import repeated_image, scoring_difference, shared_images
from ..data.sample import ensure_sample
from .build_errors import unknown_key
from .cfg_options import pasteable
from .coco_sets import coco_sets
from .evaluators import ONE_EACH, Scoring, check_evaluators, scorings
from .reading import dataset_places, path_within
from .task import Task
from .value_kinds import parameters_of

Contents = Mapping[Path, Mapping[str, Any]]
FirstImages = Mapping[Path, Mapping[str, Any]]  # the content of annotation files, cut down to a few images
NUM_FIRST = 4
MOST_COMPARED = 20_000  # training images whose contents are compared before a run, and not only by check_data


def check_places(task: Task, config: Config, splits: Sequence[str], sets: Sequence[CocoSet]) -> None:
    """Check that the files and folders exist that data sets of any kind and evaluators name, before any is read."""
    for data in sets:
        if not data.scored_only:
            require_annotations(data.annotations)
        if data.images is not None:
            require_folder(data.images)
    for split in splits:
        for place, dataset in dataset_places(config, split):
            kind, prefix = task.dataset_class(dataset), dataset.get('data_prefix')
            read = ('ann_file', 'data_prefix.img') if issubclass(kind or object, CocoDataset) else ()
            named = {key: value for key, value in dataset.items() if key.endswith('_file') and isinstance(value, str)}
            if isinstance(prefix, Mapping):
                named |= {f'data_prefix.{key}': value for key, value in prefix.items()}
            for key, value in named.items():
                path = path_within(dataset, value) if value and key not in read else None
                if path and is_local(path, dataset.get('backend_args')) and not any(map(os.path.exists, (path, value))):
                    raise UsageError(f'{place}.{key}: there is no {path}; {WHERE_TO_GET_DATA}')
    check_evaluators(task, config, splits)


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
    """Draw the sample set of a config that has one, unless it is there."""
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

    Return the first images of each annotation file with their objects.
    """
    sets = coco_sets(task, config, splits)
    check_places(task, config, splits, sets)
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
            warn(
                f'{len(leaked)} of the {len(contents[data.annotations]["images"])} images of {data.annotations} '
                f'({", ".join(data.splits)}) are trained on too, so that scores say little about new images: '
                f'{leaked[0].message}; {CHECK} lists them'
            )
    return first


def _check_set(data: CocoSet, content: Mapping[str, Any]) -> None:
    """Refuse a data set with an error that ``bad_data`` does not skip."""
    findings, total = data.check_content(content), len(content['images'])
    if data.bad_data == 'skip' and data.splits == ['train']:  # evaluators read the file as it is
        findings = clean(content, findings, data.use, data.annotations, data.classes).left
    missing = check_presence(content, data.images) if data.images is not None else []
    findings += [each for each in missing if data.bad_data == 'refuse' or each.kind != 'image_missing']
    if errors_among(findings):
        raise UsageError(refusal(findings, data.annotations))
    if missing:
        what = 'others are taken' if data.splits == ['train'] else 'they are scored as black pictures'
        text = f'bad_data=skip: {len(missing)} of the {total} images of {data.annotations} are missing; {what}'
        warn(text)
    if data.bad_data == 'skip' and data.images is not None:
        _check_usable(data, content, data.images)


def _check_usable(data: CocoSet, content: Mapping[str, Any], folder: Path) -> None:
    """Open images until one can be used; refuse a data set of which none can."""
    sentence = ''
    for path in image_paths(content, folder).values():
        fault = inspect_image(Path(path), None, data.decode_settings).fault
        if fault is None:
            return
        sentence = sentence or f'the image {path} {fault}'
    raise UsageError(f'not one of the {len(content["images"])} images can be used, the first: {sentence}')


def first_images(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of an annotation file cut down to a few images that are there, with objects if any has."""
    entries = entries_by_place(content['annotations']).values()
    with_objects = {
        entry.get('image_id') for entry in entries if is_hashable(entry.get('image_id')) and not entry.get('iscrowd')
    }
    listed = [(content['images'][index], path) for index, path in image_paths(content, folder).items()]
    listed.sort(key=lambda each: not is_hashable(each[0].get('id')) or each[0]['id'] not in with_objects)
    images = list(itertools.islice((image for image, path in listed if Path(path).is_file()), NUM_FIRST))
    ids = [image.get('id') for image in images]
    objects = [entry for entry in entries if entry.get('image_id') in ids]
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
