"""The RPN head that starts from the neck's lateral: the numbers of mmdet's, at the borders too."""

import copy
import pickle

import pytest
import torch
from mmdet.models.dense_heads import RPNHead
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from shvit_det import SHViTFPN
from shvit_det.models import rpn
from shvit_det.models.pyramid import FeaturePyramid
from shvit_det.registry import MODELS
from shvit_det.timing.cost import CostCounter

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
    monkeypatch.setattr(rpn, 'composing_conv_pays', lambda _: True)
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    return calls


def outputs_and_gradients(both, inputs):
    neck, head = both
    both.zero_grad()
    scores, boxes = head(neck(inputs))
    weights = [torch.randn_like(map_) for map_ in (*scores, *boxes)]
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


def taken_out(change):
    """Return what changes the finest level and hands the same pyramid on."""

    def between(levels):
        change(levels[0])
        return levels

    return between


def as_array(level):
    level.detach().numpy()[:, :, 1] = 3


BETWEEN = {  # what may stand between neck and head
    'changed in place': taken_out(lambda level: level.mul_(2)),
    'changed in place through data': taken_out(lambda level: level.data.mul_(2)),
    'changed in place through detach': taken_out(lambda level: level.detach().mul_(2)),
    'one pixel changed': taken_out(lambda level: level.data[0, 0, 2, 3].fill_(9)),
    'changed as an array': taken_out(as_array),
    'changed by iteration': lambda levels: [level.data.mul_(2) for level in levels] and levels,
    'another map': lambda levels: (2 * levels[0], *levels[1:]),
    'copies': lambda levels: [level.clone() for level in levels],
    'moved': lambda levels: tuple(level.flip(0) for level in levels),
    'cast and back': lambda levels: tuple(level.float().double() for level in levels),
    'mapped as a tree': lambda levels: tree_map(lambda level: 2 * level, levels),
    'mapped as a tree in place': lambda levels: tree_map(lambda level: level.mul_(2), levels) and levels,
    'one level more in front': lambda levels: (2 * levels[0], *levels)[:-1],
    'joined from the left': lambda levels: ((2 * levels[1],) + levels)[1:],
    'joined from the right': lambda levels: (levels + (levels[4],))[:-1],
    'sliced': lambda levels: levels[:],
}


