"""Chains of linear layers as one layer: the same numbers and the same gradients, at the borders too."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune, weight_norm

from shvit_det import SHViTFPN
from shvit_det.models.composition import border, compose_conv, compose_upsampling, overwrite_border, with_ones
from shvit_det.models.neck import composing_levels_pays
from shvit_det.timing.cost import CostCounter

SIZES = st.integers(1, 5)


def chain(num_upsamplings: int, channels: int = 3, bias: bool = True) -> tuple[list[nn.ConvTranspose2d], nn.Conv2d]:
    torch.manual_seed(num_upsamplings)
    ups = [nn.ConvTranspose2d(channels, channels, 2, 2, bias=bias).double() for _ in range(num_upsamplings)]
    return ups, nn.Conv2d(channels, channels + 1, 3, padding=1, bias=bias).double()


def written_out(x, ups, conv):
    for up in ups:
        x = up(x)
    return conv(x)


@settings(deadline=None, max_examples=30)
@given(num=st.integers(1, 3), batch=st.integers(1, 2), height=SIZES, width=SIZES, bias=st.booleans())
def test_a_chain_is_one_transposed_convolution(num, batch, height, width, bias):
    ups, conv = chain(num, bias=bias)
    x = torch.randn(batch, 3, height, width, dtype=torch.float64)
    expected = written_out(x, ups, conv)
    composed = compose_upsampling(ups, conv)
    assert composed.weight.shape == (4, 4, 2**num + 2, 2**num + 2)
    assert (composed.stride, composed.padding) == (2**num, 1)
    torch.testing.assert_close(composed(with_ones(x)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('num', [1, 2])
def test_gradients_reach_all_parameters_of_the_chain(num):
    ups, conv = chain(num)
    twin_ups, twin_conv = copy.deepcopy((ups, conv))
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    twin_x = x.detach().clone().requires_grad_()
    compose_upsampling(ups, conv)(with_ones(x)).square().sum().backward()
    written_out(twin_x, twin_ups, twin_conv).square().sum().backward()
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-10, atol=1e-10)
    for one, other in zip([*ups, conv], [*twin_ups, twin_conv], strict=True):
        torch.testing.assert_close(one.weight.grad, other.weight.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.bias.grad, other.bias.grad, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(height=SIZES, width=SIZES)
def test_a_further_convolution_is_exact_within_and_its_border_is_overwritten(height, width):
    ups, conv = chain(2)
    further = nn.Conv2d(4, 2, 3, padding=1).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        level = written_out(x, ups, conv)
        expected = further(level)
        result = compose_conv(compose_upsampling(ups, conv), further)(with_ones(x))
        torch.testing.assert_close(result[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=0, atol=1e-12)
        assert not torch.allclose(result, expected)
        edges = level[:, :, :2], level[:, :, -2:], level[..., :2], level[..., -2:]
        sides = border(lambda strip: functional.conv2d(strip, further.weight, further.bias), edges)
        overwrite_border(result, sides)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def neck(compose: bool, **arguments) -> SHViTFPN:
    torch.manual_seed(0)
    made = SHViTFPN([6, 7, 8], out_channels=5, compose=compose, **arguments).double()
    made.init_weights()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize('arguments', [{}, dict(num_upsamples=1, add_extra_convs='on_input')])
def test_the_neck_trains_alike_composed_and_written_out(arguments, monkeypatch):
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    results = []
    for compose in (True, False):
        torch.manual_seed(0)
        made = neck(compose, **arguments)
        torch.manual_seed(1)
        inputs = [torch.randn(2, c, s, s + 1, dtype=torch.float64) for c, s in zip((6, 7, 8), (7, 4, 2), strict=True)]
        outs = made(inputs)
        sum(out.square().mean() for out in outs).backward()
        results.append((outs, {name: parameter.grad for name, parameter in made.named_parameters()}))
    (outs, gradients), (plain_outs, plain_gradients) = results
    for one, other in zip(outs, plain_outs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-9, atol=1e-10, msg=name)


class Tripled(nn.Module):
    def forward(self, x):
        return 3 * x


class LowRankAdapter(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(5, 2, 1)
        self.up = nn.Conv2d(2, 5, 1)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


class SquaringConvModule(ConvModule):
    def forward(self, x):
        return super().forward(x).square()


class ShiftedConv2d(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight, bias).roll(1, 3)


def conv_module(conv_kind='Conv2d', **arguments):
    arguments = {'kernel_size': 3, 'padding': 1, 'act_cfg': None, **arguments}
    return ConvModule(5, 5, conv_cfg=dict(type=conv_kind), **arguments)


def upsampling(**arguments):
    return conv_module('deconv', **{'kernel_size': 2, 'stride': 2, 'padding': 0, **arguments})


def put(name, index, make):
    """Return what puts ``make(module)`` in the place of a module of the neck."""

    def change(neck):
        modules = getattr(neck, name)
        modules[index] = make(modules[index])

    return change


def twice(module, args, out):
    return 2 * out


NECK_CHANGES = {
    'nothing': lambda neck: None,
    'hook on a finer level': lambda neck: neck.extra_fpn_convs[1].register_forward_hook(twice),
    'hook on its convolution': lambda neck: neck.extra_fpn_convs[1].conv.register_forward_hook(twice),
    'hook on an upsampling': lambda neck: neck.extra_trans_convs[1].register_forward_hook(twice),
    'pre-hook': lambda neck: neck.extra_trans_convs[0].register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    'backward hook': lambda neck: neck.extra_fpn_convs[0].register_full_backward_hook(
        lambda module, grad_input, grad_output: (2 * grad_input[0],)
    ),
    'pruned': lambda neck: prune.l1_unstructured(neck.extra_fpn_convs[0].conv, 'weight', 0.5),
    'pruned upsampling': lambda neck: prune.l1_unstructured(neck.extra_trans_convs[0].conv, 'weight', 0.5),
    'parametrised': lambda neck: parametrize.register_parametrization(
        neck.extra_fpn_convs[0].conv, 'weight', Tripled()
    ),
    'weight norm': lambda neck: weight_norm(neck.extra_fpn_convs[0].conv),
    'spectral norm': put('extra_fpn_convs', 0, lambda _: conv_module(with_spectral_norm=True)),
    'activation': put('extra_fpn_convs', 0, lambda _: conv_module(act_cfg=dict(type='ReLU'))),
    'norm': put('extra_fpn_convs', 1, lambda _: conv_module(norm_cfg=dict(type='BN'))),
    'norm after upsampling': put(
        'extra_trans_convs', 0, lambda _: upsampling(norm_cfg=dict(type='BN'))
    ),
    'activation after upsampling': put(
        'extra_trans_convs', 0, lambda _: upsampling(act_cfg=dict(type='ReLU'))
    ),
    'without bias': put('extra_fpn_convs', 0, lambda _: conv_module(bias=False)),
    'circular padding': lambda neck: setattr(neck.extra_fpn_convs[0].conv, 'padding_mode', 'circular'),
    'reflected padding': put('extra_fpn_convs', 0, lambda _: conv_module(padding_mode='reflect')),
    'other kernel': put('extra_fpn_convs', 0, lambda _: conv_module(kernel_size=1, padding=0)),
    'dilated': put('extra_fpn_convs', 0, lambda _: conv_module(dilation=2, padding=2)),
    'groups': put('extra_fpn_convs', 0, lambda _: conv_module(groups=5)),
    'overlapping upsampling': put('extra_trans_convs', 0, lambda _: upsampling(kernel_size=4, padding=1)),
    'padded upsampling': put(
        'extra_trans_convs', 0, lambda _: nn.ConvTranspose2d(5, 5, 3, stride=2, padding=1, output_padding=1)
    ),
    'nearest upsampling': put('extra_trans_convs', 0, lambda _: nn.Upsample(scale_factor=2)),
    'own module': put('extra_fpn_convs', 0, lambda _: SquaringConvModule(5, 5, 3, padding=1, act_cfg=None)),
    'own convolution': lambda neck: setattr(neck.extra_fpn_convs[0], 'conv', ShiftedConv2d(5, 5, 3, padding=1)),
    'plain convolution': put('extra_fpn_convs', 0, lambda _: nn.Conv2d(5, 5, 3, padding=1)),
    'adapter': put('extra_fpn_convs', 0, LowRankAdapter),
    'adapter inside': lambda neck: setattr(
        neck.extra_fpn_convs[0], 'conv', LowRankAdapter(neck.extra_fpn_convs[0].conv)
    ),
    'forward replaced': lambda neck: setattr(
        neck.extra_fpn_convs[0], 'forward', lambda x: ConvModule.forward(neck.extra_fpn_convs[0], x).square()
    ),
    'further layers': put('extra_fpn_convs', 0, lambda conv: nn.Sequential(conv, nn.ReLU())),
}  # fmt: skip
STILL_COMPOSED = {'nothing', 'without bias'}


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('change', NECK_CHANGES)
def test_a_changed_neck_computes_what_is_written(change, monkeypatch):
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    results = []
    for compose in (True, False):
        made = neck(compose)
        torch.manual_seed(2)
        NECK_CHANGES[change](made)
        for parameter in made.double().parameters():
            nn.init.normal_(parameter, std=0.3)
        assert made.supports_composing() == (change in STILL_COMPOSED)
        inputs = [torch.randn(2, c, s, s + 1, dtype=torch.float64) for c, s in zip((6, 7, 8), (6, 3, 2), strict=True)]
        outs = made(inputs)
        sum(out.square().mean() for out in outs).backward()
        results.append([*outs, *(parameter.grad for parameter in made.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward', 'full_backward_pre'])
@pytest.mark.parametrize('name', ['extra_trans_convs.0', 'extra_trans_convs.1.conv', 'extra_fpn_convs.0.conv'])
def test_hooks_in_the_neck_run_as_often_as_it_is_written(kind, name, monkeypatch):
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    made, calls = neck(compose=True), []
    getattr(made.get_submodule(name), f'register_{kind}_hook')(lambda *_: calls.append(1))
    inputs = [torch.randn(1, c, s, s, dtype=torch.float64) for c, s in zip((6, 7, 8), (4, 2, 1), strict=True)]
    for count in (1, 2):
        sum(out.sum() for out in made(inputs)).backward()
        assert len(calls) == count


def test_small_images_are_not_worth_composing():
    assert composing_levels_pays(256, 2, 50 * 84)
    assert not composing_levels_pays(256, 2, 12 * 12)
    assert not composing_levels_pays(256, 0, 50 * 84)


def test_composing_pays_where_it_takes_fewer_operations():
    """The estimate against operations that are counted, on both sides of the break-even."""

    def operations(compose: bool, height: int, width: int) -> int:
        made = SHViTFPN([8, 8, 8], out_channels=16, compose=compose)
        inputs = [torch.zeros(1, 8, height >> level, width >> level) for level in range(3)]
        with CostCounter(lambda: 'neck') as counter, torch.no_grad():
            made(inputs)
        return counter.part_costs({})[0]['macs']

    for height, width in [(4, 4), (4, 12), (8, 8), (16, 16)]:
        pays = composing_levels_pays(16, 2, height * width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
            assert (operations(True, height, width) < operations(False, height, width)) == pays, (height, width)
