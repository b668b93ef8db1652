"""What a detector is timed on: synthetic images of a given size, or photographs through the config's own pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData

from ..common.errors import UsageError
from ..models.pyramid import FeaturePyramid

DEFAULT_SHAPE = (800, 1333)
PHOTOGRAPHS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')

ORIGINAL_LONG_SIDE = 640
"""Masks are pasted into the image as it was before it was resized; COCO's long side has this many pixels."""

OBJECTS_PER_IMAGE = 7
"""Ground truth in training; COCO has 7.3 objects per image."""

Batch = dict[str, list[Any]]


def config_shape(config: Config) -> tuple[int, int]:
    """Return the height and width, lying, to which a config's test pipeline resizes; 800x1333 where it does not."""
    for step in config.get('test_pipeline') or ():
        scale = step.get('scale')
        if isinstance(scale, tuple | list) and len(scale) == 2:
            return min(scale), max(scale)
    return DEFAULT_SHAPE


def synthetic_batch(shape: tuple[int, int], size: int, training: bool = False, num_classes: int = 80) -> Batch:
    """Return ``size`` images of noise as a loader would collate them, the same ones on every call.

    Args:
        shape: Height and width that the data preprocessor gets.
        size: Images in the batch.
        training: Whether to add ground truth: boxes, labels and bitmap masks.
        num_classes: Labels are below this number.
    """
    random = np.random.default_rng(0)
    height, width = shape
    scale = min(1.0, ORIGINAL_LONG_SIDE / max(shape))
    original = (round(height * scale), round(width * scale))
    batch: Batch = dict(inputs=[], data_samples=[])
    for number in range(size):
        image = random.integers(0, 256, size=(3, height, width), dtype=np.uint8)
        sample = DetDataSample(
            metainfo=dict(
                img_id=number,
                img_path='synthetic',
                img_shape=shape,
                ori_shape=original,
                scale_factor=(width / original[1], height / original[0]),
                flip=False,
                flip_direction=None,
            )
        )
        if training:
            sample.gt_instances = _objects(random, shape, num_classes)
            sample.ignored_instances = InstanceData(
                bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
            )
        batch['inputs'].append(torch.from_numpy(image))
        batch['data_samples'].append(sample)
    return batch


def _objects(random: np.random.Generator, shape: tuple[int, int], num_classes: int) -> InstanceData:
    """Objects of log-uniform size, 5 to 80 percent of the image's sides, that fill their boxes as ellipses."""
    height, width = shape
    sides = np.exp(random.uniform(np.log(0.05), np.log(0.8), size=(OBJECTS_PER_IMAGE, 2))) * (width, height)
    corners = random.uniform(0, 1, size=(OBJECTS_PER_IMAGE, 2)) * ((width, height) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    rows, columns = np.mgrid[:height, :width]
    masks = [
        ((columns - x1) / (x2 - x1) - 0.5) ** 2 + ((rows - y1) / (y2 - y1) - 0.5) ** 2 <= 0.25
        for x1, y1, x2, y2 in boxes
    ]
    return InstanceData(
        bboxes=HorizontalBoxes(torch.from_numpy(boxes).float()),
        labels=torch.from_numpy(random.integers(0, num_classes, size=OBJECTS_PER_IMAGE)),
        masks=BitmapMasks(np.array(masks, dtype=np.uint8), height, width),
    )


def photograph_batches(config: Config, folder: str, size: int, limit: int) -> list[Batch]:
    """Return batches of the photographs of a folder, through the config's test pipeline, at most ``limit`` of them.

    Raises:
        UsageError: If the folder has not enough images for one batch, or the pipeline cannot read one.
    """
    if not Path(folder).is_dir():
        raise UsageError(f'no such folder of photographs: {folder}')
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PHOTOGRAPHS)
    if len(paths) < size:
        raise UsageError(f'{folder} has {len(paths)} images ({", ".join(PHOTOGRAPHS)}), but --batch is {size}')
    steps = [step for step in get_test_pipeline_cfg(config) if 'Annotations' not in step['type']]
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(steps)
    batches = []
    for start in range(0, len(paths) - size + 1, size)[:limit]:
        items = []
        for number, path in enumerate(paths[start : start + size], start):
            try:
                items.append(pipeline(dict(img_path=str(path), img_id=number)))
            except (OSError, ValueError, TypeError, KeyError, AssertionError, cv2.error) as error:
                raise UsageError(f"the config's test pipeline fails on {path}: {error}") from error
        batches.append({key: [item[key] for item in items] for key in items[0]})
    return batches


def fresh(value: Any) -> Any:
    """Return a copy of the containers in ``value``: what a run adds to them or takes out does not reach the next run.

    Tensors are shared; nothing in mmdet's prediction writes into those it is given, which the tests check.
    """
    if isinstance(value, FeaturePyramid):
        return FeaturePyramid(value.peek(), value.origin)
    if type(value) in (list, tuple):
        return type(value)(fresh(item) for item in value)
    if type(value) is dict:
        return {key: fresh(item) for key, item in value.items()}
    if isinstance(value, BaseDataElement):
        copied = value.new()
        for key, item in value.items():
            if isinstance(item, BaseDataElement):
                setattr(copied, key, fresh(item))
        return copied
    return value


def num_classes_of(model: torch.nn.Module) -> int:
    """Return the smallest number of classes that a head of the model has; 1 where no head tells."""
    found: Sequence[int] = [
        module.num_classes
        for name, module in model.named_modules()
        if name.endswith('head') and 'rpn' not in name and isinstance(getattr(module, 'num_classes', None), int)
    ]
    return min(found, default=1)
