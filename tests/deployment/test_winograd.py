"""Convolutions with fewer multiplications compute what torch's do, and torch computes them where the kernels cannot."""

import copy

import numpy as np
import pytest
import torch
from deployed_models import deploy_and_compare, detector
from timed import TINY_MASK_RCNN, TINY_RETINANET
from torch import nn
from torch.nn import functional

from shvit_det import deploy
from shvit_det.deployment.backends import winograd
from shvit_det.deployment.backends.backend_choice import Backend
from shvit_det.deployment.backends.convolutions import FusedConv
from shvit_det.deployment.backends.winograd import POINTS, WinogradConv, tap_matrix
from shvit_det.deployment.layer_replacement import deployed_conv, replace_layers

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    """Tiny convolutions are taken for ones that become faster."""
    monkeypatch.setattr(winograd, 'MIN_CHANNELS', 1)


def convolution(channels=5, out_channels=7, dtype=torch.float32, relu=False) -> WinogradConv:
    torch.manual_seed(0)
    scale = channels**-0.5 / 3
    weight = torch.randn(out_channels, channels, 3, 3, dtype=dtype) * scale
    return WinogradConv(weight, torch.randn(out_channels, dtype=dtype) * scale, relu).eval()


def expected(conv: WinogradConv, x):
    y = functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    return y.relu() if conv.relu else y


def assert_agrees(conv: WinogradConv, x, tolerance):
    with torch.no_grad():
        found, right = conv(x), expected(conv, x)
    assert found.shape == right.shape and found.dtype == x.dtype
    assert (found - right).abs().max() <= tolerance * right.abs().max()


def matrices(num_taps):
    """The matrices for inputs and for results along one axis: values of polynomials at the points and at infinity."""
    count, last = 7 - num_taps, len(POINTS)
    inputs, results = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(count, 6, dtype=torch.float64)
    for row, point in enumerate(POINTS):
        inputs[row, :last] = torch.from_numpy(np.poly(np.delete(POINTS, row))[::-1].copy())
        results[:, row] = torch.from_numpy(point ** np.arange(count))
    inputs[last] = torch.from_numpy(np.poly(POINTS)[::-1].copy())
    results[-1, last] = 1
    return inputs, results


@pytest.mark.parametrize('num_taps', [2, 3])
def test_one_axis_is_exact(num_taps):
    (inputs, results), taps = matrices(num_taps), tap_matrix(num_taps)
    x, w = torch.randn(6, dtype=torch.float64), torch.randn(num_taps, dtype=torch.float64)
    right = x.unfold(0, num_taps, 1) @ w
    assert torch.allclose(results @ ((inputs @ x) * (taps @ w)), right, rtol=0, atol=1e-13)
    assert torch.equal(inputs.float().double(), inputs) and torch.equal(results.float().double(), results)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (4, 8), (7, 11), (13, 21), (30, 9)])
def test_sizes(size, batch, relu):
    assert_agrees(convolution(relu=relu), torch.randn(batch, 5, *size), 1e-5)


@pytest.mark.parametrize(('shape', 'relu'), [((1, 50, 42), True), ((2, 25, 21), False), ((9, 14, 14), True)])
def test_rounding_of_many_channels(shape, relu):
    batch, height, width = shape
    conv = convolution(256, 256, relu=relu)
    assert_agrees(conv, torch.randn(batch, 256, height, width).to(memory_format=torch.channels_last), 1e-5)


def test_other_widths_layouts_and_empty_batches():
    for channels, out_channels in ((3, 40), (40, 3)):
        conv = convolution(channels, out_channels)
        assert_agrees(conv, torch.randn(2, channels, 9, 10), 1e-5)
        assert_agrees(conv, torch.randn(2, channels, 20, 10)[:, :, ::2], 1e-5)
    with torch.no_grad():
        assert conv(torch.zeros(0, 40, 14, 14)).shape == (0, 3, 14, 14)


