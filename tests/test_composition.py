"""Chains of linear layers as one layer: the same numbers and the same gradients, at the borders too."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from shvit_det import SHViTFPN
from shvit_det.composition import compose_conv, compose_upsampling, redo_border
from shvit_det.neck import composing_pays
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
    torch.testing.assert_close(composed(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('num', [1, 2])
def test_gradients_reach_all_parameters_of_the_chain(num):
    ups, conv = chain(num)
    twin_ups, twin_conv = copy.deepcopy((ups, conv))
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    twin_x = x.detach().clone().requires_grad_()
    compose_upsampling(ups, conv)(x).square().sum().backward()
    written_out(twin_x, twin_ups, twin_conv).square().sum().backward()
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-10, atol=1e-10)
    for one, other in zip([*ups, conv], [*twin_ups, twin_conv], strict=True):
        torch.testing.assert_close(one.weight.grad, other.weight.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.bias.grad, other.bias.grad, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(num=st.integers(1, 2), height=SIZES, width=SIZES)
def test_a_further_convolution_is_exact_within_and_its_border_is_redone(num, height, width):
    ups, conv = chain(num)
    further = nn.Conv2d(4, 2, 3, padding=1).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        level = written_out(x, ups, conv)
        expected = further(level)
        result = compose_conv(compose_upsampling(ups, conv), further)(x)
        torch.testing.assert_close(result[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=0, atol=1e-12)
        assert not torch.allclose(result, expected)
        redo_border(result, level, lambda strip: functional.conv2d(strip, further.weight, further.bias), ring=1)
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
    monkeypatch.setattr('shvit_det.neck.composing_pays', lambda *_: True)
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


def test_small_images_are_not_worth_composing():
    assert composing_pays(256, 2, 50 * 84)
    assert not composing_pays(256, 2, 12 * 12)
    assert not composing_pays(256, 0, 50 * 84)


def test_composing_pays_where_it_takes_fewer_operations():
    """The estimate against operations that are counted, on both sides of the break-even."""

    def operations(compose: bool, height: int, width: int) -> int:
        made = SHViTFPN([8, 8, 8], out_channels=16, compose=compose)
        inputs = [torch.zeros(1, 8, height >> level, width >> level) for level in range(3)]
        with CostCounter(lambda: 'neck') as counter, torch.no_grad():
            made(inputs)
        return counter.part_costs({})[0]['macs']

    for height, width in [(4, 4), (4, 12), (8, 8), (16, 16)]:
        pays = composing_pays(16, 2, height * width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('shvit_det.neck.composing_pays', lambda *_: True)
            assert (operations(True, height, width) < operations(False, height, width)) == pays, (height, width)
