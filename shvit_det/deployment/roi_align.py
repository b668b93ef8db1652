"""RoIAlign in a deployed detector: on a CPU it reads maps in NHWC without copying them to NCHW.

Our own kernels pool the regions of all levels in one call. Where they do not run, :mod:`shvit_det.compat.mmcv_ops`
pools them level by level.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from ..compat.mmcv_ops.roi_average import roi_average
from ..models.unmodified import is_unmodified
from .backends.backend_choice import HALF, Backend
from .backends.deployed_layer import DeployedLayer, own_kernels, runs_eagerly
from .layer_replacement import replaces_methods

DTYPES = (torch.float32, *HALF)


class ChannelsLastRoIAlign(DeployedLayer):
    """An mmcv ``RoIAlign`` of averages that takes features in NHWC as they are, on a CPU.

    Other features are pooled by mmcv's layer. Features in half precision are pooled in float32, since coordinates of
    regions need it, and the result is cast back.

    Shapes:
        (B, C, H, W), (K, 5) -> (K, C, *output_size), in NHWC where the features are.
    """

    def __init__(self, mmcv_layer: RoIAlign) -> None:
        super().__init__()
        self.mmcv_layer = mmcv_layer
        self.output_size = mmcv_layer.output_size
        self.spatial_scale = mmcv_layer.spatial_scale
        self.sampling_ratio = mmcv_layer.sampling_ratio
        self.pool_mode = mmcv_layer.pool_mode
        self.aligned = mmcv_layer.aligned

    def supports_kernels(self, dtype: torch.dtype) -> bool:
        return True

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        wide = features.float() if features.dtype in HALF else features
        rois = rois.to(wide.dtype)
        if not supports_features(features):
            return self.mmcv_layer(wide, rois).to(features.dtype)
        backend, dtype = self.choice_for_input(features)
        if backend is Backend.KERNELS:
            return pool([self], [features.to(dtype)], rois, rois.new_zeros(len(rois)), False).to(features.dtype)
        with torch.no_grad():
            settings = self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
            return roi_average(wide, rois, *settings).to(features.dtype)


def pool(layers: Sequence[Any], features: Sequence[Tensor], rois: Tensor, levels: Tensor, planar: bool) -> Tensor:
    """Pool regions by our own kernels, each from its level, whose layers differ in their scales alone."""
    scales = [layer.spatial_scale for layer in layers]
    settings = layers[0].output_size, layers[0].sampling_ratio, layers[0].aligned
    return own_kernels().roi_align(features, rois.float(), levels, scales, *settings, planar)


def pooled_regions(
    extractor: Any, planar: bool, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None
) -> Tensor:
    """Replace an extractor's ``forward``: pool all regions at once, from the features as they are.

    mmdet pools the regions level by level and then copies the results to their places. It also rounds the regions to
    the features' data type; where its method runs, features in half precision are cast to float32 first. The
    extractor's layers are of :class:`ChannelsLastRoIAlign`; ``planar`` results lie as NCHW, as a linear layer takes
    them.
    """
    layers = extractor.roi_layers
    if roi_scale_factor is None and len(rois) > 0 and all(map(supports_features, feats)):
        backend, dtype = layers[0].choice_for_input(feats[0])
        if backend is Backend.KERNELS:
            levels = extractor.map_roi_levels(rois.float(), len(feats))
            return pool(layers[: len(feats)], [feature.to(dtype) for feature in feats], rois, levels, planar)
    feats = [feature.float() if feature.dtype in HALF else feature for feature in feats]
    return SingleRoIExtractor.forward(extractor, feats, rois, roi_scale_factor)


def supports_features(features: Tensor) -> bool:
    """Return whether features are pooled as they are: those in NHWC and without a gradient, on a CPU."""
    return (
        features.device.type == 'cpu'
        and features.dtype in DTYPES
        and features.is_contiguous(memory_format=torch.channels_last)
        and runs_eagerly(features)
    )


def replace_roi_layers(detector: Any) -> None:
    """Replace the RoIAlign layers of a detector's extractors, in place, where they take averages."""
    head = getattr(detector, 'roi_head', None)
    for branch in ('bbox', 'mask'):
        planar = all(map(_starts_linear, _stages(getattr(head, f'{branch}_head', None))))
        for extractor in _stages(getattr(head, f'{branch}_roi_extractor', None)):
            if type(extractor) is SingleRoIExtractor and not replaces_methods(extractor):
                extractor.roi_layers = nn.ModuleList(_deployed_form(layer) for layer in extractor.roi_layers)
                if all(isinstance(layer, ChannelsLastRoIAlign) for layer in extractor.roi_layers):
                    extractor.forward = partial(pooled_regions, extractor, planar)


def _stages(part: Any) -> list[Any]:
    """Return the stages of a cascade, or a list of the one part."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _starts_linear(head: Any) -> bool:
    """Return whether a head of mmdet's ``ConvFCBBoxHead`` kind has linear layers first."""
    return getattr(head, 'num_shared_convs', 1) == 0 and getattr(head, 'num_shared_fcs', 0) > 0


def _deployed_form(layer: Any) -> nn.Module:
    return ChannelsLastRoIAlign(layer) if is_unmodified(layer, RoIAlign) and layer.pool_mode == 'avg' else layer
