"""mmdet's ``CocoDataset`` that loses no data silently: bad data ends the run, or is skipped and reported."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.transforms import LoadAnnotations
from mmengine.dist import is_main_process
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from torch import Tensor

from ..common.errors import RunError, UsageError, first_line
from ..common.image_files import is_truncated
from ..common.log import warn
from ..registry import DATASETS, register
from .checking.annotation_file import Use, read_annotations
from .checking.cleaning import clean
from .checking.content_checks import check_content
from .checking.findings import CHECK, as_phrase, errors_among, refusal, short
from .checking.image_checks import DecodeSettings, inspect_image
from .checking.image_presence import is_local
from .checking.object_counts import count_objects

BadData = Literal['refuse', 'skip']
BAD_DATA: tuple[BadData, ...] = ('refuse', 'skip')


def check_bad_data(value: Any) -> None:
    if value not in BAD_DATA:
        raise UsageError(f'bad_data is {value!r}: choose from {", ".join(BAD_DATA)}')


@register(DATASETS)
class CheckedCocoDataset(CocoDataset):
    """A ``CocoDataset`` that checks its annotations when it is built and its images when they are loaded.

    A log line counts warnings, and what mmdet leaves out by its own rules: objects with boxes narrower than a pixel,
    images that ``filter_cfg`` excludes, and so on.

    Args:
        bad_data: ``'refuse'``: an annotation file with errors, or an image that is missing, broken, truncated or of
            another size than listed, ends the run with one sentence. ``'skip'``: errors are repaired in memory as
            ``shvit-det check-data --fix`` repairs them in a copy, and another image is taken for a bad one; both are
            reported once. In a split that is evaluated no image can replace another: there a bad one is scored as a
            black picture, in which the objects count as missed, and errors in the annotations end the run, because
            the evaluator reads the file itself.
        kwargs: As ``CocoDataset`` takes them.

    Raises:
        UsageError: When it is built, if its annotations are refused, nothing is left to train on, or ``bad_data`` is
            something else.
        RunError: When it is indexed, if an image is refused, or no image can be used.
    """

    def __init__(self, *args: Any, bad_data: BadData = 'refuse', **kwargs: Any) -> None:
        check_bad_data(bad_data)
        self.bad_data = bad_data
        super().__init__(*args, **kwargs)

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        try:
            super().full_init()
        except IndexError as error:
            if not isinstance(self._indices, Sequence):
                raise
            fault = f'indices of the data set are {short(self._indices)}, and it has {len(self.data_list)} images'
            raise UsageError(fault) from error
        self.num_unusable_in_a_row = 0
        # shared with the workers of a data loader, so that each image is reported once
        self.reported = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def prepare_data(self, idx: int) -> Any:
        transforms = self.pipeline.transforms
        for place, transform in enumerate(transforms):  # at each call: hooks of mmdet replace pipelines in training
            if isinstance(transform, LoadImageFromFile):
                transforms[place] = CheckedLoading(transform, self.bad_data, self.test_mode, self.reported)
        try:
            data = super().prepare_data(idx)
        except (UsageError, RunError):
            raise
        except Exception as error:  # transforms raise what they like, and none names the image
            path, reason = self.get_data_info(idx)['img_path'], ' '.join(str(error).split())
            raise RunError(f'the pipeline fails on the image {path} ({type(error).__name__}: {reason})') from error
        self.num_unusable_in_a_row = 0 if data is not None else self.num_unusable_in_a_row + 1
        if self.num_unusable_in_a_row > self.max_refetch:  # where mmengine gives up with a traceback
            path = self.get_data_info(idx)['img_path']
            raise RunError(
                f'the pipeline returned nothing for {self.num_unusable_in_a_row} images in a row, the last is {path}'
            )
        return data

    def load_data_list(self) -> list[dict]:
        filter_cfg = {} if self.test_mode else self.filter_cfg or {}
        use = use_of(self.pipeline.transforms, self.test_mode, filter_cfg)
        path, classes = Path(self.ann_file), tuple(self.metainfo['classes'])
        with get_local_path(self.ann_file, backend_args=self.backend_args) as local_path:
            content = read_annotations(Path(local_path), images_only=self.test_mode)
        findings = check_content(content, use, path, classes)
        if errors_among(findings):
            if self.bad_data == 'refuse' or self.test_mode:
                raise UsageError(refusal(findings, path))
            cleaned = clean(content, findings, use, path, classes)
            if errors_among(cleaned.left):
                raise UsageError(refusal(cleaned.left, path))
            content, findings = cleaned.content, cleaned.left
            warn(f'{path}: bad_data=skip, {cleaned.summary()}')
        message = count_objects(content, classes, use.min_size).as_phrase('scored' if self.test_mode else 'trained on')
        message = '; '.join([message, *(each.message for each in findings if each.kind == 'category_unused')][:4])
        if warnings := as_phrase(each.kind for each in findings):
            message += f'; warnings: {warnings} ({CHECK} shows them)'
        print_log(f'{self.ann_file}: {message}', 'current')
        # mmdet's load_data_list calls COCOAPI with the path of the annotation file. It gets the content that was read
        # and checked above, so that the file is not read twice.
        self.COCOAPI = lambda path: indexed(content)
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def filter_data(self) -> list[dict]:
        every = self.data_list
        kept = super().filter_data()
        if len(kept) < len(every):
            kept_ids = {info['img_id'] for info in kept}
            excluded = [info for info in every if info['img_id'] not in kept_ids]
            smallest = (self.filter_cfg or {}).get('min_size', 0)
            small = sum(min(info['width'], info['height']) < smallest for info in excluded)
            reasons = {
                f'smaller than {smallest} pixels': small,
                'without objects of the classes': len(excluded) - small,
            }
            counts = ', '.join(f'{count} {reason}' for reason, count in reasons.items() if count)
            print_log(
                f'{self.ann_file}: filter_cfg leaves out {len(excluded)} of {len(every)} images ({counts}), '
                f'and {sum(len(info["instances"]) for info in excluded)} objects with them',
                'current',
            )
        if not kept:
            raise UsageError(f'{self.ann_file} leaves no image to use: {CHECK} shows what is in it')
        return kept


def use_of(transforms: Sequence[Any], evaluated: bool, filter_cfg: Mapping[str, Any]) -> Use:
    """Return what a data set does with an annotation file."""
    with_mask = [each for each in transforms if isinstance(each, LoadAnnotations) and each.with_mask]
    return Use(
        masks=bool(with_mask),
        polygons_only=any(not each.poly2mask for each in with_mask),
        evaluated=evaluated,
        needs_objects=bool(filter_cfg.get('filter_empty_gt', False)),
        min_size=filter_cfg.get('min_size', 0),
    )


def indexed(content: dict[str, Any]) -> COCO:
    """Return mmdet's ``COCO`` of content that was read already."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


