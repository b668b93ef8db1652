# Mask R-CNN, SHViT-S1, sample set, from random weights: what `make demo` trains.
#   python tools/train.py configs/mask_rcnn_shvit_s1_sample.py
_base_ = ['./_base_/mask_rcnn_sample.py', './_base_/sample.py', './_base_/runtime.py']

default_hooks = dict(logger=dict(interval=10))  # short epochs
