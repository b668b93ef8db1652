"""Small classifiers."""

from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn


def build_classifier(arch: object, in_channels: int, num_classes: int, **head: object) -> nn.Module:
    config = dict(
        type='ImageClassifier',
        backbone=dict(type='SHViT', arch=arch, out_indices=(2,)),
        head=dict(type='SHViTHead', in_channels=in_channels, num_classes=num_classes, **head),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MMPRETRAIN_MODELS.build(config)
