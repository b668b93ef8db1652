# SHViT-S3, ImageNet, 224x224, 300 epochs: the paper has 77.4 % top-1; not yet trained by us.
# 8 GPUs with 256 images each:  torchrun --nproc-per-node 8 tools/train.py configs/shvit_s3_imagenet.py
_base_ = ['./_base_/shvit_imagenet.py', './_base_/imagenet_224.py']

model = dict(backbone=dict(arch='s3'), head=dict(in_channels=_base_.variants.s3.channels[-1]))
optim_wrapper = dict(optimizer=dict(weight_decay=0.035))
