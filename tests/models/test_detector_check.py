"""Parts of a detector that do not fit together fail when it is built, with both numbers in the sentence."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.models import FCOS, FPN
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from paths import ROOT
from torch import nn

from shvit_det import UsageError

TINY = dict(type='SHViT', arch=dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8)))
CHANNELS = [16, 24, 32]

register_all_modules()


@cache
def config_of(path: Path) -> Config:
    return Config.fromfile(path)


def tiny(head: str) -> ConfigDict:
    model = copy.deepcopy(config_of(ROOT / 'configs' / f'{head}_shvit_s4_coco.py').model)
    model.backbone = ConfigDict(TINY)
    model.neck.in_channels = CHANNELS
    return model


def mmdet_model(name: str) -> ConfigDict:
    """The model of a config that mmdet brings along."""
    return copy.deepcopy(config_of(Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py').model)


def build(model: ConfigDict) -> nn.Module:
    """A detector without memory, which is made in no time; its parts are compared as those of any other."""
    with torch.device('meta'):
        return MODELS.build(copy.deepcopy(model))


def change(model: ConfigDict, path: str, value: Any) -> None:
    """Set one value of a config, as ``--cfg-options`` does: ``neck.0.in_channels``."""
    *parents, last = path.split('.')
    node = model
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    node[int(last) if isinstance(node, list) else last] = value


def refusal(model: ConfigDict) -> str:
    with pytest.raises(UsageError) as caught:
        build(model)
    return str(caught.value)


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
        ('mask_rcnn', 'roi_head.mask_roi_extractor.out_channels', 128, ['128', '[256, 256, 256, 256]', 'RoI']),
        ('mask_rcnn', 'roi_head.bbox_head.in_channels', 128, ['6272', '12544', 'roi_head.bbox_head.shared_fcs.0']),
        ('mask_rcnn', 'rpn_head.in_channels', 128, ['[128]', '[256]', 'rpn_head']),
        ('mask_rcnn', 'neck.num_upsamples', 1, ['[4, 8, 16, 32, 64]', '[8, 16, 32, 64, 128]']),
        ('retinanet', 'bbox_head.in_channels', 64, ['[64]', '[256]', 'bbox_head']),
        ('retinanet', 'neck.num_upsamples', 2, ['[8, 16, 32, 64, 128]', '[4, 8, 16, 32, 64]', 'bbox_head']),
        ('retinanet', 'neck', dict(type='FPN', in_channels=CHANNELS, out_channels=256, num_outs=5),
         ['[8, 16, 32, 64, 128]', '[16, 32, 64, 128, 256]', 'bbox_head']),
        ('retinanet', 'neck', dict(type='FPN', in_channels=CHANNELS, out_channels=256, num_outs=3),
         ['[8, 16, 32, 64, 128]', '[16, 32, 64]', 'bbox_head']),
        ('retinanet', 'neck', dict(type='PAFPN', in_channels=[16, 24], out_channels=256, num_outs=5),
         ['[16, 24]', '[16, 24, 32]']),
        ('retinanet', 'neck', dict(type='ChannelMapper', in_channels=[16, 24], out_channels=256),
         ['neck.in_channels', '[16, 24]', '[16, 24, 32]']),
        ('retinanet', 'neck', dict(type='mmdet.DilatedEncoder', in_channels=8, out_channels=256, block_mid_channels=8,
                                   num_residual_blocks=1, block_dilations=[2]), ['neck.in_channels', '[8]', '32']),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(head, path, value, words):
    model = tiny(head)
    change(model, path, value)
    sentence = refusal(model)
    for word in words:
        assert word in sentence


# Kinds of detectors as mmdet's own configs have them. For each: what fits SHViT, which must build, and then one change,
# which must be refused with these words.
FINE = dict(type='SHViTFPN', in_channels=CHANNELS, num_outs=5, num_upsamples=2)
FINER = dict(type='SHViTFPN', in_channels=CHANNELS, num_outs=5, num_upsamples=1)
MAPPER = dict(type='ChannelMapper', in_channels=CHANNELS, out_channels=256, num_outs=4, kernel_size=1)
COARSE = dict(type='FPN', in_channels=CHANNELS, out_channels=256, num_outs=5)
COARSEST = ['[8, 16, 32, 64, 128]', '[16, 32, 64, 128, 256]']
ENCODER = dict(type='DilatedEncoder', in_channels=32, out_channels=64, block_mid_channels=16, num_residual_blocks=1,
               block_dilations=[2])  # fmt: skip
SSD_CHANNELS = (16, 24, 64, 64, 64, 64)
KINDS = {
    'a list of necks': (
        'libra_rcnn/libra-retinanet_r50_fpn_1x_coco', {'neck.0': FINER},
        ('neck.1.in_channels', 64, ['neck.1.in_channels', '[64]', '[256]', 'neck.0']),
    ),
    'deformable convolutions in the neck': (
        'dyhead/atss_r50_fpn_dyhead_1x_coco', {'neck.0': FINER, 'neck.1.num_blocks': 1},
        ('neck.0', COARSE, [*COARSEST, 'bbox_head', 'neck.1']),
    ),
    'points': (
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', {'neck': COARSE, 'bbox_head.strides': (16, 32, 64, 128, 256)},
        ('bbox_head.strides', (8, 16, 32, 64, 128), [*COARSEST, 'bbox_head']),
    ),
    'a range for each level': (
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
        {'neck': dict(COARSE, num_outs=3), 'bbox_head.strides': (16, 32, 64),
         'bbox_head.regress_ranges': ((-1, 128), (128, 256), (256, 1e8))},
        ('bbox_head.regress_ranges', ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)), ['5', '3', 'levels']),
    ),
    'ranges that are never used': (
        'vfnet/vfnet_r50_fpn_1x_coco',
        {'neck': dict(COARSE, num_outs=3), 'bbox_head.strides': (16, 32, 64),
         'bbox_head.anchor_generator': dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8,
                                            scales_per_octave=1, center_offset=0.0, strides=[16, 32, 64])},
        ('bbox_head.anchor_generator.strides', [8, 16, 32], ['[8, 16, 32]', '[16, 32, 64]']),
    ),
    'levels from coarse to fine': (
        'yolo/yolov3_d53_8xb8-ms-608-273e_coco',
        {'neck.in_channels': [32, 24, 16], 'bbox_head.anchor_generator.strides': [64, 32, 16],
         'bbox_head.featmap_strides': [64, 32, 16]},
        ('bbox_head.anchor_generator.strides', [16, 32, 64], ['[16, 32, 64]', '[64, 32, 16]']),
    ),
    'one level': (
        'yolof/yolof_r50-c5_8xb8-1x_coco',
        {'backbone.out_indices': (2,), 'neck': ENCODER, 'bbox_head.in_channels': 64,
         'bbox_head.anchor_generator.strides': [64]},
        ('bbox_head.anchor_generator.strides', [32], ['[32]', '[64]']),
    ),
    'a neck that takes the last level': (
        'centernet/centernet_r18_8xb16-crop512-140e_coco', {'neck.in_channels': 32, 'neck.use_dcn': True},
        ('bbox_head.in_channels', 32, ['heatmap_head.0', '32', '64']),
    ),
    'anchors of one image size': (
        'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
        {'backbone.out_indices': (0, 1), 'neck.in_channels': (16, 24), 'neck.out_channels': SSD_CHANNELS,
         'bbox_head.in_channels': SSD_CHANNELS},
        ('backbone.out_indices', (1, 2), ['neck.extra_layers.0.0.conv', '24', '[24, 32]']),
    ),
    'strides that are fractions': (
        'yolact/yolact_r50_1xb8-55e_coco', {'neck': FINER},
        ('neck', dict(COARSE, num_outs=5), ['[8.0, 15.7, 30.6, 61.1, 110]', '[16, 32, 64, 128, 256]']),
    ),
    'no neck and a layer shared by boxes': (
        'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco',
        {'backbone.out_indices': (0,), 'rpn_head.in_channels': 16,
         'roi_head.bbox_roi_extractor.out_channels': 16, 'roi_head.shared_head': dict(
            type='ResLayer', depth=18, stage=3, stride=2, norm_cfg=dict(type='BN')),
         'roi_head.bbox_roi_extractor.featmap_strides': [16], 'roi_head.bbox_head.in_channels': 512},
        ('rpn_head.in_channels', 32, ['[32]', '[16]', 'rpn_head', "backbone's out_channels"]),
    ),
    'stages of boxes and of masks': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', {'neck': FINE},
        ('roi_head.bbox_head.1.in_channels', 64, ['roi_head.bbox_head.1', '12544', '3136']),
    ),
    'a semantic branch': (
        'htc/htc_r50_fpn_1x_coco', {'neck': FINE},
        ('roi_head.semantic_roi_extractor.featmap_strides', [4], ['semantic_roi_extractor', '[4]', '[8]']),
    ),
    'RoI features of all levels': (
        'groie/mask-rcnn_r50_fpn_groie_1x_coco', {'neck': FINE},
        ('roi_head.bbox_roi_extractor.featmap_strides', [8, 16, 32, 64], ['[8, 16, 32, 64]', '[4, 8, 16, 32]']),
    ),
    'learned proposals': (
        'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', {'neck': FINE},
        ('neck', COARSE, ['[4, 8, 16, 32]', '[16, 32, 64, 128]', 'RoI']),
    ),
    'masks without boxes': (
        'solo/solo_r50_fpn_1x_coco', {'neck': FINE},
        ('neck', COARSE, ['[8, 8, 16, 32, 32]', '[32, 32, 64, 128, 128]', 'mask_head']),
    ),
    'a map of mask features': (
        'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance', {'neck': FINER},
        ('mask_head.mask_feature_head.mask_stride', 4, ['mask_stride', '[4]', '[8]']),
    ),
    'DETR': (
        'detr/detr_r50_8xb2-150e_coco', {'backbone.out_indices': (2,), 'neck.in_channels': [32]},
        ('neck.out_channels', 128, ['embed_dims', '256', '[128]']),
    ),
    'Deformable DETR': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco', {'neck': MAPPER},
        ('neck.num_outs', 3, ['num_feature_levels', '4', '3']),
    ),
    'DINO': (
        'dino/dino-4scale_r50_8xb2-12e_coco', {'neck': MAPPER},
        ('neck.in_channels', [512, 1024, 2048], ['neck.in_channels', '[512, 1024, 2048]', '[16, 24, 32]']),
    ),
    'MaskFormer': (
        'maskformer/maskformer_r50_ms-16xb1-75e_coco', {'panoptic_head.in_channels': CHANNELS},
        ('panoptic_head.in_channels', [16, 24, 48], ['pixel_decoder', '48', '32']),
    ),
    'Mask2Former': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        {'panoptic_head.in_channels': CHANNELS, 'panoptic_head.strides': [16, 32, 64]},
        ('panoptic_head.in_channels', [16, 24, 32, 48], ['pixel_decoder', '4 levels', '[16, 24, 32]']),
    ),
    'a student and a teacher': (
        'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco', {'detector.neck': FINE},
        ('detector.neck', COARSE, ['[4, 8, 16, 32, 64]', '[16, 32, 64, 128, 256]']),
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_detectors_build_and_their_mistakes_are_named(kind):
    name, fitting, (path, value, words) = KINDS[kind]
    model = mmdet_model(name)
    prefix = 'detector.' if 'detector' in model else ''
    change(model, f'{prefix}backbone', ConfigDict(TINY))
    for key, fit in fitting.items():
        change(model, key, ConfigDict(fit) if isinstance(fit, dict) else fit)
    build(model)
    change(model, path, ConfigDict(value) if isinstance(value, dict) else value)
    sentence = refusal(model)
    for word in words:
        assert word in sentence


class Identity(nn.Identity):
    """A neck that only hands on."""


def test_necks_that_hand_on_are_followed():
    model = tiny('retinanet')
    model.neck = [model.neck, dict(type=Identity), dict(type='BFP', in_channels=256, num_levels=5)]
    build(model)
    model.bbox_head.in_channels = 64
    assert '[256]' in refusal(model)


class Recording(FPN):
    """A neck with a norm and dropout, which counts its calls and has a hook."""

    calls = 0
    seen: list = []  # noqa: RUF012 (what the hooks of all copies would write to)

    def __init__(self, **settings: Any) -> None:
        super().__init__(norm_cfg=dict(type='BN'), **settings)
        self.dropout = nn.Dropout(0.5)
        self.register_forward_hook(lambda module, inputs, outputs: self.seen.append(outputs))
        self.lateral_convs[0].register_forward_pre_hook(lambda module, inputs: self.seen.append(inputs))

    def forward(self, inputs: Any) -> Any:
        self.calls += 1
        return tuple(self.dropout(out) for out in super().forward(inputs))


def test_building_leaves_no_trace():
    model = tiny('retinanet')
    model.bbox_head.anchor_generator.strides = [16, 32, 64, 128, 256]
    model.neck = dict(COARSE, type=Recording)
    torch.manual_seed(0)
    detector = MODELS.build(model)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    parts = [copy.deepcopy(part) for part in (model.backbone, model.neck)]
    MODELS.build(parts[0])
    neck = MODELS.build(parts[1])
    for (name, value), expected in zip(detector.neck.state_dict().items(), neck.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    MODELS.build(dict(model.bbox_head, train_cfg=model.train_cfg, test_cfg=model.test_cfg))
    assert torch.equal(state, torch.get_rng_state())
    assert detector.neck.calls == 0 and Recording.seen == []
    assert len(detector.neck._forward_hooks) == 1
    assert all(module.training for module in detector.modules())
    assert all(parameter.requires_grad and parameter.device.type == 'cpu' for parameter in detector.parameters())


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_the_check_is_the_same_with_memory_and_without(device):
    model = tiny('retinanet')
    with torch.device(device):
        MODELS.build(copy.deepcopy(model))
        model.neck.num_upsamples = 2
        with pytest.raises(UsageError, match='4, 8, 16, 32, 64'):
            MODELS.build(model)


class Inscrutable(BaseModule):
    """A neck whose layers depend on the values, of an argument that says something else than elsewhere."""

    def __init__(self, in_channels: list[int]) -> None:
        super().__init__()
        self.in_channels = in_channels

    def forward(self, inputs: Any) -> Any:
        assert all(x.mean().item() < 1e9 for x in inputs)
        return inputs


class Asking(BaseModule):
    """A neck that wants more than the features."""

    in_channels = 256

    def forward(self, inputs: Any, text: Any) -> Any:
        return inputs


@pytest.mark.parametrize('neck', [dict(type=Inscrutable, in_channels=[1, 2]), dict(type=Asking)])
def test_nothing_is_claimed_of_what_cannot_be_known(neck):
    model = tiny('retinanet')
    model.neck = neck
    build(model)


class Mismatched(BaseModule):
    """A neck that states nothing, and in which an inner layer does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(channels, 64, 1) for channels in CHANNELS)
        self.smooth = nn.Conv2d(96, 64, 3, padding=1)

    def forward(self, inputs: Any) -> Any:
        return [self.smooth(reduce(x)) for reduce, x in zip(self.reduce, inputs, strict=True)]


def test_a_layer_that_does_not_fit_is_named():
    model = tiny('retinanet')
    model.neck = dict(type=Mismatched)
    sentence = refusal(model)
    assert 'neck.smooth takes 96 channels' in sentence and '64' in sentence


class Rebuilt(FCOS):
    """A detector that gets its neck after mmdet's constructor has returned."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.neck = MODELS.build(FINER)


class Halving(FCOS):
    """A detector that uses the features in its own way."""

    def extract_feat(self, batch_inputs: torch.Tensor) -> Any:
        return [nn.functional.interpolate(x, scale_factor=2) for x in super().extract_feat(batch_inputs)]


def fcos(kind: type, neck: dict | None) -> ConfigDict:
    model = mmdet_model('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco')
    model.type = kind
    model.backbone = ConfigDict(TINY)
    model.neck = neck
    return model


def test_detectors_are_checked_when_they_are_complete():
    build(fcos(Rebuilt, None))
    model = fcos(Rebuilt, None)
    model.bbox_head.strides = (16, 32, 64, 128, 256)
    assert '[8, 16, 32, 64, 128]' in refusal(model)


def test_a_detector_with_features_of_its_own_is_left_alone():
    build(fcos(Halving, COARSE))


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
