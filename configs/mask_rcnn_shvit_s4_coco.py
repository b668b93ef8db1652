# Mask R-CNN, SHViT-S4, COCO, 1x: 39.0 box AP, 35.9 mask AP in the paper (Table 5); not yet trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/mask_rcnn_shvit_s4_coco.py
_base_ = [
    './_base_/mask_rcnn_shvit.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedule_1x.py',
    './_base_/runtime.py',
]
