"""Deployed detectors compute boxes and areas in float32, whatever their networks compute in, and under autocast too."""

import pytest
import torch
from deployed_models import agree, backbone, detector
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from norms import randomise_norms
from paths import ROOT
from timed import TINY_MASK_RCNN, TINY_RETINANET
from torch import nn
from torchvision.ops import box_iou

from shvit_det import SHViTFPN, deploy, kernels
from shvit_det.deployment.precision import floats_as

pytestmark = pytest.mark.slow

HALF = [torch.float16, torch.bfloat16]
CASCADE = str(ROOT / 'tests' / 'data' / 'cascade_mask_rcnn_shvit.py')


@pytest.fixture(params=['own kernels', 'oneDNN', 'plain'])
def form(request, monkeypatch):
    if request.param == 'own kernels' and kernels.load() is None:
        pytest.skip('there are no kernels for this processor')
    if request.param != 'own kernels':
        monkeypatch.setattr(kernels, 'load', lambda: None)
    if request.param == 'plain':
        monkeypatch.setattr('shvit_det.deployment.backends.backend_choice._onednn', lambda: ((), ()))


def rois(count=300):
    """Regions of all sizes on a large image; areas of most are beyond float16, and places beyond its whole numbers."""
    torch.manual_seed(0)
    corners = torch.rand(count, 2) * torch.tensor([1000.0, 500]) + torch.tensor([300.3, 200.7])
    sides = 2 ** (torch.rand(count, 2) * 6 + 3)
    return torch.cat((torch.zeros(count, 1), corners, corners + sides), dim=1)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('moved', [False, True], ids=['deployed so', 'moved later'])
def test_regions_are_pooled_from_the_same_levels(form, dtype, moved):
    trained = detector(TINY_MASK_RCNN).model
    levels = []
    original = SingleRoIExtractor.map_roi_levels

    def noting(self, rois, num_levels):
        assert rois.dtype is torch.float32
        levels.append(original(self, rois, num_levels))
        return levels[-1]

    shapes = [(200, 336), (100, 168), (50, 84), (25, 42)]
    pyramid = [torch.randn(1, 16, *shape).to(memory_format=torch.channels_last) for shape in shapes]
    deployed = deploy(trained).to(dtype) if moved else deploy(trained, dtype=dtype)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SingleRoIExtractor, 'map_roi_levels', noting)
        for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
            right = getattr(trained.roi_head, name)(pyramid, rois())
            found = getattr(deployed.roi_head, name)([level.to(dtype) for level in pyramid], rois())
            agree([right], [found.float()], 2**-7)
    assert len(set(levels[0].tolist())) == 4
    assert all(torch.equal(one, levels[0]) for one in levels)


def cascade():
    """A small Cascade Mask R-CNN with random weights."""
    register_all_modules()
    config = Config.fromfile(CASCADE)
    config.merge_from_dict({'model.test_cfg.rpn.max_per_img': 50, 'model.test_cfg.rcnn.max_per_img': 10})
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    randomise_norms(model)
    return model


def sample(height=480, width=640):
    meta = dict(
        img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width), scale_factor=(1.0, 1.0)
    )
    return DetDataSample(metainfo=meta)


def near(right, found):
    """Return the share of detections that have one beside them among the others, with about the same score."""
    overlaps = box_iou(right.bboxes, found.bboxes)
    return ((overlaps > 0.8) & ((right.scores[:, None] - found.scores).abs() < 0.05)).any(dim=1).float().mean()


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_detections_are_those_of_float32_up_to_rounding(config, dtype):
    subject = detector(config)
    right = [one.pred_instances for one in subject.run()()]
    trained = subject.model
    found = []
    for model in (deploy(trained, dtype=dtype), deploy(trained).to(dtype)):
        subject.model = model
        found.append([one.pred_instances for one in subject.run()()])
    for one, other, moved in zip(right, *found, strict=True):
        assert other.scores.dtype is other.bboxes.dtype is torch.float32
        assert near(one, other) > 0.6
        assert torch.equal(other.bboxes, moved.bboxes) and torch.equal(other.scores, moved.scores)
        if 'masks' in one:
            assert torch.equal(other.masks, moved.masks)


