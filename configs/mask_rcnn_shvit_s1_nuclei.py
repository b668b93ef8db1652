# Mask R-CNN, SHViT-S1, nuclei, from random weights: the example of docs/training.md.
#   python tools/train.py configs/mask_rcnn_shvit_s1_nuclei.py
_base_ = ['./_base_/mask_rcnn_nuclei.py', './_base_/shvit_variants.py', './_base_/nuclei.py', './_base_/runtime.py']

model = dict(
    backbone=dict(_delete_=True, type='SHViT', arch='s1'),
    neck=dict(
        _delete_=True,
        type='SHViTFPN',
        in_channels=_base_.variants.s1.channels,
        out_channels=128,
        num_outs=5,
        num_upsamples=2,
    ),
    rpn_head=dict(type='SHViTRPNHead'),
)
default_hooks = dict(logger=dict(interval=10))  # short epochs
