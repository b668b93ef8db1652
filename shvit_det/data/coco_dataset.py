"""mmdet's ``CocoDataset``, losing nothing silently: bad data ends the run, or is passed over and reported."""

import logging
from collections import Counter
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

from ..common.errors import RunError, UsageError
from ..registry import DATASETS, register
from .checking.all_checks import check_content
from .checking.check_report import refusal, what_was_done
from .checking.cleaning import clean
from .checking.files import is_local
from .checking.findings import KINDS, counts_of, errors_among, in_words
from .checking.image import Loader, inspect_image, is_cut_off
from .checking.objects import Use
from .checking.reading import read_annotations
from .checking.trained_objects import passed_over

BadData = Literal['refuse', 'skip']
BAD_DATA: tuple[BadData, ...] = ('refuse', 'skip')
CHECK = 'shvit-det check-data CONFIG'


@register(DATASETS)
class CheckedCocoDataset(CocoDataset):
    """A ``CocoDataset`` that checks its annotations when it is built and its images when they are loaded.

    A log line says what is wrong without being an error, and what mmdet leaves out by its own rules: objects with
    boxes narrower than a pixel, images that ``filter_cfg`` excludes, and so on.

    Args:
        bad_data: ``'refuse'``: an annotation file with errors, or an image that is missing, broken, cut off or of
            another size than listed, ends the run with one sentence. ``'skip'``: errors are repaired in memory as
            ``shvit-det check-data --fix`` repairs them in a copy, and for a bad image another one is taken, both
            reported once. In a split that is evaluated no image can stand for another: there the bad one is scored as
            a black picture, in which the objects count as missed, and errors in the annotations end the run, because
            the evaluator reads the file itself.
        kwargs: As ``CocoDataset`` takes them.

    Raises:
        UsageError: When it is built, if its annotations are refused, nothing is left to train on, or ``bad_data`` is
            something else.
        RunError: When it is indexed, if an image is refused, or no image can be used.
    """

    def __init__(self, *args: Any, bad_data: BadData = 'refuse', **kwargs: Any) -> None:
        if bad_data not in BAD_DATA:
            raise UsageError(f'bad_data is {bad_data!r}: choose from {", ".join(BAD_DATA)}')
        self.bad_data = bad_data
        super().__init__(*args, **kwargs)

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        self.num_in_vain = 0
        # shared with the workers of a data loader: what one of them has reported the others need not
        self.reported = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def prepare_data(self, idx: int) -> Any:
        transforms = self.pipeline.transforms
        for place, transform in enumerate(transforms):  # here, because mmdet's hooks exchange pipelines midway
            if isinstance(transform, LoadImageFromFile):
                transforms[place] = CheckedLoading(transform, self.bad_data, self.test_mode, self.reported)
        data = super().prepare_data(idx)
        self.num_in_vain = 0 if data is not None else self.num_in_vain + 1
        if self.num_in_vain > self.max_refetch:  # where mmengine gives up with a traceback
            path = self.get_data_info(idx)['img_path']
            raise RunError(f'the pipeline made nothing of {self.num_in_vain} images in a row, the last is {path}')
        return data

    def load_data_list(self) -> list[dict]:
        use = use_of(self.pipeline.transforms, self.test_mode)
        path, classes = Path(self.ann_file), tuple(self.metainfo['classes'])
        with get_local_path(self.ann_file, backend_args=self.backend_args) as local_path:
            content = read_annotations(Path(local_path))
        findings = check_content(content, use, path, classes)
        if errors_among(findings):
            if self.bad_data == 'refuse' or self.test_mode:
                raise UsageError(refusal(findings, path, CHECK))
            cleaned = clean(content, findings, use, path, classes)
            if errors_among(cleaned.left):
                raise UsageError(refusal(cleaned.left, path, CHECK))
            content, findings = cleaned.content, cleaned.left
            print_log(f'{path}: bad_data=skip, {what_was_done(cleaned)}', 'current', logging.WARNING)
        self._log_losses(content, classes, in_words(counts_of(findings)))
        self.COCOAPI = lambda _: indexed(content)  # the file is not read twice
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def _log_losses(self, content: dict[str, Any], classes: tuple[str, ...], warnings: str) -> None:
        lost = passed_over(content, classes)
        total = len(content['annotations'])
        reasons = ', '.join(f'{count} {reason}' for reason, count in lost.items())
        parts = [f'{total - sum(lost.values())} of {total} objects are used' + (f' (not: {reasons})' if lost else '')]
        if warnings:
            parts.append(f'warnings: {warnings} ({CHECK} shows them)')
        print_log(f'{self.ann_file}: ' + '; '.join(parts), 'current')

    def filter_data(self) -> list[dict]:
        every = self.data_list
        kept = super().filter_data()
        if len(kept) < len(every):
            left = {info['img_id'] for info in kept}
            smallest = (self.filter_cfg or {}).get('min_size', 0)
            reasons: Counter[str] = Counter()
            for info in every:
                if info['img_id'] not in left:
                    small = min(info['width'], info['height']) < smallest
                    reasons[f'smaller than {smallest} pixels' if small else 'without objects of the classes'] += 1
            objects = sum(len(info['instances']) for info in every) - sum(len(info['instances']) for info in kept)
            words = ', '.join(f'{count} {reason}' for reason, count in reasons.items())
            print_log(
                f'{self.ann_file}: filter_cfg leaves out {len(every) - len(kept)} of {len(every)} images ({words}), '
                f'and {objects} objects with them',
                'current',
            )
        if not kept:
            raise UsageError(f'{self.ann_file} leaves no image to use: {CHECK} shows what is in it')
        return kept


