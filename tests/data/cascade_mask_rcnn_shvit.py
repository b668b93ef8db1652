# mmdet's own Cascade Mask R-CNN with our backbone and neck, as a user would derive it.
_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['shvit_det'])
model = dict(
    backbone=dict(_delete_=True, type='SHViT', arch='s1'),
    neck=dict(_delete_=True, type='SHViTFPN', in_channels=[128, 224, 320], num_outs=5, num_upsamples=2),
)
