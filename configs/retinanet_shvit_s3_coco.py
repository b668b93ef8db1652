# RetinaNet, SHViT-S3, COCO, 1x: no AP by the authors; the LSNet paper has 36.1 box AP; not trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/retinanet_shvit_s3_coco.py
_base_ = './retinanet_shvit_s4_coco.py'

model = dict(
    backbone=dict(arch='s3', init_cfg=dict(checkpoint=_base_.variants.s3.weights)),
    neck=dict(in_channels=_base_.variants.s3.channels),
)