@pytest.mark.parametrize('move', ['half', 'bfloat16'])
def test_a_moved_detector_normalises_images_in_float32(move):
    deployed = deploy(detector(TINY_MASK_RCNN).model)
    mean = deployed.data_preprocessor.mean.clone()
    getattr(deployed, move)()
    assert torch.equal(deployed.data_preprocessor.mean, mean) and mean.dtype is torch.float32
    assert next(deployed.backbone.parameters()).dtype is not torch.float32


@pytest.mark.parametrize('dtype', HALF)
def test_cascades(dtype):
    trained = cascade()
    x = torch.randn(1, 3, 256, 320)
    seen = []
    with torch.no_grad():
        deployed = deploy(trained, dtype=dtype)
        for head in deployed.roi_head.bbox_head:
            head.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0].dtype, outputs[1].dtype)))
        for model in (trained, deployed):
            (found,) = model.predict(x, [sample(256, 320)], rescale=False)
            assert found.pred_instances.bboxes.dtype is torch.float32
            assert found.pred_instances.bboxes.isfinite().all()
    assert seen and all(dtypes == (dtype, torch.float32) for dtypes in seen)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('head', ['TOODHead', 'VFNetHead', 'ATSSHead', 'GFLHead', 'FCOSHead', 'RTMDetSepBNHead'])
def test_one_stage_heads_return_boxes_in_float32(head, dtype):
    trained = detector(TINY_RETINANET).model
    trained.bbox_head = build_head(head)
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        right = trained.bbox_head(trained.extract_feat(x))
        deployed = deploy(trained, dtype=dtype)
        found = deployed.bbox_head(deployed.extract_feat(x))
    flat = [list(torch.utils._pytree.tree_leaves(outputs)) for outputs in (right, found)]
    assert all(one.dtype is torch.float32 for one in flat[1])
    for one, other in zip(*flat, strict=True):
        assert (one - other).abs().mean() <= (0.1 if dtype is torch.bfloat16 else 0.02) * one.abs().mean()


def build_head(name):
    """Return a dense head of mmdet's for the tiny detector, its final layers with weights that are not tiny."""
    anchors = dict(
        type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
    )
    arguments = dict(type=name, num_classes=3, in_channels=16, feat_channels=32, stacked_convs=1)
    if name in ('TOODHead', 'ATSSHead', 'GFLHead'):
        arguments['anchor_generator'] = anchors
    if name == 'RTMDetSepBNHead':
        arguments['anchor_generator'] = dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32, 64, 128])
        arguments['bbox_coder'] = dict(type='DistancePointBBoxCoder')
    if name == 'TOODHead':
        arguments.update(num_dcn=0, bbox_coder=dict(type='DeltaXYWHBBoxCoder'))
    torch.manual_seed(0)
    head = MODELS.build(arguments).eval()
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    return head


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_autocast_does_not_change_a_detector(form, config):
    subject = detector(config)
    subject.model = deploy(subject.model)
    right = [one.pred_instances for one in subject.run()()]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = [one.pred_instances for one in subject.run()()]
    for one, other in zip(right, found, strict=True):
        assert torch.equal(one.bboxes, other.bboxes) and torch.equal(one.scores, other.scores)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_does_not_change_backbone_and_neck(form, dtype):
    backbone_, neck = deploy(backbone('s1'), dtype=dtype), deploy(SHViTFPN([128, 224, 320], 32).eval(), dtype=dtype)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        right = backbone_(x.to(dtype))
        levels = neck(right)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = backbone_(x)
            assert all(torch.equal(one, other) for one, other in zip(right, found, strict=True))
            assert all(torch.equal(one, other) for one, other in zip(levels, neck(found), strict=True))


def test_floats_are_cast_in_whatever_holds_them():
    whole, number = torch.ones(2, dtype=torch.long), torch.ones(2)
    value = ([number, whole], {'a': (number,)}, 'text')
    assert floats_as(value, torch.float32)[0] is value[0]
    (one, two), named, text = floats_as(value, torch.float16)
    assert one.dtype is named['a'][0].dtype is torch.float16 and two is whole and text == 'text'
