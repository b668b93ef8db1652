# mmdet's own FCOS with our backbone and mmdet's plain FPN: three levels from stride 16 on, two coarser ones.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
custom_imports = dict(imports=['shvit_det'])
model = dict(
    backbone=dict(_delete_=True, type='shvit_det.SHViT', arch='s1'),
    neck=dict(in_channels=[128, 224, 320], start_level=0),
    bbox_head=dict(strides=[16, 32, 64, 128, 256]),
)
