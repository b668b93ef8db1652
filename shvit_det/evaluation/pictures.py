"""Pictures of a test: what the pipeline loaded, with the ground truth on the left and the predictions on the right."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray

from ..common.errors import RunError
from ..common.log import warn
from ..prediction.drawing import Color, Picture, class_colors, draw, draw_lines, shown_names
from ..prediction.image_reader import to_picture
from ..prediction.inputs import Input, output_name, unique_names
from ..prediction.overlap import Finishing
from ..prediction.run_over_inputs import encode


class PictureHook(Hook):
    """Draws every image of a test into a folder, under its name and within folders as those of the images.

    mmdet's hook opens each image by itself: it turns it as its EXIF says even where the pipeline does not, fails at one
    that the run has passed over, and gives images of one name in two folders the same file. Here the data set loads the
    image once more, as it did for the model.

    ``drawing`` draws and writes while the next images are predicted. After the test, its block has to end.
    """

    def __init__(self, folder: Path, score: float, drawing: Finishing) -> None:
        self.folder, self.score, self.drawing = folder, score, drawing

    def before_test(self, runner: Runner) -> None:
        places = list(places_in(runner.test_dataloader.dataset))
        infos = [dataset.get_data_info(index) for dataset, index in places]
        paths = [Path(info['img_path']).absolute() for info in infos]
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.parent.relative_to(common) / output_name(Input(str(path))) for path in paths]
        targets = [self.folder / name for name in unique_names(names)]
        if overwritten := {path.resolve() for path in paths} & {target.resolve() for target in targets}:
            raise RunError(f'{min(overwritten)} is an image of the test, and its picture would replace it')
        for classes in {names_and_colors(dataset)[0] for dataset, _ in places}:
            shown_names(classes)  # which may log, once, and not in several threads
        self.places = {key_of(info): each for info, each in zip(infos, zip(places, targets, strict=True), strict=True)}

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        for number, sample in enumerate(outputs or ()):
            (dataset, index), target = self.places[key_of(sample)]
            if 'pred_label' in sample:
                inputs, (names, _) = data_batch['inputs'][number].cpu(), names_and_colors(dataset)
                drawn, size = partial(draw_labels, inputs, sample.cpu(), names), inputs.nbytes
            elif 'pred_instances' not in sample:  # of panoptic segmentation, as mmdet draws it, in no other thread
                image = to_picture(load(dataset, index)['img'])[..., ::-1].copy()
                runner.visualizer.add_datasample(target.name, image, sample, out_file=str(target))
                continue
            else:
                found = sample.pred_instances
                found = found[found.scores >= self.score].cpu().numpy()
                drawn = partial(draw_detections, dataset, index, found)
                size = getattr(found.get('masks'), 'nbytes', 0)
            self.drawing.add(drawn, partial(write_picture, target), lambda _: None, size)


def write_picture(target: Path, draw: Callable[[], Picture]) -> None:
    """Write what ``draw`` returns into a file."""
    content = encode(draw(), target.suffix)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # under its name at once: two processes may both have the last image, and draw the same
        target.write_bytes(content)
    except OSError as error:
        raise RunError(f'cannot write {target}: {error.strerror}') from error


def places_in(dataset: Any) -> Iterator[tuple[Any, int]]:
    """Yield every item of a data set as the innermost data set, in wrappers of any kind, and the index in it."""
    inner = getattr(dataset, 'datasets', None) or [each for each in [getattr(dataset, 'dataset', None)] if each]
    for each in inner:
        yield from places_in(each)
    if not inner:
        yield from ((dataset, index) for index in range(len(dataset)))


def key_of(entry: Any) -> tuple[Any, Any]:
    """Return what an entry of a data set and the result for it have in common; a file may be listed under two ids."""
    return entry.get('img_path'), entry.get('img_id')


class Loading(Compose):
    """The steps of a pipeline that load an image and its annotations, without those that change them."""

    def __call__(self, data: dict) -> dict:
        for step in self.transforms:
            if 'img' not in data or isinstance(step, LoadAnnotations):
                data = step(data)
        return data


def load(dataset: Any, index: int) -> dict[str, Any]:
    """Return what a data set loads for one of its images, a black one where it passes over it."""
    loading = copy.copy(dataset)
    loading.pipeline = Loading(dataset.pipeline.transforms)
    loaded: dict[str, Any] = loading.prepare_data(index)
    return loaded


def names_and_colors(dataset: Any) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Return the names of the classes of a data set, and a colour for each."""
    names = tuple(dataset.metainfo.get('classes') or ())
    return names, class_colors(dataset.metainfo.get('palette'), len(names))


def arrays_of(boxes: Any, masks: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return boxes and masks, if there are any, in mmdet's classes as arrays."""
    array = np.asarray(getattr(boxes, 'tensor', boxes)).reshape(-1, 4)
    return array, None if masks is None else masks.to_ndarray().astype(bool)


def draw_detections(dataset: Any, index: int, found: Any) -> Picture:
    """Return an image of a data set with what was found in it, and with its annotations on the left if it has some."""
    loaded, classes = load(dataset, index), names_and_colors(dataset)
    picture = to_picture(loaded['img'])
    detections = draw(picture, found.bboxes, found.labels, found.scores, found.get('masks'), *classes)
    if 'gt_bboxes' not in loaded:
        return detections
    boxes, masks = arrays_of(loaded['gt_bboxes'], loaded.get('gt_masks'))
    if masks is not None and masks.shape[1:] != picture.shape[:2]:
        warn(f'{loaded["img_path"]} is not as large as listed, and its masks are not drawn')
        masks = None
    counted = ~np.asarray(loaded['gt_ignore_flags'], bool)
    labels, masks = loaded['gt_bboxes_labels'][counted], None if masks is None else masks[counted]
    return np.hstack([draw(picture, boxes[counted], labels, None, masks, *classes), detections])


def draw_labels(inputs: Any, sample: Any, names: Sequence[str]) -> Picture:
    """Return a classifier's input with the true and the predicted label and its score."""
    lines = []
    for what, labels in (('ground truth', sample.get('gt_label')), ('predicted', sample.pred_label)):
        for label in [] if labels is None else labels.flatten().tolist():
            name = names[label] if label < len(names) else f'class {label}'
            score = f' {sample.pred_score[label]:.2f}' if what == 'predicted' and 'pred_score' in sample else ''
            lines.append(f'{what}: {name}{score}')
    return draw_lines(to_picture(inputs.permute(1, 2, 0).cpu().numpy()), lines)
