# Mask R-CNN with SHViT-S4: mmdet's, with our backbone, neck and form of the RPN head. Levels at strides 4 to 64.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './shvit_variants.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='SHViT',
        arch='s4',
        norm_eval=True,
        init_cfg=dict(type='SHViTPretrained', checkpoint=_base_.variants.s4.weights),
    ),
    neck=dict(
        _delete_=True,
        type='SHViTFPN',
        in_channels=_base_.variants.s4.channels,
        num_outs=5,
        num_upsamples=2,
    ),
    rpn_head=dict(type='SHViTRPNHead'),
)
