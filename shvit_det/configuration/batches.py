"""Batches as a detector's data loader collates them: images of noise, and copies for a second run."""

from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import BaseDataElement, InstanceData

from ..models.pyramid import FeaturePyramid

ORIGINAL_LONG_SIDE = 640  # of COCO's images; masks are pasted into the image as it was before resizing
OBJECTS_PER_IMAGE = 7  # ground truth in training; COCO has 7.3 objects per image
Batch = dict[str, list[Any]]


def synthetic_batch(shape: tuple[int, int], size: int, training: bool = False, num_classes: int = 80) -> Batch:
    """Return a batch of ``size`` images of noise, the same one on every call.

    With ``training`` it has ground truth: boxes, labels below ``num_classes``, and bitmap masks.
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
    """Return ellipses of log-uniform size, 5 to 80 percent of the image's sides, with their boxes."""
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


def copy_containers(value: Any) -> Any:
    """Return a copy of lists, tuples, dicts and mmengine's data elements; tensors are shared.

    Whatever a run adds to its arguments or takes out of them does not reach the next run. Nothing in mmdet's prediction
    writes into the tensors that it is given; tests check this.
    """
    if isinstance(value, FeaturePyramid):
        return FeaturePyramid(value.peek(), value.origin)
    if type(value) in (list, tuple):
        return type(value)(copy_containers(item) for item in value)
    if type(value) is dict:
        return {key: copy_containers(item) for key, item in value.items()}
    if isinstance(value, BaseDataElement):
        copied = value.new()
        for key, item in value.items():
            if isinstance(item, BaseDataElement):
                setattr(copied, key, copy_containers(item))
        return copied
    return value
