# mmdet's own RTMDet with our backbone and its own neck: three levels from stride 16 on. That neck doubles sizes, so the
# images have to be padded to multiples of the coarsest stride.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
custom_imports = dict(imports=['shvit_det'])
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(_delete_=True, type='SHViT', arch='s1'),
    neck=dict(in_channels=[128, 224, 320]),
    bbox_head=dict(anchor_generator=dict(strides=[16, 32, 64])),
)
