"""Whole detectors as modules from tensors to tensors, which can be exported: images in, detections out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dense import Candidates, classified, large_enough, proposals
from .operators import suppress, suppress_flat
from .regions import classify, mask_probabilities, paste

INPUTS = ('images', 'original_size')
BOX_OUTPUTS = ('image_indices', 'boxes', 'labels', 'scores')
MASK_OUTPUTS = (*BOX_OUTPUTS, 'masks')


class Graph(nn.Module):
    """A detector from images to detections.

    The detections of all images stand in one row, by image and from the highest score. Boxes and masks are those of
    the images in their original size, before they were resized for the detector: what mmdet calls ``rescale=True``.

    Args:
        detector: mmdet's detector, trained or deployed, in eval mode.

    Shapes:
        images: (B, 3, H, W), uint8 or float from 0 to 255, in the order of channels that the config's images are read
            in, which is BGR; resized, not padded.
        original_size: (2,), height and width of all images of the batch before they were resized.
        Returns: ``image_indices`` (M,), which image each detection is of; ``boxes`` (M, 4), left, top, right, bottom;
            ``labels`` (M,); ``scores`` (M,); with a mask head ``masks`` (M, height, width), bool.
    """

    outputs: tuple[str, ...] = BOX_OUTPUTS

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, original_size: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[-2:]
        size = torch.stack((torch.as_tensor(width), torch.as_tensor(height))).to(torch.float32)
        scale = size / original_size.flip(0).to(torch.float32)
        return self.detect(self.features(images), size, scale.repeat(2), original_size)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps of images as they are read: with what mmdet's preprocessor does to them."""
        preprocessor = self.detector.data_preprocessor
        x = images.to(torch.float32)
        if preprocessor._channel_conversion:
            x = x[:, [2, 1, 0]]
        if preprocessor._enable_normalize:
            x = (x - preprocessor.mean) / preprocessor.std
        divisor = preprocessor.pad_size_divisor
        if divisor > 1:
            height, width = x.shape[-2:]
            missing = (-width % divisor, -height % divisor)
            x = functional.pad(x, (0, missing[0], 0, missing[1]), value=preprocessor.pad_value)
        features: tuple[Tensor, ...] = self.detector.extract_feat(x)
        return features

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the detections.

        Args:
            features: Feature maps, fine to coarse.
            size: (2,), width and height of the images without padding.
            scale: (4,), how much larger they are than the original ones, for boxes.
            original_size: (2,), height and width before they were resized.
        """
        raise NotImplementedError


class OneStage(Graph):
    """A detector with one dense head, as RetinaNet."""

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        head = self.detector.bbox_head
        config = head.test_cfg
        found = classified(head, features, config, size)
        boxes = found.boxes * (1 / scale)
        found = Candidates(boxes, found.scores, found.groups, found.valid & large_enough(boxes, config))
        labels = found.groups
        if config.nms.get('class_agnostic', False):
            found = found._replace(groups=torch.zeros_like(labels))
        images, places = suppress(*found, config.nms.iou_threshold, config.max_per_img)
        return images, boxes[images, places], labels[images, places], found.scores[images, places]


class TwoStage(Graph):
    """A detector with an RPN and a second stage for boxes, as Faster R-CNN."""

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        regions = self.regions(features, size)
        images, boxes, labels, scores = self.boxes(features, regions, size)
        return images, boxes / scale, labels, scores

    def regions(self, features: tuple[Tensor, ...], size: Tensor) -> Tensor:
        """Return the proposals of all images: image, left, top, right, bottom; (M, 5)."""
        head = self.detector.rpn_head
        config = head.test_cfg
        found = proposals(head, features, config, size)
        found = found._replace(valid=found.valid & large_enough(found.boxes, config))
        images, places = suppress(*found, config.nms.iou_threshold, config.max_per_img)
        return torch.cat((images.unsqueeze(1).to(found.boxes), found.boxes[images, places]), dim=1)

    def boxes(
        self, features: tuple[Tensor, ...], regions: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, box in the resized image, label and score of every detection."""
        head = self.detector.roi_head
        config = head.test_cfg
        boxes, scores = classify(head.bbox_head, head.bbox_roi_extractor, features, regions, size)
        region, labels = (scores > config.score_thr).nonzero().unbind(1)
        boxes, scores, owners = boxes[region, labels], scores[region, labels], regions[region, 0].to(torch.long)
        groups = torch.zeros_like(labels) if config.nms.get('class_agnostic', False) else labels
        batch = features[0].shape[0]
        images, places = suppress_flat(
            boxes, scores, groups, owners, batch, config.nms.iou_threshold, config.max_per_img
        )
        return images, boxes[places], labels[places], scores[places]


class TwoStageWithMasks(TwoStage):
    """A detector with an RPN and a second stage for boxes and masks, as Mask R-CNN."""

    outputs = MASK_OUTPUTS

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        head = self.detector.roi_head
        regions = self.regions(features, size)
        images, boxes, labels, scores = self.boxes(features, regions, size)
        regions = torch.cat((images.unsqueeze(1).to(boxes), boxes), dim=1)
        probabilities = mask_probabilities(head.mask_head, head.mask_roi_extractor, features, regions, labels)
        boxes = boxes / scale
        height, width = original_size.unbind(0)
        masks = paste(probabilities, boxes, height, width, head.test_cfg.mask_thr_binary)
        return images, boxes, labels, scores, masks
