# RetinaNet, SHViT-S1, COCO, 1x: the authors give no AP; not yet trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/retinanet_shvit_s1_coco.py
_base_ = './retinanet_shvit_s4_coco.py'

model = dict(
    backbone=dict(arch='s1', init_cfg=dict(checkpoint=_base_.variants.s1.weights)),
    neck=dict(in_channels=_base_.variants.s1.channels),
)