@pytest.mark.parametrize('grad', [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('change', BETWEEN)
def test_what_is_between_neck_and_head_reaches_the_head(change, grad, composed):
    neck, head = make()
    with grad():
        levels = neck(features(4, 5))
        levels = BETWEEN[change](levels)
        found = head(levels)
        expected = RPNHead.forward(head, tuple(levels))
    for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(one, other)
    assert composed == []


def hooked(register):
    """Return what lets a hook double the first level in place."""

    def double(module, args, out=None):
        (args[0] if out is None else out)[0].data.mul_(2)

    return lambda neck, head: register(neck, head, double)


HOOKS = {
    'of the neck': hooked(lambda neck, head, hook: neck.register_forward_hook(hook)),
    'of the head': hooked(lambda neck, head, hook: head.register_forward_pre_hook(hook)),
    'of the finest level': lambda neck, head: neck.extra_fpn_convs[0].register_forward_hook(
        lambda module, args, out: 2 * out
    ),
    'of the convolution of the finest level': lambda neck, head: neck.extra_fpn_convs[0].conv.register_forward_hook(
        lambda module, args, out: 2 * out
    ),
    'of the convolution of the head': lambda neck, head: head.rpn_conv.register_forward_hook(
        lambda module, args, out: 2 * out
    ),
    'of the scores': lambda neck, head: head.rpn_cls.register_forward_hook(lambda module, args, out: 2 * out),
    'of all modules': lambda neck, head: register_module_forward_hook(
        lambda module, args, out: 2 * out if isinstance(module, nn.Conv2d) else None
    ),
}


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('grad', [torch.enable_grad, torch.inference_mode])
def test_hooks_are_seen(hook, grad, composed):
    neck, head = make()
    plain = copy.deepcopy(nn.ModuleList([neck, head]))
    plain[0].compose = False
    results = []
    for model in ((neck, head), plain):
        handle = HOOKS[hook](*model)
        with grad():
            results.append(model[1](model[0](features(4, 5))))
        handle.remove()
    for found, expected in zip(*results, strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert bool(composed) == (hook == 'of the scores')


def test_a_hook_that_takes_nothing_out_changes_nothing(composed):
    neck, head = make()
    seen = []
    neck.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    head(neck(features(4, 5)))
    assert seen == [5] and composed == [1]


def test_later_changes_of_the_laterals_do_not_reach_the_head(composed):
    """A hook may keep what the finer levels are made of, and change it when the levels are made already."""
    neck, head = make()
    kept = []
    neck.fpn_convs[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    with torch.no_grad():
        levels = neck(features(4, 5))
        kept[0].mul_(2)
        found = head(levels)
        expected = RPNHead.forward(head, tuple(levels))
    assert composed == [1]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)


def test_gradients_of_the_finest_level_itself_are_whole(composed):
    """Whoever takes the level out before the head has run gets the gradients of what the head makes of it."""
    neck, head = make()
    levels = neck(features(4, 5))
    finest = levels[0]
    finest.retain_grad()
    scores, _ = head(levels)
    scores[0].square().sum().backward()
    again = finest.detach().requires_grad_()
    head.forward_single(again)[0].square().sum().backward()
    torch.testing.assert_close(finest.grad, again.grad)


class Reversed(type(MODELS.build(dict(type='SHViTRPNHead', **HEAD)))):
    """A head of somebody else's."""

    def forward_single(self, x):
        scores, boxes = super().forward_single(2 * x)
        return scores, -boxes


@pytest.mark.parametrize('kind', ['subclass', 'replaced', 'several convolutions', 'pruned', 'wider', 'circular'])
def test_other_heads_compute_what_they_are_written_as(kind, composed):
    neck, head = make(num_convs=2 if kind == 'several convolutions' else 1)
    if kind == 'subclass':
        head.__class__ = Reversed
    elif kind == 'replaced':
        head.forward_single = lambda x: [-y for y in type(head).forward_single(head, x)]
    elif kind == 'pruned':
        prune.l1_unstructured(head.rpn_conv, 'weight', 0.5)
    elif kind == 'wider':
        head.rpn_conv = nn.Conv2d(CHANNELS, 5, 5, padding=2).double()
    elif kind == 'circular':
        head.rpn_conv.padding_mode = 'circular'
    with torch.no_grad():
        levels = neck(features(4, 5))
        found = head(levels)
        expected = RPNHead.forward(head, tuple(levels))
    assert all(map(torch.equal, (*found[0], *found[1]), (*expected[0], *expected[1])))
    assert composed == []


def test_a_neck_that_is_written_out_returns_a_plain_tuple():
    neck, _ = make()
    neck.compose = False
    assert type(neck(features(4, 5))) is tuple


@pytest.mark.parametrize('reentrant', [True, False])
def test_under_gradient_checkpointing_nothing_changes(reentrant, composed):
    results = []
    for save in (False, True):
        neck, head = make()
        inputs = [x.requires_grad_() for x in features(4, 5)]

        def run(*inputs, neck=neck):
            return neck(inputs)

        levels = checkpoint(run, *inputs, use_reentrant=reentrant) if save else run(*inputs)
        scores, boxes = head(levels)
        sum(map_.square().sum() for map_ in (*scores, *boxes)).backward()
        results.append([*scores, *boxes, *(p.grad for p in neck.parameters()), *(p.grad for p in head.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('pass_on', [copy.copy, lambda levels: pickle.loads(pickle.dumps(levels))])
def test_copies_are_plain_tuples(pass_on, composed):
    neck, _ = make()
    with torch.no_grad():
        levels = neck(features(4, 5))
        assert isinstance(levels, FeaturePyramid)
        copied = pass_on(levels)
    assert type(copied) is tuple and all(map(torch.equal, copied, levels))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_relu_treats_nan_and_infinity_as_torch_does(dtype):
    torch.manual_seed(0)
    values = torch.tensor([float('nan'), float('inf'), -float('inf'), 0.0, -0.0, 1.0, -1.0, 1e-4], dtype=dtype)

    def special(*shape):
        return values[torch.randint(len(values), shape)]

    hidden, grad = special(2, 3, 5, 6), special(2, 3, 5, 6)
    inner = hidden.clone()
    for place in rpn.SIDES:
        inner[place] = special(*inner[place].shape)
    inputs = [tensor.clone().requires_grad_() for tensor in (inner, *(hidden[place] for place in rpn.SIDES))]
    found = rpn._BorderedReLU.apply(inputs[0] + 0, *inputs[1:])
    whole = hidden.clone().requires_grad_()
    expected = whole.relu()
    exact = dict(rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found, expected, **exact)
    found_grads = torch.autograd.grad(found, inputs, grad)
    (expected_grad,) = torch.autograd.grad(expected, whole, grad)
    for found_grad, place in zip(found_grads[1:], rpn.SIDES, strict=True):
        torch.testing.assert_close(found_grad, expected_grad[place], **exact)
    for place in rpn.SIDES:
        expected_grad[place] = 0
    torch.testing.assert_close(found_grads[0], expected_grad, **exact)


def test_a_pixel_that_is_no_number_stays_where_it_is(composed):
    neck, head = make()
    for place in ((1, 1), (0, 2), (3, 4)):
        inputs = features(4, 5)
        inputs[0][(1, slice(None), *place)] = float('nan')
        with torch.no_grad():
            levels = neck(inputs)
            found = head(levels)
            expected = RPNHead.forward(head, tuple(levels))
        for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)
        assert found[0][0].isnan().any() and not found[0][0][0].isnan().any()


def test_composing_pays_where_it_takes_fewer_operations(monkeypatch):
    """The estimate against operations that are counted, on both sides of the break-even."""
    monkeypatch.setattr('shvit_det.models.neck.composing_levels_pays', lambda *_: True)
    neck, head = make()
    estimate, seen = rpn.composing_conv_pays, set()
    for height, width in [(3, 3), (5, 5), (12, 12), (30, 30)]:
        with torch.no_grad():
            levels = neck(features(height, width))
            pays = estimate(levels.origin)
            counts = []
            for choice in (True, False):
                monkeypatch.setattr(rpn, 'composing_conv_pays', lambda _, choice=choice: choice)
                with CostCounter(lambda: 'head') as counter:
                    head(levels)
                counts.append(counter.part_costs({})[0]['macs'])
        assert pays == (counts[0] < counts[1]), (height, width)
        seen.add(pays)
    assert seen == {True, False}
