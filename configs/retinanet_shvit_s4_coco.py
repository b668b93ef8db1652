# RetinaNet, SHViT-S4, COCO, 1x: 38.8 box AP in the paper (Table 5); not yet trained by us.
# 8 GPUs with 2 images each:  torchrun --nproc-per-node 8 tools/train.py configs/retinanet_shvit_s4_coco.py
_base_ = [
    './_base_/retinanet_shvit.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedule_1x.py',
    './_base_/runtime.py',
]
