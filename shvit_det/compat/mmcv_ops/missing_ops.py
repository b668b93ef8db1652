"""The ops that ``mmcv.ops`` does not offer with the stand-in, because no common detector of mmdet uses them.

``from mmcv.ops import box_iou_rotated`` in a ``try`` with ``except ImportError`` is how programs choose between mmcv's
op and one of their own. Without compiled ops they get the ImportError, and so they do with the stand-in.
"""

import importlib
import sys
from typing import NoReturn

import torch

INSTALL_MMCV = '`pip install -U openmim && mim install "mmcv>=2.0.0rc4,<2.2.0"`'

# The files of mmcv.ops all of whose ops the stand-in lacks. These stay: bias_act, filtered_lrelu, fused_bias_leakyrelu
# and upfirdn2d, which run in plain torch too; SyncBatchNorm, whose class mmengine looks for; and RoIPool, which
# mmdet.apis imports. Called, the last two raise NotImplementedError.
_FILES = (
    *('active_rotated_filter', 'assign_score_withk', 'ball_query', 'bbox', 'bezier_align', 'border_align'),
    *('box_iou_quadri', 'box_iou_rotated', 'carafe', 'chamfer_distance', 'contour_expand', 'convex_iou', 'correlation'),
    *('deform_roi_pool', 'diff_iou_rotated', 'furthest_point_sample', 'gather_points', 'group_points', 'iou3d', 'knn'),
    *('min_area_polygons', 'pixel_group', 'points_in_boxes', 'points_in_polygons', 'points_sampler', 'prroi_pool'),
    *('psa_mask', 'riroi_align_rotated', 'roi_align_rotated', 'roiaware_pool3d', 'roipoint_pool3d'),
    *('rotated_feature_align', 'scatter_points', 'sparse_conv', 'sparse_pool', 'three_interpolate', 'three_nn'),
    *('tin_shift', 'voxelize'),
)
_OPS = ('nms_quadri', 'nms_rotated', 'softmax_focal_loss', 'SoftmaxFocalLoss')  # in files whose other ops are there


def refuse_missing_ops() -> None:
    """Take the names away from ``mmcv.ops``; asked for one of them, it raises ImportError with the way out.

    The files keep them (``mmcv.ops.carafe.CARAFEPack``), since mmdet and mmcv import some of them from there.
    """
    public = vars(importlib.import_module('mmcv.ops'))
    if '__getattr__' in public:
        return
    files = [vars(sys.modules[f'mmcv.ops.{file}']) for file in _FILES]
    missing = {
        name
        for name in public['__all__']
        if name in _OPS or any(name in file and file[name] is public[name] for file in files)
    }
    for name in missing:
        del public[name]
    public['__all__'] = [name for name in public['__all__'] if name not in missing]

    def refuse(name: str) -> NoReturn:
        if name in missing:
            raise ImportError(way_out(name), name='mmcv.ops')
        raise AttributeError(f"module 'mmcv.ops' has no attribute {name!r}")

    public['__getattr__'] = refuse


def way_out(name: str) -> str:
    """Return what a user reads who asks for an op that the stand-in lacks."""
    return (
        f'The mmcv op {name!r} is not among those that shvit_det replaces by torchvision: replace this mmcv by one '
        f'with compiled ops ({INSTALL_MMCV}; it needs a compiler or a wheel for torch {torch.__version__}).'
    )