class CheckedLoading:
    """A ``LoadImageFromFile`` in a pipeline that also checks that the image is complete and as large as listed.

    Args:
        evaluated: The split is evaluated, so that no other image may be taken.
        reported: One flag per image of the data set, in memory that processes share. Shapes: (N,)
    """

    def __init__(self, load: LoadImageFromFile, bad_data: BadData, evaluated: bool, reported: Tensor) -> None:
        self.load = load
        self.decode_settings = DecodeSettings(load.color_type, load.imdecode_backend)
        self.bad_data = bad_data
        self.evaluated = evaluated
        self.reported = reported

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        height, width, path = int(results['height']), int(results['width']), results['img_path']
        loaded, fault = self._loaded(dict(results), path)
        if loaded is not None and fault is None and tuple(loaded['ori_shape']) != (height, width):
            actual_height, actual_width = loaded['ori_shape']
            fault = f'is {actual_width} x {actual_height} when loaded, but listed as {width} x {height}'
        if fault is None:
            return loaded
        sentence = f'the image {path} {fault}'
        if self.bad_data == 'refuse':
            raise RunError(
                f'{sentence}: {CHECK} finds all such images and --fix DIR writes annotations without them, or pass '
                f'over them with --cfg-options bad_data=skip'
            )
        self._report(results['sample_idx'], sentence)
        return self._black(results) if self.evaluated else None

    def _loaded(self, results: dict[str, Any], path: str) -> tuple[dict[str, Any] | None, str | None]:
        """Load an image; return the results, and what is wrong with the file or None."""
        client = self.load.file_client_args or {}  # mmcv's earlier name of backend_args
        local = client.get('backend', 'disk') == 'disk' and is_local(path, self.load.backend_args)
        reason = 'ignore_empty=True passes over it'
        try:
            loaded = self.load(results)
            if loaded is not None:
                return loaded, 'is cut off' if local and is_truncated(Path(path)) else None
        except Exception as error:  # files, decoders and storage raise what they like; it is refused or reported
            reason = first_line(error)
        fault = inspect_image(Path(path), None, self.decode_settings).fault if local else None
        return None, fault or f'cannot be loaded ({reason})'

    def _report(self, index: int, sentence: str) -> None:
        if not self.reported[index]:
            self.reported[index] = True
            what = 'it is scored as a black picture' if self.evaluated else 'another image is taken instead'
            # processes other than the first log errors only, and each has images of its own
            level = logging.WARNING if is_main_process() else logging.ERROR
            print_log(f'bad_data=skip: {sentence}; {what}', 'current', level)
        if bool(self.reported.all()):
            raise RunError(f'not one of the {len(self.reported)} images can be used, the last: {sentence}')

    def _black(self, results: dict[str, Any]) -> dict[str, Any]:
        shape = (int(results['height']), int(results['width']))
        channels = () if 'grayscale' in self.load.color_type else (3,)
        pixels = np.zeros(shape + channels, np.float32 if self.load.to_float32 else np.uint8)
        return {**results, 'img': pixels, 'img_shape': shape, 'ori_shape': shape}

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.load!r}, bad_data={self.bad_data!r})'
