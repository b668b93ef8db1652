"""The stand-in for mmcv's compiled ops, through mmcv's own functions, against plain references."""

import importlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import reference_ops as reference
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from shvit_det.compat import mmcv_ops
from shvit_det.compat.mmcv_ops import roi_align
from shvit_det.compat.mmcv_ops.nms import separate_groups
from shvit_det.registry import MODELS

if not mmcv_ops.install():
    pytest.skip('mmcv has its compiled ops here, which serve', allow_module_level=True)

ops = importlib.import_module('mmcv.ops')  # cannot be imported before install()
attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')

THRESHOLDS = ['0.3', '0.5', '0.6', '0.7']
slow_references = settings(max_examples=60, deadline=None)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# The stand-in as a module


def run_python(code: str, *arguments: str) -> str:
    process = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_models_import_in_a_fresh_process() -> None:
    code = 'import shvit_det, mmdet.models, mmcv.ops; print(mmcv._ext.__stand_in__)'
    assert run_python(code) == 'shvit_det\n'


COMPILED = """
def nms(*args, **kwargs):
    return 'compiled'
def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
"""


@pytest.mark.slow
def test_steps_aside_for_compiled_ops(tmp_path: Path) -> None:
    (tmp_path / '_ext.py').write_text(COMPILED)
    code = """if True:
        import sys
        import mmcv
        mmcv.__path__.append(sys.argv[1])
        from shvit_det.compat import mmcv_ops
        assert mmcv_ops.install() is False
        assert not mmcv_ops.is_stand_in()
        import mmcv.ops
        from mmcv.ops import box_iou_rotated
        print(sys.modules['mmcv.ops.nms'].ext_module.nms())
    """
    assert run_python(code, str(tmp_path)) == 'compiled\n'


def test_warns_of_compiled_ops_that_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / '_ext.py').write_text("raise ImportError('undefined symbol: _ZN2at4_ops')")
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.delattr(mmcv, '_ext')
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, str(tmp_path)])
    with pytest.warns(RuntimeWarning, match=r'undefined symbol.*mim install.*mmcv-lite'):
        assert mmcv_ops.install()
    assert mmcv_ops.is_stand_in()


def test_second_install_changes_nothing() -> None:
    before = sys.modules['mmcv._ext']
    assert mmcv_ops.install()
    assert sys.modules['mmcv._ext'] is before is mmcv._ext


@pytest.mark.filterwarnings('ignore:.*find_loader')
def test_is_found_like_any_module() -> None:
    assert importlib.util.find_spec('mmcv._ext').name == 'mmcv._ext'
    asking = importlib.import_module('mmcv.utils.ext_loader')
    assert asking.pkgutil.find_loader('mmcv._ext') is not None  # as mmengine and mmcv do, also on Python 3.14
    assert 'stand-in' in mmcv._ext.__doc__


def test_missing_op_names_itself_and_the_way_out() -> None:
    boxes = torch.zeros(1, 5)
    with pytest.raises(NotImplementedError, match=r"'box_iou_rotated'.*mim install"):
        importlib.import_module('mmcv.ops.box_iou_rotated').box_iou_rotated(boxes, boxes)
    with pytest.raises(NotImplementedError, match=r"'roi_pool_forward'.*mim install"):  # mmdet.apis imports its class
        ops.RoIPool(3)(torch.zeros(1, 1, 4, 4), boxes)
    assert not hasattr(mmcv._ext, '__path__')


@pytest.mark.parametrize(
    'name', ['box_iou_rotated', 'nms_rotated', 'carafe', 'SparseConv3d', 'bbox_overlaps', 'SoftmaxFocalLoss']
)
def test_a_program_with_an_op_of_its_own_for_a_missing_one_takes_it(name: str) -> None:
    with pytest.raises(ImportError, match=rf"'{name}'.*mim install"):
        exec(f'from mmcv.ops import {name}')


