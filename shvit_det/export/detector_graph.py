"""mmdet's detectors as modules from tensors to tensors, images in and detections out, which can be traced.

Networks are called as they are. What mmdet does between them is written again here, in :mod:`.nms` and in
:mod:`.mask_pasting`, by operations with a standard ONNX operator and for images of any number and size.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from .mask_pasting import paste_masks
from .nms import grouped_nms, grouped_nms_flat

INPUTS = ('images', 'original_size')
BOX_OUTPUTS = ('image_indices', 'boxes', 'labels', 'scores')
MASK_OUTPUTS = (*BOX_OUTPUTS, 'masks')
SPARE_REGION = 8.0  # pixels


class Candidates(NamedTuple):
    """The best boxes of a head with anchors, before the suppression."""

    boxes: Tensor  # (B, N, 4)
    scores: Tensor  # (B, N)
    groups: Tensor  # (B, N), a box's class or level; boxes of one group suppress each other
    valid: Tensor  # (B, N), which boxes take part


def smaller_of(limit: int, size: Any) -> Any:
    """Return the smaller of a constant and a size that is known only when the graph runs."""
    return torch.minimum(torch.as_tensor(limit), torch.as_tensor(size))


def take_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Return ``values[b, indices[b]]`` for every image ``b``, (B, N, D) and (B, K) -> (B, K, D)."""
    batch, number, width = values.shape
    first = torch.arange(batch, device=values.device).unsqueeze(1) * number
    return values.reshape(batch * number, width)[(indices + first).flatten()].reshape(batch, -1, width)


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid, written out: ONNX Runtime's own gives 0 below about -18, and an RPN ranks by such scores."""
    return 1 / (1 + torch.exp(-x))


def decode(coder: Any, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Return the boxes that a head predicts, within the image where its coder clips them.

    Shapes:
        Anchors or proposals (N, 4), the head's output (N, 4), and width and height of the image without padding (2,)
        -> (N, 4).
    """
    boxes = delta2bbox(
        priors,
        deltas,
        coder.means,
        coder.stds,
        clip_border=False,
        add_ctr_clamp=coder.add_ctr_clamp,
        ctr_clamp=coder.ctr_clamp,
    )
    return torch.minimum(boxes.clamp(min=0), size.repeat(2)) if coder.clip_border else boxes


def candidates(head: Any, features: tuple[Tensor, ...], size: Tensor, by_class: bool) -> Candidates:
    """Return the candidates of a head, those above its threshold valid; their groups are the classes or the levels."""
    limit, found = head.test_cfg.nms_pre, []
    for level, (logits, deltas, priors) in enumerate(_levels(head, features)):
        if by_class:
            places = best_places(logits, limit)
            pair_scores = sigmoid(take_rows(logits, places)).flatten(1)
            scores, pairs = pair_scores.topk(smaller_of(limit, pair_scores.shape[1]))
            groups = pairs % head.cls_out_channels
            places = places.gather(1, torch.div(pairs, head.cls_out_channels, rounding_mode='floor'))
        else:
            scores, places = sigmoid(logits).squeeze(2).topk(smaller_of(limit, logits.shape[1]))
            groups = torch.full_like(places, level)
        found.append((scores, groups, take_rows(deltas, places), priors[places]))
    scores, groups, deltas, priors = (torch.cat(levels, 1) for levels in zip(*found, strict=True))
    boxes = decode(head.bbox_coder, priors.flatten(0, 1), deltas.flatten(0, 1), size).reshape(*priors.shape)
    threshold = head.test_cfg.get('score_thr', 0.0) if by_class else -1.0
    return Candidates(boxes, scores, groups, scores > threshold)


def best_places(logits: Tensor, limit: int) -> Tensor:
    """Return the places that hold the best ``limit`` pairs of place and class, in order.

    These are the places whose best class is best: they are as many as pairs at most, and found much faster.

    Shapes:
        (B, N, classes) -> (B, up to limit).
    """
    best = logits.amax(2)
    return best.topk(smaller_of(limit, best.shape[1]))[1].sort(dim=1)[0]


def _levels(head: Any, features: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (B, N, classes), deltas (B, N, 4) and anchors (N, 4) of every level."""
    all_logits, all_deltas = head(features)
    sizes = [logits.shape[-2:] for logits in all_logits]
    anchors = head.prior_generator.grid_priors(sizes, all_logits[0].dtype, all_logits[0].device)
    for logits, deltas, priors in zip(all_logits, all_deltas, anchors, strict=True):
        batch = logits.shape[0]
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1, head.cls_out_channels)
        yield logits, deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4), priors


