"""RoIAlign as weighted sums of pixels is torchvision's."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from deployed_models import detector
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from paths import ROOT
from timed import TINY_MASK_RCNN
from torch import nn

from shvit_det import deploy, kernels
from shvit_det.compat.mmcv_ops.roi_average import roi_average
from shvit_det.deployment import roi_align as module
from shvit_det.deployment.roi_align import ChannelsLastRoIAlign, pooled_regions, replace_roi_layers
from shvit_det.kernels.kernel_functions import Kernels

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
HEIGHT, WIDTH = 13, 22
# corners in pixels of a map of 13x22 at scale 1
REGIONS = {
    'inside': (2.3, 1.7, 15.2, 9.9),
    'the whole map': (0, 0, WIDTH, HEIGHT),
    'around the map': (-9, -7, 40, 31),
    'across the left edge': (-6.5, 2, 4.5, 8),
    'across the lower right corner': (15, 8, 30, 20),
    'outside, near': (WIDTH, HEIGHT, WIDTH + 2, HEIGHT + 2),
    'outside, above': (3, -60, 9, -40),
    'outside, beyond': (400, 300, 450, 333),
    'tiny': (7.01, 5.02, 7.02, 5.04),
    'no width': (5, 3, 5, 9),
    'no height': (5, 3, 9, 3),
    'a point': (5.5, 3.5, 5.5, 3.5),
    'long': (0.1, 4, 21.9, 4.4),
    'huge': (-900, -700, 1100, 800),
    'half a pixel outside': (-1, -1, 0, 0),
    'a pixel outside': (-2, -2, 0, 0),
    'its samples on both borders': (-2, -2, WIDTH + 1, HEIGHT + 1),
}


def features(batch=1, channels=5, height=HEIGHT, width=WIDTH, dtype=torch.float32):
    made = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def agrees(maps, rois, size, scale=1.0, ratio=0, aligned=True):
    expected = torchvision.ops.roi_align(maps, rois, size, scale, ratio, aligned)
    found = roi_average(maps, rois, size, scale, ratio, aligned)
    assert found.shape == expected.shape and found.dtype is expected.dtype
    if len(rois):
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found - expected).abs().max() <= TOLERANCE[maps.dtype] * maps.abs().max()
    if maps.dtype is torch.float32 and kernels.load() is not None:
        for planar in (False, True):
            levels = torch.zeros(len(rois))
            found = kernels.load().roi_align([maps], rois, levels, [scale], size, ratio, aligned, planar)
            assert found.shape == expected.shape
            assert found.is_contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)
            assert ((found - expected).abs() <= TOLERANCE[maps.dtype] * maps.abs().max()).all()
    return expected


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2, 3])
@pytest.mark.parametrize('name', REGIONS)
def test_every_kind_of_region(name, ratio, aligned, dtype):
    rois = torch.tensor([(0, *REGIONS[name])], dtype=dtype)
    for size in ((7, 7), (3, 2), (1, 1)):
        agrees(features(dtype=dtype), rois, size, 1.0, ratio, aligned)


@pytest.mark.parametrize('ratio', [0, 2])
def test_many_regions_of_several_images(ratio):
    regions = torch.tensor(list(REGIONS.values())).repeat(3, 1)
    images = torch.arange(len(regions)) % 3
    rois = torch.cat([images[:, None], regions * 4], dim=1)
    expected = agrees(features(batch=3), rois, (7, 7), 0.25, ratio)
    assert expected.abs().amax((1, 2, 3)).gt(0).sum() > len(regions) / 2


def test_no_regions():
    agrees(features(), torch.zeros(0, 5), (7, 7))


def test_regions_that_have_no_samples_are_zero():
    rois = torch.tensor([(0, *REGIONS[name]) for name in ('a point', 'outside, beyond')])
    assert not agrees(features(), rois, (7, 7)).any()
    undefined = torch.tensor([(0, 9.0, 3, 2, 8), (0, float('nan'), 2, 9, 8)])
    assert not roi_average(features(), undefined, (7, 7)).any()
    if kernels.load() is not None:
        assert not kernels.load().roi_align([features()], undefined, torch.zeros(2), [1.0], (7, 7), 0, True).any()


@st.composite
def cases(draw):
    coordinate, length = st.floats(-20, 60, width=32), st.floats(0, 50, width=32)
    batch = draw(st.integers(1, 3))
    region = st.tuples(st.integers(0, batch - 1), coordinate, coordinate, length, length)
    rois = torch.tensor(draw(st.lists(region, min_size=1, max_size=6)), dtype=torch.float32)
    rois[:, 3:] += rois[:, 1:3]
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    size = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    scale = draw(st.sampled_from([1.0, 0.5, 1 / 3]))
    return features(batch, 3, height, width), rois, size, scale, draw(st.integers(0, 3)), draw(st.booleans())


@settings(max_examples=200, deadline=None)
@given(cases())
def test_any_regions(case):
    agrees(*case)


@pytest.fixture(params=['kernels', 'weighted sums'])
def calls(request, monkeypatch):
    """What was called instead of the plain layer: the kernels, or the weighted sums where there are none."""
    seen = []

    def watched(original):
        def call(*arguments):
            seen.append(request.param)
            return original(*arguments)

        return call

    monkeypatch.setattr(module, 'roi_average', watched(roi_average))  # of bfloat16 also where the kernels lack that
    if request.param == 'weighted sums':
        monkeypatch.setattr(kernels, 'load', lambda: None)
    elif kernels.load() is None:
        pytest.skip('there are no kernels for this processor')
    else:
        monkeypatch.setattr(Kernels, 'roi_align', watched(Kernels.roi_align))
    return seen


ROIS = torch.tensor([(0, 3.0, 4, 60, 40), (1, 10, 2, 30, 50)])


def layers(**arguments):
    plain = RoIAlign((7, 5), 0.25, **arguments)
    return plain, ChannelsLastRoIAlign(plain)


@pytest.mark.parametrize('arguments', [{}, dict(sampling_ratio=2), dict(aligned=False)])
def test_a_layer_stands_for_the_plain_one(calls, arguments):
    plain, faster = layers(**arguments)
    for name in ('output_size', 'spatial_scale', 'sampling_ratio', 'pool_mode', 'aligned'):
        assert getattr(faster, name) == getattr(plain, name)
    maps = features(batch=2)
    torch.testing.assert_close(faster(maps, ROIS), plain(maps, ROIS), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


def test_bfloat16_is_rounded_once(calls):
    plain, faster = layers()
    maps = features(batch=2).bfloat16()
    found = faster(maps, ROIS.bfloat16())
    assert found.dtype is torch.bfloat16 and len(calls) == 1
    torch.testing.assert_close(found, plain(maps, ROIS.bfloat16()), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    'maps',
    [features(batch=2).contiguous(), features(batch=2, dtype=torch.float64), features(batch=2).requires_grad_()],
    ids=['NCHW', 'float64', 'with a gradient'],
)
def test_where_it_cannot_serve_the_plain_layer_runs(calls, maps):
    plain, faster = layers()
    rois = ROIS.to(maps.dtype)
    found = faster(maps, rois)
    assert torch.equal(found, plain(maps, rois)) and not calls
    if maps.requires_grad:
        found.sum().backward()
        assert maps.grad.any()


@pytest.mark.parametrize('name', ['jit.is_tracing', 'compiler.is_compiling'])
def test_graphs_are_made_of_the_plain_layer(calls, monkeypatch, name):
    monkeypatch.setattr(f'torch.{name}', lambda: True)
    layers()[1](features(batch=2), ROIS)
    assert not calls


def test_deployed_detectors_use_it_and_find_the_same(calls, monkeypatch):
    subject = detector(TINY_MASK_RCNN)
    trained = subject.model
    with torch.no_grad():
        with monkeypatch.context() as context:
            context.setattr('shvit_det.deployment.detector.replace_roi_layers', lambda _: None)
            subject.model = deploy(trained)
        expected = [sample.pred_instances for sample in subject.run()()]
        assert not calls
        subject.model = deploy(trained)
        found = [sample.pred_instances for sample in subject.run()()]
    assert len(calls) >= 2  # boxes and masks
    assert subject.model.state_dict().keys() == deploy(trained).state_dict().keys()
    assert not any(isinstance(layer, ChannelsLastRoIAlign) for layer in trained.modules())
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) == 20
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-2)
        assert (one.masks != other.masks).float().mean() < 1e-3


def extractor(num_levels=4, **arguments):
    register_all_modules()
    torch.manual_seed(0)
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0, **arguments)
    made = SingleRoIExtractor(layer, 5, [4, 8, 16, 32][:num_levels])
    pyramid = [features(2, 5, 256 // stride, 320 // stride) for stride in (4, 8, 16, 32)[:num_levels]]
    corners = torch.rand(60, 2) * torch.tensor([300.0, 240])
    sides = 2 ** (torch.rand(60, 2) * 9)  # for all levels
    return made, pyramid, torch.cat((torch.randint(0, 2, (60, 1)), corners, corners + sides), dim=1)


@pytest.mark.parametrize('num_levels', [1, 2, 4])
@pytest.mark.parametrize('linear', [True, False])
def test_an_extractor_pools_all_levels_at_once(calls, num_levels, linear):
    made, pyramid, rois = extractor(num_levels)
    expected = made(pyramid, rois)
    roi_head = nn.Module()
    roi_head.bbox_roi_extractor = made
    roi_head.bbox_head = Shared2FCBBoxHead(in_channels=5, num_classes=2) if linear else nn.Module()
    replace_roi_layers(SimpleNamespace(roi_head=roi_head))
    assert made.forward.func is pooled_regions
    with torch.no_grad():
        found = made(pyramid, rois)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not linear or calls[0] == 'weighted sums' or found.is_contiguous()
        if num_levels > 1:  # regions enlarged by mmdet
            assert (made(pyramid, rois, 1.5) - expected).abs().max() > 0.1
        assert made(pyramid, rois[:0]).shape == (0, 5, 7, 7)
        undefined = rois.clone()
        undefined[7, 2:] = float('nan')
        assert not made(pyramid, undefined)[7].any()
    count = len(calls)
    assert count > 0
    pyramid[0].requires_grad_()
    made(pyramid, rois).sum().backward()
    assert pyramid[0].grad.any()


def test_regions_are_not_rounded_to_the_data_type_of_the_features(calls):
    made, pyramid, rois = extractor()
    expected = made(pyramid, rois)
    replace_roi_layers(SimpleNamespace(roi_head=SimpleNamespace(bbox_roi_extractor=made)))
    with torch.no_grad():
        found = made([level.bfloat16() for level in pyramid], rois)
    assert calls and (found.float() - expected).abs().max() <= 2**-7 * expected.abs().max()


def test_all_extractors_of_a_cascade_but_not_maxima():
    register_all_modules()
    config = Config.fromfile(ROOT / 'tests' / 'data' / 'cascade_mask_rcnn_shvit.py')
    model = MODELS.build(config.model)
    first, *others = model.roi_head.bbox_roi_extractor
    first.roi_layers[1].pool_mode = 'max'
    maximum = first.roi_layers[1]
    replace_roi_layers(model)
    assert first.roi_layers[1] is maximum
    replaced = [layer for one in (*others, *model.roi_head.mask_roi_extractor) for layer in one.roi_layers]
    replaced += [first.roi_layers[index] for index in (0, 2, 3)]
    assert len(replaced) >= 4 * len(others) + 3
    assert all(type(layer) is ChannelsLastRoIAlign for layer in replaced)
