"""The mask branch for inference: for each detection, only the mask of its class is computed.

A mask head returns the logits of all classes, 80 for COCO, of which its post-processing takes one for each detection,
after a sigmoid of all. The class is known before.
"""

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.bbox import bbox2roi
from mmengine.model import ModuleList
from torch import Tensor, nn

from ..models.unmodified import is_unmodified
from .backends.backend_choice import Backend
from .backends.convolutions import FusedPointwiseConv, FusedTransposedConv
from .backends.deployed_layer import own_kernels, to_nhwc
from .layer_replacement import replaces_methods


def mask_logits(head: Any, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Replace a mask head's ``forward``: with labels, only the masks of those classes are computed.

    The head's layers are deployed ones; the ReLU after the upsampling is a part of that layer.

    Shapes:
        (K, in_channels, H, W) -> logits (K, classes, 2 * H, 2 * W), or with labels (K,) only those of the labels,
        (K, 1, 2 * H, 2 * W).
    """
    for conv in head.convs:
        x = conv(x)
    x = head.upsample(x)
    last = head.conv_logits
    if labels is None:
        return last(x)
    weight, bias = last.weight.flatten(1)[labels, None], last.bias[labels, None, None]
    positions = to_nhwc(x).flatten(1, 2).transpose(1, 2)  # torch takes half as long as with the transposed product
    return torch.baddbmm(bias, weight, positions).view(len(x), 1, *x.shape[2:])


def paste_masks(
    head: Any,
    mask_preds: Tensor,
    bboxes: Tensor,
    labels: Tensor,
    img_meta: dict,
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> Tensor:
    """Replace a class-agnostic mask head's ``_predict_by_feat_single``: our own kernels paste the masks.

    mmdet pastes them one by one with some 15 operations each, into memory that the system zeroes page by page.
    """
    threshold = rcnn_test_cfg.mask_thr_binary
    by_kernels = head.conv_logits.cached_choice(mask_preds.device.type, mask_preds.dtype).backend is Backend.KERNELS
    if activate_map or threshold < 0 or not by_kernels:
        arguments = mask_preds, bboxes, labels, img_meta, rcnn_test_cfg, rescale, activate_map
        return FCNMaskHead._predict_by_feat_single(head, *arguments)
    scale = bboxes.new_tensor(img_meta['scale_factor'])  # of width and height
    height, width = map(int, img_meta['ori_shape'][:2])
    if rescale:
        bboxes /= scale.repeat(2)  # in place: they are part of the results
    else:
        width, height = (
            int(np.round(size * factor)) for size, factor in zip((width, height), scale.tolist(), strict=True)
        )
    return own_kernels().paste_masks(mask_preds[:, 0].sigmoid(), bboxes, height, width, threshold)


def masks_from_logits(head: Any, mask_preds: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Any:
    """Replace a mask head's ``predict_by_feat``, which also takes the masks of one class for each detection."""
    if mask_preds[0].shape[1] < head.num_classes:
        head = copy.copy(head)
        head.class_agnostic = True
        head._predict_by_feat_single = partial(paste_masks, head)
    return FCNMaskHead.predict_by_feat(head, mask_preds, *args, **kwargs)


def predict_mask(
    roi_head: Any, x: tuple[Tensor, ...], batch_img_metas: list[dict], results_list: list[Any], rescale: bool = False
) -> list[Any]:
    """Replace a RoI head's ``predict_mask``; its mask head has the two functions above."""
    rois = bbox2roi([results.bboxes for results in results_list])
    if len(rois) == 0:
        return StandardRoIHead.predict_mask(roi_head, x, batch_img_metas, results_list, rescale)
    extractor = roi_head.mask_roi_extractor
    features = extractor(x[: extractor.num_inputs], rois)
    logits = roi_head.mask_head(features, torch.cat([results.labels for results in results_list]))
    return roi_head.mask_head.predict_by_feat(
        mask_preds=logits.split([len(results) for results in results_list]),
        results_list=results_list,
        batch_img_metas=batch_img_metas,
        rcnn_test_cfg=roi_head.test_cfg,
        rescale=rescale,
    )


def fuse_mask_branch(detector: Any) -> None:
    """Make a detector compute only the masks that it returns, in place, if its mask branch is mmdet's standard one.

    Its layers have to be replaced already.
    """
    roi_head: Any = getattr(detector, 'roi_head', None)
    head: Any = getattr(roi_head, 'mask_head', None)
    if type(roi_head) is not StandardRoIHead or type(head) is not FCNMaskHead or roi_head.with_shared_head:
        return
    if replaces_methods(roi_head) or replaces_methods(head) or head.class_agnostic or head.num_classes == 1:
        return
    simple = is_unmodified(head.relu, nn.ReLU) and is_unmodified(head.convs, ModuleList)
    replaced = isinstance(head.upsample, FusedTransposedConv) and isinstance(head.conv_logits, FusedPointwiseConv)
    if not simple or not replaced:
        return
    head.upsample.relu = True
    head.forward = partial(mask_logits, head)
    head.predict_by_feat = partial(masks_from_logits, head)
    roi_head.predict_mask = partial(predict_mask, roi_head)