def large_enough(boxes: Tensor, config: Any) -> Tensor:
    """Tell which boxes are larger than the config's ``min_bbox_size``, (..., 4) -> (...)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides > config.get('min_bbox_size', -1)).all(-1)


def pool_regions(extractor: Any, features: Sequence[Tensor], regions: Tensor) -> Tensor:
    """Return the features of regions, each from the level for its size, as mmdet's ``SingleRoIExtractor`` does.

    The extractor's RoIAlign layers are read, not called.

    Shapes:
        Image, left, top, right, bottom in pixels of the input (M, 5) -> (M, C, *output_size).
    """
    sides = regions[:, 3:] - regions[:, 1:3]
    ratio = (sides[:, 0] * sides[:, 1]).sqrt() / extractor.finest_scale + 1e-6
    levels = torch.zeros_like(ratio, dtype=torch.long)
    for power in range(1, extractor.num_inputs):
        levels = levels + (ratio >= 2**power).long()  # the integer part of the logarithm
    of_level = [(levels == level).nonzero().flatten() for level in range(extractor.num_inputs)]
    pooled = [
        roi_align(
            feature, regions[own], layer.output_size, layer.spatial_scale, layer.sampling_ratio, bool(layer.aligned)
        )
        for feature, own, layer in zip(features, of_level, extractor.roi_layers, strict=False)
    ]
    order = torch.cat(of_level)
    numbers = torch.arange(order.shape[0], device=order.device)
    return torch.cat(pooled)[torch.zeros_like(order).scatter(0, order, numbers)]


def with_spare_region(regions: Tensor) -> Tensor:
    """Return regions and a small one, (M, 5) -> (M + 1, 5): not every layer of every runtime takes an empty batch."""
    return torch.cat((regions, regions.new_tensor([[0.0, 0.0, 0.0, SPARE_REGION, SPARE_REGION]])))


def classify_regions(
    head: Any, extractor: Any, features: Sequence[Tensor], regions: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the boxes and scores of every region for every class, by mmdet's box head.

    Shapes:
        regions (M, 5), size (2,) -> boxes (M, classes, 4) and scores (M, classes).
    """
    logits, deltas = (out[:-1] for out in head(pool_regions(extractor, features, with_spare_region(regions))))
    scores = logits.softmax(-1)[:, :-1]
    number = 1 if head.reg_class_agnostic else head.num_classes
    priors = regions[:, 1:].unsqueeze(1).repeat(1, number, 1).reshape(-1, 4)
    boxes = decode(head.bbox_coder, priors, deltas.reshape(-1, 4), size).reshape(-1, number, 4)
    return (boxes.repeat(1, head.num_classes, 1) if number == 1 else boxes), scores


def mask_probabilities(
    head: Any, extractor: Any, features: Sequence[Tensor], regions: Tensor, labels: Tensor
) -> Tensor:
    """Return the mask of every region for its class, within the region: regions (M, 5), labels (M,) -> (M, S, S)."""
    logits = head(pool_regions(extractor, features, with_spare_region(regions)))[:-1]
    chosen = torch.zeros_like(labels) if head.class_agnostic else labels
    own: Tensor = logits[torch.arange(chosen.shape[0], device=chosen.device), chosen]
    return own.sigmoid()