def test_ops_that_are_there_can_all_be_imported() -> None:
    names: dict[str, object] = {}
    exec('from mmcv.ops import *', names)
    assert {'nms', 'batched_nms', 'RoIAlign', 'DeformConv2d', 'SyncBatchNorm', 'CornerPool', 'SAConv2d'} <= set(names)
    assert not hasattr(ops, 'an_op_that_never_was')
    assert importlib.import_module('mmcv.ops.carafe').CARAFEPack  # mmdet's FPN_CARAFE asks for it there


def test_environment_report_names_the_stand_in() -> None:
    assert 'torchvision' in ops.get_compiler_version()
    assert ops.get_compiling_cuda_version() == 'not available'


# Suppression


@st.composite
def box_lists(draw: st.DrawFn, max_size: int = 12) -> list[tuple[int, int, int, int]]:
    """Boxes on a coarse grid, where overlaps equal to a threshold and empty boxes are common."""
    corner, extent = st.integers(0, 8), st.integers(0, 6)
    boxes = draw(st.lists(st.tuples(corner, corner, extent, extent), max_size=max_size))
    return [(x, y, x + width, y + height) for x, y, width, height in boxes]


def distinct_scores(count: int) -> list[float]:
    """Scores between 0 and 1, all different and in no order."""
    return [0.05 + 0.9 * (index * 0.6180339887 % 1) for index in range(count)]


def as_boxes(boxes: list[tuple[int, int, int, int]], dtype: torch.dtype) -> Tensor:
    return torch.tensor(boxes, dtype=dtype).reshape(-1, 4)


@slow_references
@given(
    boxes=box_lists(),
    threshold=st.sampled_from(THRESHOLDS),
    offset=st.sampled_from([0, 1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_ties=st.booleans(),
)
def test_nms(boxes: list, threshold: str, offset: int, dtype: torch.dtype, has_ties: bool) -> None:
    scores = [0.5] * len(boxes) if has_ties else distinct_scores(len(boxes))
    inputs = as_boxes(boxes, dtype), torch.tensor(scores, dtype=dtype)
    dets, kept = ops.nms(*inputs, float(threshold), offset=offset)
    assert kept.tolist() == reference.nms(boxes, scores, threshold, offset)
    assert dets.equal(torch.cat([inputs[0], inputs[1][:, None]], 1)[kept])


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('num_groups', [1, 3, 80])
def test_nms_of_many_boxes_in_groups_that_lie_apart(num_groups: int, offset: int) -> None:
    """Groups are suppressed one by one, with the result of all at once."""
    generator = torch.Generator().manual_seed(num_groups)
    corners = torch.rand(1500, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + torch.rand(1500, 2, generator=generator) * 30), 1)
    boxes[:4] = boxes[4:8].flip(1)  # the wrong way round
    boxes += (torch.arange(1500) % num_groups * 100.0)[:, None]
    scores = torch.rand(1500, generator=generator).mul(50).round() / 50  # many are equal
    right = torchvision.ops.nms(boxes + torch.tensor([0, 0, offset, offset]), scores, 0.5)
    assert len(separate_groups(boxes)) >= num_groups
    assert ops.nms(boxes, scores, 0.5, offset=offset)[1].equal(right)
    boxes[:, 2] = math.nan
    assert len(separate_groups(boxes)) == 1


def test_nms_keeps_an_overlap_equal_to_the_threshold() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 1], [1, 0, 5, 1]])
    assert len(ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.6)[1]) == 2


def test_nms_takes_half_precision_and_numpy() -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]])
    scores = torch.tensor([0.25, 0.5, 0.125])
    for dtype in (torch.bfloat16, torch.float16):
        dets, kept = ops.nms(boxes.to(dtype), scores, 0.5)
        assert kept.tolist() == [1, 2]
        assert ops.nms(boxes.to(dtype), scores.to(dtype), 0.5)[0].dtype == dtype
    dets, kept = ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and kept.tolist() == [1, 2]


