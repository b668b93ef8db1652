"""The class that users import: a checkpoint as a function from images to detections."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from ..common.devices import find_device
from ..common.errors import UsageError
from ..common.log import warn
from .detector_loading import load_detector
from .drawing import Picture, draw
from .image_reader import ImageReader, Source, is_out_of_memory, reason_of, to_picture
from .overlap import read_ahead, spare_threads
from .tiling import SMALLEST, FoundInTiles, tiles_of

MAX_WAITING = 4  # batches of pictures that may wait for others of their size


@dataclass(frozen=True)
class Prediction:
    """The result of one picture, or the reason why there is none.

    Args:
        key: The caller's key of the picture.
        picture: Its pixels, (H, W, 3), blue, green, red; None if it could not be read.
        result: An mmdet ``DetDataSample`` on the CPU; None if there is an error.
        error: Why there is no result, in one sentence.
    """

    key: Any
    picture: Picture | None
    result: Any
    error: str | None = None


class Predictor:
    """Predicts pictures with a detector, exactly as ``tools/test.py`` does; three lines are enough::

        from shvit_det import Predictor
        predictor = Predictor('checkpoint.pth')
        result = predictor('image.jpg')

    The result is mmdet's ``DetDataSample``, its tensors on the CPU. ``result.pred_instances`` has ``bboxes`` (N, 4),
    left, top, right and bottom in pixels of the picture, ``scores`` (N,), highest first, ``labels`` (N,), indices into
    ``predictor.classes``, and ``masks`` (N, H, W) of bool where the detector predicts masks;
    ``result.pred_instances.numpy()`` has the same as arrays, and ``result.pred_instances[result.pred_instances.scores >
    0.5]`` the certain ones. Files are turned upright by their EXIF orientation as in training, and all coordinates are
    those of the upright picture.

    Args:
        weights: A checkpoint, a file or a URL.
        config: The config, a file or ``mmdet::...``; None takes the one in the checkpoint, which is read as data:
            nothing in it is run.
        device: ``'cpu'``, ``'cuda'`` or ``'cuda:N'``; None takes a GPU if there is one.
        deploy: Whether to predict with the deployed form: the same results, faster.
        batch: How many pictures are predicted at once. Only those that the test pipeline makes equally large share a
            batch: padding would change their results. A batch that fails is tried again one picture at a time; if it
            failed for lack of memory, the next ones are half as large.
        cfg_options: Changes of single values of the config, dotted names.
        tile: The side in pixels of the overlapping tiles in which pictures are predicted, so that small objects in
            large pictures are seen in full size; None predicts pictures as they are. The masks of a result are then
            :class:`.CroppedMasks`.
        tta: Test-time augmentation: whether to predict several views of each picture and merge the results, as
            ``tta_pipeline`` and ``tta_model`` of the config say; without these, the picture and the same flipped.

    Raises:
        UsageError: If the checkpoint cannot be found or read, has no config, or does not fit it.
    """

    def __init__(
        self,
        weights: str | Path,
        config: str | None = None,
        device: str | None = None,
        deploy: bool = True,
        batch: int = 1,
        cfg_options: Mapping[str, Any] | None = None,
        tile: int | None = None,
        tta: bool = False,
    ) -> None:
        if batch < 1:
            raise UsageError(f'batch has to be at least 1, but got {batch}')
        if tile is not None and tile < SMALLEST:
            raise UsageError(f'tile has to be at least {SMALLEST} pixels, but got {tile}')
        self.batch, self.tile = batch, tile
        self.device = find_device(device)
        loaded = load_detector(weights, config, cfg_options, self.device, deploy, tta)
        self.model, self.config, self.classes, self.colors = loaded
        self.reader = ImageReader(self.config, tta)

    def __call__(self, images: Source | Sequence[Source], rgb: bool = False) -> Any:
        """Predict one picture, or a list of them.

        Args:
            images: A file; an array of uint8, (H, W, 3) with blue, green, red as ``cv2.imread`` gives it, or (H, W) in
                grey; or an image of Pillow's; or a list or tuple of those.
            rgb: Whether arrays have red first, as those of Pillow, imageio and torchvision have.

        Returns:
            A ``DetDataSample``, or a list of them.

        Raises:
            UsageError: If one cannot be read or predicted; it names the first such.
        """
        sources: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
        if rgb:
            sources = [blue_first(source) for source in sources]
        results: list[Any] = [None] * len(sources)
        for done in self.stream(enumerate(sources), files_stay=len(sources) > 1):
            if done.error is not None:
                source = sources[done.key]
                kind = 'array' if isinstance(source, np.ndarray) else 'image'
                name = source if isinstance(source, str | Path) else f'{kind} {done.key}'
                raise UsageError(f'{name}: {done.error}')
            results[done.key] = done.result
        return results if isinstance(images, list | tuple) else results[0]

    def stream(self, items: Iterable[tuple[Any, Source]], files_stay: bool = False) -> Iterator[Prediction]:
        """Predict pictures as they come, in batches, and hold no more than a few of them.

        Args:
            items: Pairs of a key of the caller's and the picture.
            files_stay: Whether each file stays as it is until its prediction is there. The next ones are then read
                while a batch is predicted, except with tiles; otherwise each is read before the next one is asked for.

        Yields:
            A :class:`.Prediction` for each picture, also for one that cannot be read; in the order of the pictures if
            all have one size, or with tiles.
        """
        if self.tile is None:
            threads = spare_threads() if files_stay else 0
            yield from self._stream(items, threads if self.reader.is_thread_safe else min(1, threads))
        else:
            for number, (key, image) in enumerate(items):
                yield self._in_tiles(key, image, number, self.tile)

    def _in_tiles(self, key: Any, image: Source, number: int, side: int) -> Prediction:
        """Predict a picture tile by tile."""
        from mmdet.structures import DetDataSample

        try:
            picture = self.reader.load(image)
        except UsageError as error:
            return Prediction(key, None, None, str(error))
        size = (picture.shape[0], picture.shape[1])
        found = FoundInTiles(size)
        tiles = ((tile, picture[tile.top : tile.bottom, tile.left : tile.right]) for tile in tiles_of(*size, side))
        for done in self._stream(tiles):
            if done.error is not None:
                return Prediction(key, picture, None, f'{done.error}, in the tile at {done.key.left}, {done.key.top}')
            found.add(done.key, done.result.pred_instances)
        path = str(image) if isinstance(image, str | Path) else None
        meta = dict(img_id=number, img_path=path, ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0))
        return Prediction(key, picture, DetDataSample(metainfo=meta, pred_instances=found.merged()))

    def _stream(self, items: Iterable[tuple[Any, Source]], threads: int = 0) -> Iterator[Prediction]:
        """Predict pictures as they are; see :meth:`stream`."""
        waiting: dict[tuple[int, ...], list[tuple[Any, Picture, dict]]] = {}
        for key, read in read_ahead(items, self.reader, threads):
            try:
                picture, item = read()
            except UsageError as error:
                yield Prediction(key, None, None, str(error))
                continue
            alike = waiting.setdefault(shapes_of(item), [])
            alike.append((key, picture, item))
            if len(alike) >= self.batch or sum(map(len, waiting.values())) > MAX_WAITING * self.batch:
                largest = max(waiting, key=lambda shape: len(waiting[shape]))
                yield from self._predict(waiting.pop(largest))
        for alike in waiting.values():
            yield from self._predict(alike)

    def _predict(self, pending: list[tuple[Any, Picture, dict]]) -> Iterator[Prediction]:
        """Predict a batch: the key, the picture and the pipeline's item of each; after an error, one by one."""
        items = [item for _, _, item in pending]
        done: list[Prediction] = []
        try:
            with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
                results = self.model.test_step(pseudo_collate(items))
            done = [
                Prediction(key, picture, result.cpu())
                for (key, picture, _), result in zip(pending, results, strict=True)
            ]
        except Exception as error:  # a user's own model may raise anything, and the other pictures go on
            reason, lacks_memory = reason_of(error), is_out_of_memory(error)
        if done:
            yield from done
            return
        # here the traceback is gone, and with it the memory that its frames held
        if lacks_memory and self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(pending) == 1:
            if lacks_memory:
                _, height, width = shapes_of(items[0])[:3]
                reason = f'{width} x {height} pixels need more memory than {self.device} has'
            key, picture, _ = pending[0]
            yield Prediction(key, picture, None, f'the model fails on it ({reason})')
            return
        if lacks_memory:
            self.batch = max(1, len(pending) // 2)
            warn(f'{len(pending)} pictures at once need more memory than {self.device} has: going on with {self.batch}')
        for one in pending:
            yield from self._predict([one])

    def draw(self, image: Source, result: Any, score: float = 0.3, rgb: bool = False) -> Picture:
        """Return a picture with the masks, boxes, names and scores of its detections.

        Args:
            image: The picture.
            result: What the predictor returned for it.
            score: Detections with a lower score are left out.
            rgb: Whether ``image``, if it is an array, and what is returned have red first.

        Shapes:
            (H, W, 3), blue first as ``cv2.imwrite`` wants it unless ``rgb`` is set; a picture with less than 400
            pixels on its longer side is enlarged by a whole factor, so that names can be read.
        """
        image = blue_first(image) if rgb else image
        picture = to_picture(image) if isinstance(image, np.ndarray) else self.reader.load(image)
        found = result.pred_instances
        found = found[found.scores >= score].numpy()
        masks = found.get('masks')
        drawn = draw(picture, found.bboxes, found.labels, found.scores, masks, self.classes, self.colors)
        return blue_first(drawn) if rgb else drawn  # which swaps the two

    def to_supervision(self, result: Any) -> Any:
        """Return a result as ``supervision.Detections``, with the names of the classes in ``data['class_name']``.

        Args:
            result: What the predictor returned for a picture.

        Raises:
            UsageError: If supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UsageError('to_supervision needs supervision: pip install supervision') from error
        found = result.pred_instances.numpy()
        names = [self.classes[label] if label < len(self.classes) else f'class {label}' for label in found.labels]
        return supervision.Detections(
            xyxy=found.bboxes,
            mask=np.asarray(found.masks, np.bool_) if 'masks' in found else None,
            confidence=found.scores,
            class_id=found.labels,
            data=dict(class_name=np.array(names, np.str_)),
        )


def shapes_of(item: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the input that a pipeline made, or those of all views one after another."""
    views = item['inputs'] if isinstance(item['inputs'], list) else [item['inputs']]
    return tuple(side for view in views for side in view.shape)


def blue_first(image: Any) -> Any:
    """Return an array of three or four channels with its colours in the opposite order, and anything else unchanged."""
    has_colors = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4)
    return np.ascontiguousarray(image[..., 2::-1]) if has_colors else image
