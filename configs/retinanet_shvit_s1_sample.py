# RetinaNet, SHViT-S1, sample set, from random weights.
#   python tools/train.py configs/retinanet_shvit_s1_sample.py
_base_ = ['./_base_/retinanet_shvit.py', './_base_/sample.py', './_base_/runtime.py']

model = dict(
    backbone=dict(arch='s1', norm_eval=False, init_cfg=None),
    neck=dict(in_channels=_base_.variants.s1.channels, out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128, num_classes=5),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
default_hooks = dict(logger=dict(interval=10))  # short epochs