@slow_references
@given(boxes=box_lists(), num_classes=st.integers(1, 3), split_threshold=st.sampled_from([1, 100]))
def test_batched_nms_suppresses_within_classes(boxes: list, num_classes: int, split_threshold: int) -> None:
    if not boxes:
        return  # mmcv takes the largest coordinate of all boxes
    classes = [index % num_classes for index in range(len(boxes))]
    scores = distinct_scores(len(boxes))
    expected = []
    for wanted in range(num_classes):
        members = [index for index, label in enumerate(classes) if label == wanted]
        kept = reference.nms([boxes[index] for index in members], [scores[index] for index in members], '0.5', 0)
        expected += [members[index] for index in kept]
    _, kept = ops.batched_nms(
        as_boxes(boxes, torch.float32),
        torch.tensor(scores),
        torch.tensor(classes),
        {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': split_threshold},
    )
    assert kept.tolist() == sorted(expected, key=lambda index: -scores[index])


@slow_references
@given(
    boxes=box_lists(),
    threshold=st.sampled_from(THRESHOLDS),
    method=st.sampled_from(['naive', 'linear', 'gaussian']),
    min_score=st.sampled_from([1e-3, 0.3]),
    offset=st.sampled_from([0, 1]),
    has_ties=st.booleans(),
)
def test_soft_nms(boxes: list, threshold: str, method: str, min_score: float, offset: int, has_ties: bool) -> None:
    scores = [0.5] * len(boxes) if has_ties else distinct_scores(len(boxes))
    inputs = as_boxes(boxes, torch.float64), torch.tensor(scores, dtype=torch.float64)
    dets, kept = ops.soft_nms(*inputs, float(threshold), sigma=0.5, min_score=min_score, method=method, offset=offset)
    picked = reference.soft_nms(boxes, scores, threshold, 0.5, min_score, method, offset)
    assert kept.tolist() == [index for index, _ in picked]
    assert dets[:, :4].equal(inputs[0][kept])
    np.testing.assert_allclose(dets[:, 4], [score for _, score in picked], rtol=1e-12)
    assert inputs[1].tolist() == scores  # the op must not lower its input


def test_soft_nms_order_of_equal_scores() -> None:
    # Boxes that drop out leave gaps in the compiled op's list, which decide between equal scores.
    corners = (4 * random(60, 2)).round()
    boxes = torch.cat([corners, corners + 5], 1)
    scores = [0.5] * len(boxes)
    _, kept = ops.soft_nms(boxes, torch.tensor(scores).double(), 0.3, min_score=0.2)
    picked = reference.soft_nms(boxes.tolist(), scores, '0.3', 0.5, 0.2, 'linear', 0)
    assert kept.tolist() == [index for index, _ in picked]
    assert kept.tolist() != sorted(kept.tolist())


@slow_references
@given(boxes=box_lists(), threshold=st.sampled_from(THRESHOLDS))
def test_nms_match(boxes: list, threshold: str) -> None:
    scores = distinct_scores(len(boxes))
    dets = torch.cat([as_boxes(boxes, torch.float32), torch.tensor(scores)[:, None]], 1)
    groups = ops.nms_match(dets, float(threshold))
    assert [group.tolist() for group in groups] == reference.nms_match(boxes, scores, threshold)


def test_nms_match_joins_boxes_that_overlap_by_the_threshold() -> None:
    dets = torch.tensor([[0.0, 0, 4, 1, 0.8], [1, 0, 5, 1, 0.9]])
    assert [group.tolist() for group in ops.nms_match(dets, 0.6)] == [[1, 0]]


# Pooling of regions

REGIONS = [
    [0, 2.3, 1.1, 17.9, 12.7],
    [1, 0, 0, 3.2, 2.9],
    [1, -9.5, -7.3, 5.1, 4.2],  # partly outside
    [0, 14.2, 9.3, 40.5, 30.1],
    [1, 60, 60, 70, 75],  # outside
    [0, 6.2, 5.1, 6.2, 5.1],  # without extent
]


def features_and_rois() -> tuple[Tensor, Tensor]:
    return random(2, 2, 7, 9), torch.tensor(REGIONS, dtype=torch.float64)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_roi_align(aligned: bool, ratio: int, scale: float) -> None:
    features, rois = features_and_rois()
    expected = reference.roi_align(features.numpy(), rois.numpy(), (3, 2), scale, ratio, aligned)
    layer = ops.RoIAlign((3, 2), scale, ratio, 'avg', aligned)
    np.testing.assert_allclose(layer(features, rois), expected, atol=1e-12)
    np.testing.assert_allclose(layer(features.float(), rois.float()), expected, atol=1e-5)
    channels_last = features.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(layer(channels_last, rois), expected, atol=1e-12)
    assert gradcheck(lambda maps: layer(maps, rois), features.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_averages_are_those_of_torchvision(aligned: bool, ratio: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On regions of all sizes, most of them partly outside; the other way is that of GPUs and traced graphs."""
    features, corners = random(3, 5, 40, 60), 100 * random(60, 2, 2).sort(1).values.flatten(1)
    images = torch.arange(60, dtype=torch.float64).remainder(2)[:, None]  # none of the third
    layer, results = ops.RoIAlign((7, 4), 0.5, ratio, 'avg', aligned), []
    for plain in (True, False):
        monkeypatch.setattr(roi_align, '_supports_plain_torch', lambda _, chosen=plain: chosen)
        maps = features.clone().requires_grad_()
        pooled = layer(maps, torch.cat((images, corners), 1))
        pooled.square().sum().backward()
        results.append((pooled.detach(), maps.grad))
    (pooled, grad), (expected, expected_grad) = results
    assert expected.any() and expected_grad[0].any() and expected_grad[1].any() and not expected_grad[2].any()
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('aligned', [True, False])
def test_points_on_the_last_line_with_a_value_are_those_of_torchvision(ratio: int, aligned: bool) -> None:
    """One pixel outside, the value falls from the border's to 0, and rounding decides; torchvision rounds as mmcv."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(-8, 30, (400, 2, 2), generator=generator).sort(1).values.flatten(1)
    rois = torch.cat([torch.zeros(400, 1), corners], 1)
    features = random(1, 2, 9, 11).float()
    for size, scale in (((7, 7), 0.5), ((3, 7), 0.25), ((5, 3), 1.0)):
        pooled = ops.RoIAlign(size, scale, ratio, 'avg', aligned)(features, rois)
        expected = torch.ops.torchvision.roi_align(features, rois, scale, *size, ratio, aligned)
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_regions_without_any_sample() -> None:
    features, _ = features_and_rois()
    inverted = torch.tensor([[0, 9.0, 9.0, 2.0, 2.0]], dtype=torch.float64)
    assert not ops.RoIAlign((3, 2), 1.0, 0)(features, inverted).any()


def test_a_traced_graph_takes_other_regions() -> None:
    features, rois = features_and_rois()
    layer = ops.RoIAlign((3, 2), 0.5)
    traced = torch.jit.trace(layer, (features, rois[:2]))
    torch.testing.assert_close(traced(features, rois), layer(features, rois), rtol=0, atol=1e-12)


def test_the_maximum_of_a_bin_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*mim install"):
        ops.RoIAlign(3, 0.5, pool_mode='max')(*features_and_rois())


def test_pooling_of_no_regions() -> None:
    layer = ops.RoIAlign(3, 0.5)
    features = random(2, 3, 7, 9).requires_grad_()
    pooled = layer(features, torch.zeros(0, 5, dtype=torch.float64))
    assert pooled.shape == (0, 3, 3, 3)
    pooled.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_pooling_of_half_precision_is_the_rounded_result(dtype: torch.dtype) -> None:
    # So wide that half precision cannot tell neighbouring pixels apart on the right.
    half = random(1, 2, 3, 2100).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    rois = torch.tensor([[0, 4180.3, 0, 4190.9, 5.2], [0, 1.7, 1.2, 9.4, 5.9]])
    results = [ops.RoIAlign(3, 0.5)(features, rois) for features in (half, full)]
    assert results[0].dtype == dtype
    assert results[0].equal(results[1].to(dtype))
    for result in results:
        result.sum().backward()
    assert half.grad.equal(full.grad.to(dtype))
    assert half.grad.any()


# Focal losses

TARGETS = [0, 2, 3, 1, 3]  # of three classes; 3 is the background


@pytest.mark.parametrize('gamma', [2.0, 0.5, 0.0])
@pytest.mark.parametrize('weight', [[], [0.5, 2.0, 3.0]])
def test_sigmoid_focal_loss(gamma: float, weight: list[float]) -> None:
    logits, target = 3 * random(5, 3), torch.tensor(TARGETS)
    weights = torch.tensor(weight, dtype=torch.float64) if weight else None
    expected = reference.sigmoid_focal_loss(logits.numpy(), TARGETS, gamma, 0.3, weight)

    def loss(logits: Tensor, reduction: str = 'none') -> Tensor:
        return ops.sigmoid_focal_loss(logits, target, gamma, 0.3, weights, reduction)

    np.testing.assert_allclose(loss(logits), expected, rtol=1e-9)
    np.testing.assert_allclose(loss(logits, 'mean'), expected.sum() / 5, rtol=1e-9)
    assert gradcheck(loss, logits.requires_grad_())


def test_sigmoid_focal_loss_of_certain_logits() -> None:
    logits = torch.tensor([[100.0, -100], [-100, 100]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, 'none')
    # Right ones cost nothing; wrong ones cost their logit, times alpha or 1 - alpha.
    assert loss.tolist() == [[0, 0], [25, 75]]
    loss.sum().backward()
    assert logits.grad.tolist() == [[0, 0], [-0.25, 0.75]]


def test_sigmoid_focal_loss_of_bfloat16() -> None:
    half = random(5, 3).bfloat16().requires_grad_()
    full = half.detach().float().requires_grad_()
    target = torch.tensor(TARGETS)
    losses = [ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none') for x in (half, full)]
    assert losses[0].equal(losses[1].bfloat16())
    for loss in losses:
        loss.sum().backward()
    assert half.grad.equal(full.grad.bfloat16())


# Deformable operators, masked convolution

GEOMETRY = {'stride': (2, 1), 'padding': (1, 2), 'dilation': (1, 2), 'groups': 2}


def deform_conv_inputs(deform_groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, offsets, mask and weight of a 3x2 kernel for ``GEOMETRY``."""
    features, weight = random(2, 4, 5, 6), random(6, 2, 3, 2, seed=1)
    offset = random(2, deform_groups * 12, 3, 8, seed=2)
    return features, offset, random(2, deform_groups * 6, 3, 8, seed=3).sigmoid(), weight


@pytest.mark.parametrize('deform_groups', [1, 2])
def test_deform_conv(deform_groups: int) -> None:
    features, offset, mask, weight = deform_conv_inputs(deform_groups)
    expected = reference.deform_conv2d(
        *(x.numpy() for x in (features, offset, torch.ones_like(mask), weight)),
        **GEOMETRY,
        deform_groups=deform_groups,
    )
    settings = *GEOMETRY.values(), deform_groups

    def convolve(features: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return ops.deform_conv2d(features, offset, weight, *settings)

    np.testing.assert_allclose(convolve(features, offset, weight), expected, atol=1e-12)
    channels_last = features.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(convolve(channels_last, offset, weight), expected, atol=1e-12)
    inputs = [tensor.requires_grad_() for tensor in (features, offset, weight)]
    assert gradcheck(convolve, inputs, fast_mode=True)


@pytest.mark.parametrize('deform_groups', [1, 2])
@pytest.mark.parametrize('has_bias', [True, False])
def test_modulated_deform_conv(deform_groups: int, has_bias: bool) -> None:
    inputs = deform_conv_inputs(deform_groups)
    bias = random(6, seed=4) if has_bias else None
    expected = reference.deform_conv2d(*(x.numpy() for x in inputs), **GEOMETRY, deform_groups=deform_groups)
    if bias is not None:
        expected += bias.numpy()[:, None, None]
    settings = *GEOMETRY.values(), deform_groups

    def convolve(*inputs: Tensor) -> Tensor:
        return ops.modulated_deform_conv2d(*inputs, *settings)

    np.testing.assert_allclose(convolve(*inputs, bias), expected, atol=1e-12)
    inputs = [x if x is None else x.requires_grad_() for x in (*inputs, bias)]
    assert gradcheck(convolve, inputs, fast_mode=True)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_offsets_of_a_larger_map_are_read_by_their_place_in_memory(memory_format: torch.memory_format) -> None:
    """As mmdet's DyHead uses those of one level for the smaller level above it."""
    features, weight = random(2, 2, 3, 4), random(3, 2, 3, 3, seed=1)
    larger = [random(2, channels, 5, 6, seed=channels) for channels in (18, 9)]
    larger = [x.to(memory_format=memory_format).requires_grad_() for x in larger]
    read = [x.detach().flatten(1)[:, : x.shape[1] * 12].reshape(2, -1, 3, 4).requires_grad_() for x in larger]
    found = ops.modulated_deform_conv2d(features, *larger, weight, None, 1, 1)
    expected = ops.modulated_deform_conv2d(features, *read, weight, None, 1, 1)
    torch.testing.assert_close(found, expected)
    found.sin().sum().backward()
    expected.sin().sum().backward()
    for whole, part in zip(larger, read, strict=True):
        gradient = whole.grad.flatten(1)
        torch.testing.assert_close(gradient[:, : part[0].numel()], part.grad.flatten(1))
        assert gradient[:, part[0].numel() :].count_nonzero() == 0
    with pytest.raises(ValueError, match='too few'):
        ops.modulated_deform_conv2d(random(2, 2, 9, 9), *larger, weight, None, 1, 1)


def test_dyhead_runs_behind_our_neck() -> None:
    necks = [
        dict(type='SHViTFPN', in_channels=[8, 8, 8], out_channels=16, num_outs=5, num_upsamples=2),
        dict(type='mmdet.DyHead', in_channels=16, out_channels=16, num_blocks=1, zero_init_offset=False),
    ]
    model = nn.Sequential(*map(MODELS.build, necks))
    levels = model([random(1, 8, size, size, seed=size).float() for size in (16, 8, 4)])
    assert [level.shape[-1] for level in levels] == [64, 32, 16, 8, 4]


def whole_offsets(*shape: int, largest: int) -> Tensor:
    """Offsets that put points on pixels, on the border's outside and beyond, where derivatives jump."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


@pytest.mark.parametrize('largest', [0, 1, 3])
@pytest.mark.parametrize(('stride', 'padding'), [(1, 1), (2, 2), (1, 0)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_offsets_have_the_gradient_of_mmcv_where_derivatives_jump(
    largest: int, stride: int, padding: int, dtype: torch.dtype
) -> None:
    features, weight = random(1, 2, 5, 6), random(3, 2, 3, 3, seed=1)
    size = [(extent + 2 * padding - 3) // stride + 1 for extent in (5, 6)]
    offset = whole_offsets(1, 18, *size, largest=largest)
    mask, grad_output = random(1, 9, *size, seed=3).sigmoid(), random(1, 3, *size, seed=4)
    arrays = features, offset, mask, weight, grad_output
    expected, expected_unmodulated = (
        reference.deform_conv2d_offset_gradient(
            *(x.numpy() for x in (*arrays[:2], mask, *arrays[3:])), stride=stride, padding=padding
        )
        for mask in (mask, torch.ones_like(mask))
    )
    assert np.count_nonzero(expected) < expected.size or padding == largest == 0
    features, offset, mask, weight, grad_output = (tensor.to(dtype) for tensor in arrays)
    offset.requires_grad_()
    ops.modulated_deform_conv2d(features, offset, mask, weight, None, stride, padding).backward(grad_output)
    np.testing.assert_allclose(offset.grad, expected, atol=1e-5)
    offset.grad = None
    ops.deform_conv2d(features, offset, weight, stride, padding).backward(grad_output)
    np.testing.assert_allclose(offset.grad, expected_unmodulated, atol=1e-5)


@pytest.mark.parametrize('deform_groups', [1, 2])
def test_groups_share_no_gradient_of_their_offsets(deform_groups: int) -> None:
    """One deformable group of a fitting half of everything, where offsets are whole, against both together."""
    features, _, mask, weight = deform_conv_inputs(deform_groups)
    offset = whole_offsets(2, deform_groups * 12, 3, 8, largest=2).requires_grad_()
    grad_output = random(2, 6, 3, 8, seed=5)
    geometry = GEOMETRY['stride'], GEOMETRY['padding'], GEOMETRY['dilation']

    def gradient(features: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, *groups: int) -> Tensor:
        result = ops.modulated_deform_conv2d(features, offset, mask, weight, None, *geometry, *groups)
        return torch.autograd.grad(result, offset, grad_output[:, : len(weight)])[0]

    both = gradient(features, offset, mask, weight, 2, deform_groups)
    if deform_groups == 2:
        first = gradient(features[:, :2], offset[:, :12], mask[:, :6], weight[:3], 1, 1)
        torch.testing.assert_close(both[:, :12], first[:, :12])
    # 0 where mmcv has none: on or beyond the lines one pixel outside.
    rows = 2 * torch.arange(3)[:, None] - 1
    columns = torch.arange(8) - 2
    points = offset.detach().unflatten(1, (deform_groups, 3, 2, 2))
    for j, k in np.ndindex(3, 2):
        y, x = points[:, :, j, k, 0] + rows + j, points[:, :, j, k, 1] + columns + 2 * k
        is_outside = (y <= -1) | (y >= 5) | (x <= -1) | (x >= 6)
        assert is_outside.any()
        by_offset = both.unflatten(1, (deform_groups, 3, 2, 2))[:, :, j, k]
        assert not by_offset.masked_select(is_outside.unsqueeze(2)).any()
        assert by_offset.masked_select(~is_outside.unsqueeze(2)).any()


def test_deform_conv_adds_to_the_gradient_of_the_weight() -> None:
    features, offset, _, weight = deform_conv_inputs(1)
    grad_output = random(2, 6, 3, 8, seed=5)
    stride, padding, dilation, groups = GEOMETRY.values()
    names = {'dH': stride[0], 'dW': stride[1], 'padH': padding[0], 'padW': padding[1]}
    names |= {'dilationH': dilation[0], 'dilationW': dilation[1], 'kH': 3, 'kW': 2}
    names |= {'group': groups, 'deformable_group': 1, 'im2col_step': 2}
    buffers = random(0), random(0)
    once, more = torch.zeros_like(weight), torch.ones_like(weight)
    for gradient, scale in ((once, 1), (more, 0.5)):
        mmcv._ext.deform_conv_backward_parameters(
            features, offset, grad_output, gradient, *buffers, scale=scale, **names
        )
    assert once.any()
    torch.testing.assert_close(more, 1 + 0.5 * once)


@pytest.mark.parametrize('pack', [ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack])
def test_deform_conv_layers_train_under_bfloat16(pack: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = pack(4, 6, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    features = random(2, 4, 5, 6).float().requires_grad_()
    full = layer(features)
    with torch.autocast('cpu', torch.bfloat16):
        half = layer(features)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
    half.sum().backward()
    assert features.grad.any()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def attention_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, shapes, locations (some outside) and weights of two levels."""
    shapes = torch.tensor([[3, 4], [2, 3]])
    locations = 0.5 + 0.4 * random(2, 5, 2, 2, 3, 2, seed=1)
    return random(2, 18, 2, 4), shapes, locations, random(2, 5, 2, 2, 3, seed=2).sigmoid()


def attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    starts = torch.tensor([0, 12], device=shapes.device)
    function = attention.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, 64)


def test_multi_scale_deformable_attention() -> None:
    value, shapes, locations, weights = attention_inputs()
    expected = reference.multi_scale_deformable_attention(
        value.numpy(), shapes.tolist(), locations.numpy(), weights.numpy()
    )
    np.testing.assert_allclose(attend(value, shapes, locations, weights), expected, atol=1e-12)
    half = attend(value.bfloat16(), shapes, locations.bfloat16(), weights.bfloat16())
    assert half.dtype == torch.bfloat16
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert gradcheck(lambda v, p, w: attend(v, shapes, p, w), inputs, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_locations_have_the_gradient_of_mmcv_where_derivatives_jump(dtype: torch.dtype) -> None:
    # Powers of two, so that points lie on the pixels without any rounding.
    shapes = torch.tensor([[4, 8], [2, 4]])
    extents = shapes.flip(1)[:, None]
    generator = torch.Generator().manual_seed(1)
    pixels = (torch.rand(1, 40, 1, 2, 3, 2, generator=generator) * (extents + 2) - 1).round()
    locations, value = ((pixels + 0.5) / extents).to(dtype), random(1, 40, 1, 3).to(dtype)
    weights, grad_output = random(1, 40, 1, 2, 3, seed=2).sigmoid().to(dtype), random(1, 40, 3, seed=3).to(dtype)
    expected = reference.multi_scale_deformable_attention_location_gradient(
        value.numpy(), shapes.tolist(), locations.numpy(), weights.numpy(), grad_output.numpy()
    )
    starts = torch.tensor([0, 32])
    locations.requires_grad_()
    function = attention.MultiScaleDeformableAttnFunction
    function.apply(value, shapes, starts, locations, weights, 64).backward(grad_output)
    on_border = ((pixels == -1) | (pixels == extents)).any(-1)
    assert on_border.any() and not on_border.all()
    np.testing.assert_allclose(locations.grad, expected, rtol=1e-5, atol=1e-4)


def test_masked_conv_takes_autocast() -> None:
    torch.manual_seed(0)
    layer = ops.MaskedConv2d(2, 3, 3, padding=1)
    features, mask = random(1, 2, 6, 7).float(), random(1, 6, 7, seed=1) > 0
    with torch.autocast('cpu', torch.bfloat16):
        half = layer(features, mask)
    torch.testing.assert_close(half.float(), layer(features, mask), atol=0.05, rtol=0.05)


def test_masked_conv() -> None:
    torch.manual_seed(0)
    layer = ops.MaskedConv2d(2, 3, (3, 5), padding=(1, 2)).double()
    features = random(1, 2, 6, 7)
    mask = random(1, 6, 7, seed=1) > 0
    expected = nn.functional.conv2d(features, layer.weight, layer.bias, padding=(1, 2)) * mask
    torch.testing.assert_close(layer(features, mask), expected)


# The same on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_agrees_with_the_cpu() -> None:
    features, rois = features_and_rois()
    features = features.to(memory_format=torch.channels_last)
    target = torch.tensor(TARGETS)
    value, shapes, locations, weights = attention_inputs()
    convolution = (*GEOMETRY.values(), 2)
    calls = [
        (ops.RoIAlign(3, 0.5), (features, rois)),
        (ops.sigmoid_focal_loss, (random(5, 3), target)),
        (lambda *x: ops.modulated_deform_conv2d(*x, None, *convolution), deform_conv_inputs(2)),
        (attend, (value, shapes, locations, weights)),
        (lambda *x: ops.nms(*x, 0.5, offset=1)[1], (rois[:, 1:], rois[:, 1])),
    ]
    for function, inputs in calls:
        results = []
        for device in ('cpu', 'cuda'):
            first = inputs[0].detach().to(device).requires_grad_()
            result = function(first, *(tensor.to(device) for tensor in inputs[1:]))
            if result.is_floating_point():
                result.square().sum().backward()
            results.append([result.cpu(), torch.zeros(()) if first.grad is None else first.grad.cpu()])
        torch.testing.assert_close(results[0], results[1])
