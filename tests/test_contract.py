"""Parts of a detector that do not fit together fail when it is built, with both numbers in the sentence."""

import copy

import pytest
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict

from shvit_det import UsageError

TINY = dict(type='SHViT', arch=dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8)))

register_all_modules()


def tiny(head: str) -> ConfigDict:
    model = Config.fromfile(ROOT / 'configs' / f'{head}_shvit_s4_coco.py').model
    model.backbone = TINY
    model.neck.in_channels = [16, 24, 32]
    return copy.deepcopy(model)


@pytest.mark.parametrize('head', ['mask_rcnn', 'retinanet'])
def test_parts_that_fit_are_built(head):
    MODELS.build(tiny(head))


@pytest.mark.parametrize(
    'head, path, value, words',
    [
        ('mask_rcnn', 'neck.in_channels', [16, 24, 48], ['[16, 24, 48]', '[16, 24, 32]', 'neck.in_channels']),
        ('mask_rcnn', 'backbone.out_indices', (0, 1), ['[16, 24, 32]', '[16, 24]', 'neck.in_channels']),
        ('mask_rcnn', 'rpn_head.anchor_generator.strides', [8, 16, 32, 64, 128],
         ['[8, 16, 32, 64, 128]', '[4, 8, 16, 32, 64]', 'rpn_head']),
        ('mask_rcnn', 'roi_head.bbox_roi_extractor.featmap_strides', [8, 16, 32, 64],
         ['[8, 16, 32, 64]', '[4, 8, 16, 32]', 'RoI']),
        ('mask_rcnn', 'roi_head.mask_roi_extractor.featmap_strides', [4, 8, 16, 64],
         ['[4, 8, 16, 64]', '[4, 8, 16, 32]', 'RoI']),
        ('mask_rcnn', 'rpn_head.in_channels', 128, ['[128]', '[256]', 'rpn_head']),
        ('mask_rcnn', 'neck.num_upsamples', 1, ['[4, 8, 16, 32, 64]', '[8, 16, 32, 64, 128]']),
        ('retinanet', 'bbox_head.in_channels', 64, ['[64]', '[256]', 'bbox_head']),
        ('retinanet', 'neck.num_upsamples', 2, ['[8, 16, 32, 64, 128]', '[4, 8, 16, 32, 64]', 'bbox_head']),
        ('retinanet', 'neck', dict(type='FPN', in_channels=[16, 24, 32], out_channels=256, num_outs=5),
         ['[8, 16, 32, 64, 128]', '[16, 32, 64, 128, 256]', 'bbox_head']),
        ('retinanet', 'neck', dict(type='PAFPN', in_channels=[16, 24], out_channels=256, num_outs=5),
         ['[16, 24]', '[16, 24, 32]']),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(head, path, value, words):
    model = tiny(head)
    *parents, last = path.split('.')
    node = model
    for name in parents:
        node = node[name]
    node[last] = value
    with pytest.raises(UsageError) as caught:
        MODELS.build(model)
    for word in words:
        assert word in str(caught.value)


def test_rtmdet_with_the_strides_of_other_backbones_is_refused():
    """Its points would lie at half the stride of the features, and nothing else would ever complain."""
    model = Config.fromfile(ROOT / 'tests' / 'data' / 'rtmdet_shvit.py').model
    MODELS.build(copy.deepcopy(model))
    model.bbox_head.anchor_generator.strides = [8, 16, 32]
    with pytest.raises(UsageError, match=r'\[8, 16, 32\].*\[16, 32, 64\]'):
        MODELS.build(model)


def test_detectors_with_other_backbones_are_left_alone():
    model = Config.fromfile(ROOT / 'configs' / 'mask_rcnn_shvit_s4_coco.py').model
    model.backbone = dict(type='ResNet', depth=18)
    model.neck = dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=256, num_outs=5)
    model.rpn_head.anchor_generator.strides = [2, 4, 8, 16, 32]
    MODELS.build(model)
