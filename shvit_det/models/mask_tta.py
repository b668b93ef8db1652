"""Test-time augmentation of detectors with masks, which mmdet's model for it refuses."""

from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData

FLIPPED_SIDES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


class MaskTTAModel(DetTTAModel):
    """mmdet's ``DetTTAModel`` with masks: each box that its suppression keeps has the mask that was predicted with it.

    The boxes of all views are suppressed together, and the results of detectors without masks are mmdet's.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        views = InstanceData.cat([turned_back(sample) for sample in data_samples])
        kept = views
        if len(views):
            boxes, indices = batched_nms(views.bboxes, views.scores, views.labels, self.tta_cfg['nms'])
            kept = views[indices]
            kept.scores = boxes[:, -1]  # which a soft suppression lowers
        merged = data_samples[0]
        merged.pred_instances = kept[: self.tta_cfg['max_per_img']]
        return merged


def turned_back(sample: DetDataSample) -> InstanceData:
    """Return what was found in a view, with the coordinates of the image that was flipped for it."""
    found, direction = sample.pred_instances, sample.get('flip') and sample.flip_direction
    views = InstanceData(bboxes=found.bboxes, scores=found.scores, labels=found.labels)
    if direction:
        views.bboxes = bbox_flip(found.bboxes, sample.ori_shape, direction)
    if 'masks' in found:
        views.masks = torch.flip(found.masks, FLIPPED_SIDES[direction]) if direction else found.masks
    return views
