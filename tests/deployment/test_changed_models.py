"""Models that somebody has changed are deployed with the change, whatever it is."""

import copy
import functools

import pytest
import torch
from deployed_models import TINY, agree, backbone, detector
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from timed import TINY_MASK_RCNN, TINY_RETINANET
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from shvit_det import SHViT, SHViTFPN, UsageError, deploy
from shvit_det.deployment import is_deployed
from shvit_det.deployment.backbone import FusedSHViT
from shvit_det.models.layers import Block, ConvNorm, FeedForward, PatchEmbed, PatchMerging, SingleHeadAttention, Stage

pytestmark = pytest.mark.slow


def subclass(module, times=2.0):
    """Make a module one of a subclass that computes something else."""
    base = type(module)

    def forward(self, *args, **kwargs):
        result = base.forward(self, *args, **kwargs)
        return tuple(times * each for each in result) if isinstance(result, tuple) else times * result

    module.__class__ = type(f'Other{base.__name__}', (base,), dict(forward=forward, __module__='somebody.models'))


class LowRank(nn.Module):
    """A layer with an adapter beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.beside = layer, copy.deepcopy(layer)

    def forward(self, x):
        return self.layer(x) + 0.5 * self.beside(x)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Noisy(nn.Module):
    def forward(self, weight):
        return weight * (1 + 0.1 * torch.rand(()))


def first(model, kind):
    return next(module for module in model.modules() if type(module) is kind)


def replaced(module, name, made):
    setattr(module, name, made(getattr(module, name)))


def hook(module):
    module.register_forward_hook(lambda _, inputs, output: 2 * output)


def own_forward(module):
    original = module.forward
    module.forward = functools.partial(lambda function, x: 2 * function(x), original)


CHANGES = {
    **{
        f'subclass of {kind.__name__}': lambda model, kind=kind: subclass(first(model, kind))
        for kind in (Block, ConvNorm, FeedForward, PatchEmbed, PatchMerging, SingleHeadAttention, Stage, nn.GroupNorm)
    },
    **{
        f'hook of a {kind.__name__}': lambda model, kind=kind: hook(first(model, kind))
        for kind in (Block, ConvNorm, Stage, nn.BatchNorm2d, nn.Conv2d, nn.ReLU)
    },
    'forward of an instance': lambda model: own_forward(first(model, FeedForward)),
    'another activation': lambda model: replaced(first(model, FeedForward), 'act', lambda _: nn.GELU()),
    'another activation in the stem': lambda model: model.patch_embed.__setitem__(1, nn.SiLU()),
    'another activation of the gate': lambda model: replaced(first(model, PatchMerging).se, 'act', lambda _: nn.SiLU()),
    'another activation of attention': lambda model: first(model, SingleHeadAttention).proj.__setitem__(0, nn.Tanh()),
    'an adapter': lambda model: replaced(first(model, FeedForward).pw1, 'c', LowRank),
    'an adapter of the gate': lambda model: replaced(first(model, PatchMerging).se, 'fc1', LowRank),
    'no norm': lambda model: replaced(first(model, FeedForward).pw2, 'bn', lambda _: nn.Identity()),
    'a norm over groups': lambda model: replaced(
        first(model, FeedForward).pw1, 'bn', lambda bn: nn.GroupNorm(4, bn.num_features)
    ),
    'statistics of the batch': lambda model: [
        setattr(first(model, FeedForward).pw1.bn, name, None) for name in ('running_mean', 'running_var')
    ],
    'a bias': lambda model: replaced(
        first(model, FeedForward).pw1, 'c', lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 1)
    ),
    'another padding': lambda model: setattr(first(model, PatchMerging).conv2.c, 'padding_mode', 'reflect'),
    'pruned': lambda model: prune.l1_unstructured(first(model, FeedForward).pw1.c, 'weight', 0.5),
    'weight norm': lambda model: weight_norm(first(model, FeedForward).pw1.c),
    'spectral norm': lambda model: spectral_norm(first(model, FeedForward).pw1.c),
    'parametrised weight norm': lambda model: parametrizations.weight_norm(first(model, FeedForward).pw1.c),
    'parametrised': lambda model: parametrize.register_parametrization(
        first(model, PatchEmbed)[0].c, 'weight', Doubled()
    ),
    'synchronised norms': lambda model: replaced(model, 'stages', nn.SyncBatchNorm.convert_sync_batchnorm),
}
THE_SAME = ('weight norm', 'parametrised weight norm', 'synchronised norms')
FOLDED = (*THE_SAME, 'pruned', 'spectral norm', 'parametrised', 'a bias')


@pytest.mark.parametrize('name', CHANGES)
def test_backbones(name, log):
    model = backbone(TINY)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        before = model(x)
        CHANGES[name](model)
        kinds = list(map(type, model.eval().modules()))
        right = model(x)
        changed = any((one - other).abs().max() > 1e-4 for one, other in zip(before, right, strict=True))
        assert changed is (name not in THE_SAME)
        deployed = deploy(model)
        for _ in range(2):
            agree(right, deployed(x), 1e-4)
    assert isinstance(deployed, FusedSHViT) and list(map(type, model.modules())) == kinds
    left = [record.getMessage() for record in log.records if 'not in the deployed form' in record.getMessage()]
    assert len(left) == (0 if name in FOLDED else 1)


def test_weights_that_differ_at_every_call_are_not_taken_at_one(log):
    model = backbone(TINY)
    conv = first(model, FeedForward).pw1.c
    parametrize.register_parametrization(conv, 'weight', Noisy())
    deployed = deploy(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(deployed(x)[0], deployed(x)[0])
    assert 'stages.0' in log.text


@pytest.mark.parametrize('change', [subclass, hook, own_forward])
@pytest.mark.parametrize('make', [lambda: backbone(TINY), lambda: SHViTFPN([16, 24, 32], 8).eval()])
def test_what_is_changed_as_a_whole_is_refused(make, change):
    model = make()
    change(model)
    with pytest.raises(UsageError, match='nothing of this model can be deployed'):
        deploy(model)


def results(subject):
    with torch.no_grad():
        return [one.pred_instances for one in subject.run()()]


def assert_same(right, found):
    for one, other in zip(right, found, strict=True):
        assert len(one) == len(other) > 0
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-2)
        if 'masks' in one:
            assert (one.masks != other.masks).float().mean() < 1e-3


class Weighing(RPNHead):
    """A head of somebody's that computes with the weights of its layers."""

    def forward_single(self, x):
        conv = self.rpn_conv
        x = nn.functional.conv2d(x, 1.5 * conv.weight, conv.bias, conv.stride, conv.padding).relu()
        return self.rpn_cls(x), self.rpn_reg(x)


