# Mask R-CNN, ResNet-50, nuclei, from random weights: the same as mask_rcnn_shvit_s1_nuclei.py, for comparison.
#   python tools/train.py configs/mask_rcnn_r50_nuclei.py
_base_ = ['./_base_/mask_rcnn_nuclei.py', './_base_/nuclei.py', './_base_/runtime.py']

# mmdet's backbone and FPN; nothing is pretrained, so that nothing is frozen and its norms learn their statistics.
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
default_hooks = dict(logger=dict(interval=10))  # short epochs
