"""Which detectors can be exported: those whose every step the exported graph repeats."""

from typing import Any

from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator

from ..common.errors import UsageError
from ..deployment.roi_align import ChannelsLastRoIAlign

NMS_SETTINGS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
STEPS = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process', 'predict')


def check_exportable(detector: Any) -> None:
    """Raise ``UsageError`` if a detector does something that the exported graph does not repeat."""
    kind = type(detector).__name__
    if type(detector.data_preprocessor) is not DetDataPreprocessor:
        raise UsageError(
            f'{kind} cannot be exported: its data preprocessor is a {type(detector.data_preprocessor).__name__}, '
            'and only a DetDataPreprocessor can'
        )
    if isinstance(detector, TwoStageDetector) and type(detector).predict is TwoStageDetector.predict:
        _check_dense(detector.rpn_head, RPNHead, kind)
        _check_second_stage(detector.roi_head, kind)
    elif isinstance(detector, SingleStageDetector) and type(detector).predict is SingleStageDetector.predict:
        _check_dense(detector.bbox_head, RetinaHead, kind)
    else:
        raise UsageError(
            f'{kind} cannot be exported: this is for detectors of the kinds of RetinaNet, Faster R-CNN and Mask R-CNN'
        )


def _check_dense(head: Any, kind: type, detector: str) -> None:
    base = RPNHead if kind is RPNHead else BaseDenseHead
    _require_steps(head, kind, base, detector)
    _require(head.prior_generator, AnchorGenerator, 'anchor generator', detector)
    _check_coder(head.bbox_coder, detector)
    _check_nms(head.test_cfg, f'test_cfg of {type(head).__name__}', detector)
    if not head.use_sigmoid_cls or getattr(head.loss_cls, 'custom_cls_channels', False):
        raise UsageError(f'{detector} cannot be exported: {type(head).__name__} has no sigmoid for each class')
    if not head.test_cfg.get('nms_pre', -1) > 0:
        raise UsageError(f'{detector} cannot be exported: test_cfg of {type(head).__name__} needs a positive nms_pre')


def _check_second_stage(head: Any, detector: str) -> None:
    _require(head, StandardRoIHead, 'RoI head', detector)
    if head.with_shared_head:
        raise UsageError(f'{detector} cannot be exported: its RoI head has a shared head')
    _require_steps(head.bbox_head, BBoxHead, BBoxHead, detector)
    _check_coder(head.bbox_head.bbox_coder, detector)
    _check_nms(head.test_cfg, 'test_cfg.rcnn', detector)
    if head.bbox_head.custom_cls_channels or not (head.bbox_head.with_cls and head.bbox_head.with_reg):
        raise UsageError(f'{detector} cannot be exported: its box head is not one of plain classes and boxes')
    extractors = [head.bbox_roi_extractor]
    if head.with_mask:
        _require(head.mask_head, FCNMaskHead, 'mask head', detector)
        if not head.test_cfg.mask_thr_binary > 0:
            raise UsageError(f'{detector} cannot be exported: mask_thr_binary has to be positive')
        extractors.append(head.mask_roi_extractor)
    for extractor in extractors:
        _require(extractor, SingleRoIExtractor, 'RoI extractor', detector)
        for layer in extractor.roi_layers:
            if type(layer) not in (RoIAlign, ChannelsLastRoIAlign) or layer.pool_mode != 'avg':
                raise UsageError(f'{detector} cannot be exported: its regions are not pooled by RoIAlign of averages')


def _require(part: Any, kind: type, noun: str, detector: str) -> None:
    if type(part) is not kind:
        raise UsageError(
            f'{detector} cannot be exported: its {noun} is a {type(part).__name__}, and only a {kind.__name__} can'
        )


def _require_steps(head: Any, kind: type, base: type, detector: str) -> None:
    """A subclass may have other layers, but what follows them has to be that of ``base``."""
    own = [step for step in STEPS if getattr(type(head), step, None) is not getattr(base, step, None)]
    if not isinstance(head, kind) or own:
        raise UsageError(
            f'{detector} cannot be exported: its {type(head).__name__} predicts in another way than a {kind.__name__}'
        )


def _check_coder(coder: Any, detector: str) -> None:
    _require(coder, DeltaXYWHBBoxCoder, 'box coder', detector)


def _check_nms(config: Any, where: str, detector: str) -> None:
    nms = dict(config.nms)
    if nms.get('type', 'nms') != 'nms' or not set(nms) <= NMS_SETTINGS:
        raise UsageError(f'{detector} cannot be exported: {where} has nms={nms}, and only plain nms can')
    if not config.max_per_img > 0:
        raise UsageError(f'{detector} cannot be exported: {where} needs a positive max_per_img')