def use_of(transforms: Any, evaluated: bool) -> Use:
    """Return what a pipeline does with an annotation file."""
    loading = [transform for transform in transforms if isinstance(transform, LoadAnnotations)]
    masks = any(transform.with_mask for transform in loading)
    polygons_only = any(transform.with_mask and not transform.poly2mask for transform in loading)
    return Use(masks, polygons_only, evaluated)


def indexed(content: dict[str, Any]) -> COCO:
    """Return mmdet's ``COCO`` of content that was read already."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


class CheckedLoading:
    """A ``LoadImageFromFile`` in a pipeline, with what mmdet does not ask: is it whole, is it the size that is listed.

    Args:
        load: The transform itself.
        bad_data: What becomes of a bad image.
        evaluated: It is tested on, so that no other may be taken.
        reported: One flag per image of the data set, in memory that processes share. Shapes: (N,)
    """

    def __init__(self, load: LoadImageFromFile, bad_data: BadData, evaluated: bool, reported: Tensor) -> None:
        self.load = load
        self.loader = Loader(load.color_type, load.imdecode_backend)
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
                return loaded, 'is cut off' if local and is_cut_off(Path(path)) else None
        except Exception as error:  # files, decoders and storage back ends raise what they like; refused or reported
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        found = inspect_image(Path(path), None, self.loader).found if local else ()
        fault = next((text for kind, text in found if KINDS[kind].severity == 'error'), None)
        return None, fault or f'cannot be loaded ({reason})'

    def _report(self, index: int, sentence: str) -> None:
        if not self.reported[index]:
            self.reported[index] = True
            what = 'it is scored as a black picture' if self.evaluated else 'another image is taken instead'
            # processes other than the first log errors only, and each has images of its own
            level = logging.WARNING if is_main_process() else logging.ERROR
            print_log(f'bad_data=skip: {sentence}; {what}', 'current', level)
        if not self.evaluated and bool(self.reported.all()):
            raise RunError(f'not one of the {len(self.reported)} images can be used, the last: {sentence}')

    def _black(self, results: dict[str, Any]) -> dict[str, Any]:
        shape = (int(results['height']), int(results['width']))
        channels = () if 'grayscale' in self.load.color_type else (3,)
        pixels = np.zeros(shape + channels, np.float32 if self.load.to_float32 else np.uint8)
        return {**results, 'img': pixels, 'img_shape': shape, 'ori_shape': shape}

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.load!r}, bad_data={self.bad_data!r})'
