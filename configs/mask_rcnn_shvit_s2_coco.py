# Mask R-CNN, SHViT-S2, COCO, 1x: the authors give no AP; not yet trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/mask_rcnn_shvit_s2_coco.py
_base_ = './mask_rcnn_shvit_s4_coco.py'

model = dict(
    backbone=dict(
        arch='s2',
        init_cfg=dict(checkpoint='https://github.com/ysj9909/SHViT/releases/download/v1.0/shvit_s2.pth'),
    ),
    neck=dict(in_channels=[128, 308, 448]),
)