class DetectorGraph(nn.Module):
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
        """Return the feature maps of images, after what mmdet's data preprocessor does to them."""
        preprocessor = self.detector.data_preprocessor
        x = images.to(torch.float32)
        if preprocessor._channel_conversion:
            x = x[:, [2, 1, 0]]
        if preprocessor._enable_normalize:
            x = (x - preprocessor.mean) / preprocessor.std
        divisor = preprocessor.pad_size_divisor
        if divisor > 1:
            height, width = x.shape[-2:]
            x = functional.pad(x, (0, -width % divisor, 0, -height % divisor), value=preprocessor.pad_value)
        features: tuple[Tensor, ...] = self.detector.extract_feat(x)
        return features

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the detections.

        ``size`` (2,) is width and height of the images without padding, ``scale`` (4,) the sides of a box in them over
        those in the original images.
        """
        raise NotImplementedError


class OneStageGraph(DetectorGraph):
    """A detector with one dense head, as RetinaNet."""

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        head = self.detector.bbox_head
        config = head.test_cfg
        found = candidates(head, features, size, by_class=True)
        boxes, labels = found.boxes * (1 / scale), found.groups
        groups = torch.zeros_like(labels) if config.nms.get('class_agnostic', False) else labels
        valid = found.valid & large_enough(boxes, config)
        images, kept = grouped_nms(boxes, found.scores, groups, valid, config.nms.iou_threshold, config.max_per_img)
        return images, boxes[images, kept], labels[images, kept], found.scores[images, kept]


class TwoStageGraph(DetectorGraph):
    """A detector with an RPN and a second stage for boxes and maybe masks, as Faster R-CNN and Mask R-CNN."""

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        if detector.roi_head.with_mask:
            self.outputs = MASK_OUTPUTS

    def detect(
        self, features: tuple[Tensor, ...], size: Tensor, scale: Tensor, original_size: Tensor
    ) -> tuple[Tensor, ...]:
        head = self.detector.roi_head
        images, boxes, labels, scores = self.boxes(features, self.regions(features, size), size)
        found = images, boxes / scale, labels, scores
        if not head.with_mask:
            return found
        regions = torch.cat((images.unsqueeze(1).to(boxes), boxes), dim=1)
        probabilities = mask_probabilities(head.mask_head, head.mask_roi_extractor, features, regions, labels)
        height, width = original_size.unbind(0)
        return *found, paste_masks(probabilities, found[1], height, width, head.test_cfg.mask_thr_binary)

    def regions(self, features: tuple[Tensor, ...], size: Tensor) -> Tensor:
        """Return the proposals of all images: image, left, top, right, bottom; (M, 5)."""
        head = self.detector.rpn_head
        config = head.test_cfg
        found = candidates(head, features, size, by_class=False)
        valid = found.valid & large_enough(found.boxes, config)
        images, kept = grouped_nms(*found._replace(valid=valid), config.nms.iou_threshold, config.max_per_img)
        return torch.cat((images.unsqueeze(1).to(found.boxes), found.boxes[images, kept]), dim=1)

    def boxes(
        self, features: tuple[Tensor, ...], regions: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return image, box in the resized image, label and score of every detection."""
        head = self.detector.roi_head
        config = head.test_cfg
        boxes, scores = classify_regions(head.bbox_head, head.bbox_roi_extractor, features, regions, size)
        region, labels = (scores > config.score_thr).nonzero().unbind(1)
        boxes, scores, images = boxes[region, labels], scores[region, labels], regions[region, 0].to(torch.long)
        groups = torch.zeros_like(labels) if config.nms.get('class_agnostic', False) else labels
        batch = features[0].shape[0]
        images, kept = grouped_nms_flat(
            boxes, scores, groups, images, batch, config.nms.iou_threshold, config.max_per_img
        )
        return images, boxes[kept], labels[kept], scores[kept]
