# SHViT-S4, ImageNet, 256x256, 300 epochs: the paper has 79.4 % top-1; not yet trained by us.
# 8 GPUs with 256 images each:  torchrun --nproc-per-node 8 tools/train.py configs/shvit_s4_imagenet.py
_base_ = ['./_base_/shvit_imagenet.py', './_base_/imagenet_256.py']

model = dict(backbone=dict(arch='s4'), head=dict(in_channels=_base_.variants.s4.channels[-1]))
optim_wrapper = dict(optimizer=dict(weight_decay=0.03))
