# Mask R-CNN, SHViT-S2, COCO, 1x: the authors give no AP; not yet trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/mask_rcnn_shvit_s2_coco.py
_base_ = './mask_rcnn_shvit_s4_coco.py'

model = dict(
    backbone=dict(arch='s2', init_cfg=dict(checkpoint=_base_.variants.s2.weights)),
    neck=dict(in_channels=_base_.variants.s2.channels),
)