def test_the_input_is_not_written():
    x = torch.randn(1, 5, 9, 9).to(memory_format=torch.channels_last)
    kept = x.clone()
    convolution()(x)
    assert torch.equal(x, kept)


def test_float64_gradients_and_graphs_are_computed_by_torch():
    conv, x = convolution(), torch.randn(1, 5, 8, 12)
    double = copy.deepcopy(conv).double()
    assert double.choice_for_input(x.double()).backend is Backend.PLAIN
    torch.testing.assert_close(double(x.double()), expected(double, x), rtol=0, atol=1e-12)
    image = x.clone().requires_grad_()
    conv(image).sum().backward()
    right = torch.autograd.grad(expected(conv, image).sum(), image)[0]
    torch.testing.assert_close(image.grad, right, rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(conv, x)
    torch.testing.assert_close(traced(x), expected(conv, x).float(), rtol=1e-4, atol=1e-5)


def test_only_what_can_be_faster_is_chosen(monkeypatch):
    def chosen(channels, out_channels, kernel=3, **arguments):
        return type(deployed_conv(nn.Conv2d(channels, out_channels, kernel, **arguments))) is WinogradConv

    assert chosen(8, 8, padding=1)
    assert not chosen(8, 8, padding=1, stride=2)
    assert not chosen(8, 8)
    assert not chosen(8, 8, padding=1, groups=8)
    assert not chosen(8, 8, kernel=5, padding=1)
    monkeypatch.setattr(winograd, 'MIN_CHANNELS', 8)
    assert chosen(8, 8, padding=1)
    assert not chosen(7, 8, padding=1) and not chosen(8, 7, padding=1)


def test_state_dicts_and_copies():
    first, second = convolution(), convolution()
    nn.init.normal_(first.weight)
    x = torch.randn(1, 5, 9, 9)
    before = second(x)  # so that the weights are transformed before others are loaded
    assert list(first.state_dict()) == list(FusedConv(first.weight, first.bias).state_dict())
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), first(x)) and not torch.equal(second(x), before)
    assert torch.equal(copy.deepcopy(first)(x), first(x))
    assert_agrees(first, x, 1e-5)


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_detectors_take_the_shorter_way_and_find_the_same(config):
    subject = detector(config)
    deploy_and_compare(subject)
    modules = {name: module for name, module in subject.model.named_modules() if isinstance(module, WinogradConv)}
    heads = {'neck', 'rpn_head', 'roi_head'} if config == TINY_MASK_RCNN else {'neck', 'bbox_head'}
    assert {name.split('.')[0] for name in modules} == heads


@pytest.mark.parametrize('config', [TINY_MASK_RCNN, TINY_RETINANET])
def test_activations_of_conv_modules_are_in_the_convolution(config):
    deployed = deploy(detector(config).model)
    found = [module for module in deployed.modules() if type(module).__name__ == 'ConvModule']
    assert found
    for module in found:  # with a norm, the ReLU has to wait for it
        assert module.conv.relu is not module.with_norm
        assert module.with_activation is module.with_norm


def test_other_conv_modules_keep_their_activation():
    from mmcv.cnn import ConvModule

    norm = dict(type='GN', num_groups=2)
    kept = [
        ConvModule(4, 4, 3, padding=1, norm_cfg=norm),
        ConvModule(4, 4, 3, padding=1, act_cfg=dict(type='LeakyReLU')),
        ConvModule(4, 4, 3, padding=1, order=('act', 'conv', 'norm'), inplace=False),
        ConvModule(4, 4, 3, padding=1, conv_cfg=dict(type='deconv')),
    ]
    model = nn.Sequential(*kept, ConvModule(4, 4, 3, padding=1), ConvModule(4, 4, 3, padding=1, act_cfg=None)).eval()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        right = model(x)
        replace_layers(model)
        torch.testing.assert_close(model(x), right, rtol=1e-4, atol=1e-5)
    assert [module.with_activation for module in model] == [True] * 4 + [False] * 2
    assert [getattr(module.conv, 'relu', False) for module in model] == [False] * 4 + [True, False]
