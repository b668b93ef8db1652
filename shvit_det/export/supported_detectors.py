"""Which detectors can be exported: those whose every step :mod:`.detector_graph` repeats."""

from typing import Any, NoReturn

from mmcv.ops import RoIAlign
from mmdet import models
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator

from ..common.errors import UsageError
from ..deployment.roi_align import ChannelsLastRoIAlign

NMS_SETTINGS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
PREDICTING_METHODS = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process', 'predict')


def check_exportable(detector: Any) -> None:
    """Raise ``UsageError`` with the first thing that a detector does and its exported graph would not."""
    kind, predict = type(detector).__name__, getattr(type(detector), 'predict', None)
    _require_type(detector.data_preprocessor, models.DetDataPreprocessor, 'data preprocessor', kind)
    if predict is models.TwoStageDetector.predict:
        _check_dense_head(detector.rpn_head, models.RPNHead, models.RPNHead, kind)
        _check_roi_head(detector.roi_head, kind)
    elif predict is models.SingleStageDetector.predict:
        _check_dense_head(detector.bbox_head, models.RetinaHead, BaseDenseHead, kind)
    else:
        _refuse(kind, 'this is for detectors of the kinds of RetinaNet, Faster R-CNN and Mask R-CNN')


def _check_dense_head(head: Any, kind: type, base: type, detector: str) -> None:
    name = type(head).__name__
    _require_methods(head, kind, base, detector)
    _require_type(head.prior_generator, AnchorGenerator, 'anchor generator', detector)
    _require_type(head.bbox_coder, DeltaXYWHBBoxCoder, 'box coder', detector)
    _check_nms(head.test_cfg, f'test_cfg of {name}', detector)
    if not head.use_sigmoid_cls or getattr(head.loss_cls, 'custom_cls_channels', False):
        _refuse(detector, f'{name} has no sigmoid for each class')
    if not head.test_cfg.get('nms_pre', -1) > 0:
        _refuse(detector, f'test_cfg of {name} needs a positive nms_pre')


def _check_roi_head(head: Any, detector: str) -> None:
    _require_type(head, models.StandardRoIHead, 'RoI head', detector)
    if head.with_shared_head:
        _refuse(detector, 'its RoI head has a shared head')
    _require_methods(head.bbox_head, models.BBoxHead, models.BBoxHead, detector)
    _require_type(head.bbox_head.bbox_coder, DeltaXYWHBBoxCoder, 'box coder', detector)
    _check_nms(head.test_cfg, 'test_cfg.rcnn', detector)
    if head.bbox_head.custom_cls_channels or not (head.bbox_head.with_cls and head.bbox_head.with_reg):
        _refuse(detector, 'its box head is not one of plain classes and boxes')
    extractors = [head.bbox_roi_extractor]
    if head.with_mask:
        _require_type(head.mask_head, models.FCNMaskHead, 'mask head', detector)
        if not head.test_cfg.mask_thr_binary > 0:
            _refuse(detector, 'mask_thr_binary has to be positive')
        extractors.append(head.mask_roi_extractor)
    for extractor in extractors:
        _require_type(extractor, models.SingleRoIExtractor, 'RoI extractor', detector)
        for layer in extractor.roi_layers:
            if type(layer) not in (RoIAlign, ChannelsLastRoIAlign) or layer.pool_mode != 'avg':
                _refuse(detector, 'its regions are not pooled by RoIAlign of averages')


def _require_type(part: Any, kind: type, noun: str, detector: str) -> None:
    if type(part) is not kind:
        _refuse(detector, f'its {noun} is a {type(part).__name__}, and only a {kind.__name__} can')


def _require_methods(head: Any, kind: type, base: type, detector: str) -> None:
    """A subclass may have other layers, but it has to predict by the methods of ``base``."""
    own = [name for name in PREDICTING_METHODS if getattr(type(head), name, None) is not getattr(base, name, None)]
    if not isinstance(head, kind) or own:
        _refuse(detector, f'its {type(head).__name__} predicts in another way than a {kind.__name__}')


def _check_nms(config: Any, where: str, detector: str) -> None:
    nms = dict(config.nms)
    if nms.get('type', 'nms') != 'nms' or not set(nms) <= NMS_SETTINGS:
        _refuse(detector, f'{where} has nms={nms}, and only plain nms can')
    if not config.max_per_img > 0:
        _refuse(detector, f'{where} needs a positive max_per_img')


def _refuse(detector: str, reason: str) -> NoReturn:
    raise UsageError(f'{detector} cannot be exported: {reason}')
