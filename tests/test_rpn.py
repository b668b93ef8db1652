"""The RPN head that starts from the neck's lateral: the numbers of mmdet's, at the borders too."""

import copy

import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from torch import nn

from shvit_det import SHViTFPN, rpn
from shvit_det.composition import origin_of
from shvit_det.registry import MODELS

CHANNELS = 4
HEAD = dict(
    in_channels=CHANNELS,
    feat_channels=5,
    anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]),
)


def make(**arguments) -> nn.ModuleList:
    torch.manual_seed(0)
    neck = SHViTFPN([6, 7, 8], out_channels=CHANNELS)
    head = MODELS.build(dict(type='SHViTRPNHead', **HEAD, **arguments))
    both = nn.ModuleList([neck, head]).double()
    for parameter in both.parameters():
        nn.init.normal_(parameter, std=0.4)
    return both


def features(height: int, width: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(2, channels, -(-height // step), -(-width // step), dtype=torch.float64)
        for channels, step in ((6, 1), (7, 2), (8, 4))
    ]


@pytest.fixture
def composed(monkeypatch):
    """How often the head composed its convolution."""
    calls = []
    compose_conv = rpn.compose_conv
    monkeypatch.setattr(rpn, 'compose_conv', lambda *args: calls.append(1) or compose_conv(*args))
    monkeypatch.setattr(rpn, 'composing_pays', lambda _: True)
    monkeypatch.setattr('shvit_det.neck.composing_pays', lambda *_: True)
    return calls


def outputs_and_gradients(both, inputs):
    neck, head = both
    both.zero_grad()
    scores, boxes = head(neck(inputs))
    weights = [torch.randn_like(map_, generator=None) for map_ in (*scores, *boxes)]
    sum((map_ * weight).sum() for map_, weight in zip((*scores, *boxes), weights, strict=True)).backward()
    return [*scores, *boxes], {name: parameter.grad for name, parameter in both.named_parameters()}


@pytest.mark.parametrize('size', [(7, 9), (1, 5), (4, 1), (1, 1)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_those_of_mmdets_head(size, layout, composed):
    both = make().to(memory_format=layout)
    plain = copy.deepcopy(both)
    plain[1].__class__ = RPNHead
    results = []
    for model in (both, plain):
        torch.manual_seed(2)
        results.append(outputs_and_gradients(model, features(*size)))
    assert composed == [1]
    (maps, gradients), (expected_maps, expected) = results
    for one, other in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for name, gradient in gradients.items():
        assert expected[name].any(), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_under_autocast_it_is_close(composed):
    neck, head = make().float()
    with torch.no_grad():
        expected, _ = head(neck([x.float() for x in features(8, 8)]))
        with torch.autocast('cpu', torch.bfloat16):
            found, _ = head(neck([x.float() for x in features(8, 8)]))
    assert len(composed) == 2 and found[0].dtype is torch.bfloat16
    assert (found[0] - expected[0]).abs().max() < 0.05 * expected[0].abs().max()


@pytest.mark.parametrize('change', ['another map', 'several convolutions', 'written out'])
def test_what_cannot_be_composed_is_computed_as_by_mmdet(change, composed):
    neck, head = make(num_convs=2 if change == 'several convolutions' else 1)
    neck.compose = change != 'written out'
    with torch.no_grad():
        levels = neck(features(4, 5))
        assert (origin_of(levels[0]) is None) == (change == 'written out')
        levels = [level.clone() for level in levels] if change == 'another map' else levels
        scores, _ = head(levels)
        torch.testing.assert_close(scores, RPNHead.forward(head, [level.clone() for level in levels])[0])
    assert composed == []


def test_composing_pays_where_it_takes_fewer_operations(monkeypatch):
    """The estimate against operations that torch counts, on both sides of the break-even."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr('shvit_det.neck.composing_pays', lambda *_: True)
    neck, head = make()
    estimate, seen = rpn.composing_pays, set()
    for height, width in [(3, 3), (5, 5), (12, 12), (30, 30)]:
        with torch.no_grad():
            level = neck(features(height, width))[0]
            counts = []
            for choice in (True, False):
                monkeypatch.setattr(rpn, 'composing_pays', lambda _, choice=choice: choice)
                with FlopCounterMode(display=False) as counter:
                    head.forward_single(level)
                counts.append(counter.get_total_flops())
        pays = estimate(origin_of(level))
        assert pays == (counts[0] < counts[1]), (height, width)
        seen.add(pays)
    assert seen == {True, False}
