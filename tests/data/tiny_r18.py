# The tiny Mask R-CNN with a backbone and a neck of mmdet.
_base_ = 'tiny_mask_rcnn.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(_delete_=True, type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
)