class Conv2d(nn.Conv2d):
    """Has the name of torch's."""

    def forward(self, x):
        return super().forward(x).tanh()


def standing_in(conv):
    conv.__class__ = Conv2d
    return conv


def set_class(kind):
    def change(module):
        module.__class__ = kind

    return change


DETECTORS = {
    'subclass of the backbone': (lambda model: subclass(model.backbone, 1.5), 'backbone (OtherSHViT)'),
    'subclass of the neck': (lambda model: subclass(model.neck, 1.5), 'neck (OtherSHViTFPN)'),
    'hook of the neck': (lambda model: model.neck.register_forward_hook(lambda *args: None), 'neck (SHViTFPN)'),
    'another convolution of the neck': (
        lambda model: replaced(model.neck.fpn_convs[0], 'conv', standing_in),
        'neck (SHViTFPN)',
    ),
    'subclass of the RPN': (lambda model: set_class(Weighing)(model.rpn_head), 'rpn_head (Weighing)'),
    'hook of the RPN convolution': (lambda model: hook(model.rpn_head.rpn_conv), 'rpn_head.rpn_conv (Conv2d)'),
    'adapter of the RPN scores': (
        lambda model: replaced(model.rpn_head, 'rpn_cls', LowRank),
        'rpn_head.rpn_cls (LowRank)',
    ),
    'pruned RPN': (lambda model: prune.random_unstructured(model.rpn_head.rpn_cls, 'weight', 0.5), None),
    'adapter of the box head': (
        lambda model: replaced(model.roi_head.bbox_head, 'fc_cls', LowRank),
        'roi_head.bbox_head.fc_cls (LowRank)',
    ),
    'pruned box head': (lambda model: prune.random_unstructured(model.roi_head.bbox_head.fc_cls, 'weight', 0.5), None),
    'hook of a linear layer': (
        lambda model: hook(model.roi_head.bbox_head.fc_reg),
        'roi_head.bbox_head.fc_reg (Linear)',
    ),
    'a class that is called Conv2d': (
        lambda model: replaced(model.roi_head.mask_head.convs[0], 'conv', standing_in),
        'roi_head.mask_head.convs.0.conv (Conv2d)',
    ),
    'hook of an activation': (lambda model: hook(model.roi_head.mask_head.convs[0].activate), None),
    'another activation of masks': (
        lambda model: replaced(model.roi_head.mask_head, 'relu', lambda _: nn.Tanh()),
        None,
    ),
    'subclass of the mask head': (
        lambda model: subclass(model.roi_head.mask_head, 0.5),
        'roi_head.mask_head (OtherFCNMaskHead)',
    ),
    'forward of the mask head': (
        lambda model: own_forward(model.roi_head.mask_head),
        'roi_head.mask_head (FCNMaskHead)',
    ),
    'hook of RoIAlign': (lambda model: hook(model.roi_head.bbox_roi_extractor.roi_layers[0]), None),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name, log):
    change, named = DETECTORS[name]
    subject = detector(TINY_MASK_RCNN)
    change(subject.model)
    subject.model.eval()
    right = results(subject)
    subject.model = deploy(subject.model)
    assert_same(right, results(subject))
    assert is_deployed(subject.model)
    left = [record.getMessage() for record in log.records if 'not in the deployed form' in record.getMessage()]
    assert len(left) == (named is not None) and (named is None or left[0].endswith(named))
    if 'RPN' in name and name != 'pruned RPN':
        assert not hasattr(subject.model.rpn_head, 'rpn_finest')


def test_both_parts_changed_are_refused():
    subject = detector(TINY_RETINANET)
    subclass(subject.model.backbone)
    subclass(subject.model.neck)
    with pytest.raises(UsageError, match=r'backbone \(OtherSHViT\), neck \(OtherSHViTFPN\)'):
        deploy(subject.model)


def test_hooks_of_heads_are_called():
    subject = detector(TINY_MASK_RCNN)
    calls = []
    for module in (subject.model.rpn_head, subject.model.roi_head.mask_head, subject.model.roi_head.bbox_head):
        module.register_forward_hook(lambda module, *_: calls.append(type(module)))
    right = results(subject)
    seen = list(calls)
    calls.clear()
    subject.model = deploy(subject.model)
    assert_same(right, results(subject))
    assert calls == seen and FCNMaskHead in calls


def test_a_subclass_that_changes_nothing_else_is_not_taken_for_stock():
    class Small(SHViT):
        def __init__(self):
            super().__init__(TINY)

        def forward(self, x):
            return super().forward(x)[:1]

    with pytest.raises(UsageError, match='Small may compute something else'):
        deploy(Small())
