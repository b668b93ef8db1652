"""The contract of a backbone, for every variant and a tiny one of our own."""

import copy
import re

import golden
import pytest
import torch
from mmengine.registry import MODELS
from norms import randomise_norms
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from variants import PAPER, TINY, VARIANTS

from shvit_det import ARCHS, SHViT, SHViTFPN, UsageError

variants = pytest.mark.parametrize('arch', VARIANTS, ids=['s1', 's2', 's3', 's4', 'tiny'])

# Paper, Table 2: million parameters with the classifier, million multiply-adds, input size.


@variants
@pytest.mark.parametrize('size', [(64, 64), (65, 100), (97, 64), (130, 222), (30, 100), (33, 9), (1, 1)])
def test_channels_and_strides_hold_for_any_size(arch, size):
    backbone = SHViT(arch).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(2, 3, *size))
    assert isinstance(outs, tuple)
    assert backbone.out_strides == (16, 32, 64)
    for out, channels, stride in zip(outs, backbone.out_channels, backbone.out_strides, strict=True):
        assert out.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize('variant', PAPER)
def test_parameters_and_macs_are_the_papers(variant):
    parameters, macs, size = PAPER[variant]
    backbone = SHViT(variant).eval()
    width = ARCHS[variant].embed_dims[-1]
    classifier = 2 * width + width * 1000 + 1000
    assert (sum(p.numel() for p in backbone.parameters()) + classifier) / 1e6 == pytest.approx(parameters, rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # two operations per multiply-add
        backbone(torch.zeros(1, 3, size, size))
    assert (counter.get_total_flops() / 2 + width * 1000) / 1e6 == pytest.approx(macs, rel=0.01)


# The norms that close a residual branch at the start of training. All others start at 1, those of the depthwise
# convolutions around patch merging (downsample.0 and downsample.3) among them.
CLOSING = re.compile(
    r'stages\.\d\.(blocks\.\d\.(conv\.m\.bn|mixer\.m\.proj\.1\.bn|ffn\.m\.pw2\.bn)|downsample\.[14]\.m\.pw2\.bn)'
)


@variants
def test_norms_start_as_the_authors_do(arch):
    backbone = SHViT(arch)
    backbone.init_weights()
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))}
    for name, norm in norms.items():
        expected = 0.0 if CLOSING.fullmatch(name) else 1.0
        assert norm.weight.unique().tolist() == [expected], name
        assert norm.bias.count_nonzero() == 0, name
    # Four of the stem; in each downsampling two of the depthwise, four of the feed-forward and three of patch merging;
    # in each block three, and three more where it has attention.
    blocks, attending = sum(backbone.arch.depths), sum(backbone.arch.depths[1:])
    assert len(norms) == 4 + 2 * (2 + 4 + 3) + 3 * blocks + 3 * attending


@pytest.mark.parametrize('variant', ['s1', 's4'])
def test_features_agree_with_the_reference(variant):
    reference = golden.load(f'shvit_{variant}')
    backbone = SHViT(variant).eval()
    shapes = {key: shape for key, shape in reference['timm_keys'].items() if not key.startswith('head.')}
    backbone.load_state_dict(golden.state_dict(shapes), strict=True)
    for case in reference['cases']:
        with torch.no_grad():
            outs = backbone(golden.image(case['input']))
        for out, expected in zip(outs, case['timm']['features'], strict=True):
            golden.assert_matches(out, expected)


@variants
def test_every_parameter_gets_a_gradient(arch):
    backbone = SHViT(arch).train()
    randomise_norms(backbone)
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 64, 96))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize('out_indices, num_stages', [((0,), 1), ((1,), 2), ((0, 2), 3), ([0, 1, 2], 3)])
def test_out_indices_select_stages_and_build_no_more(out_indices, num_stages):
    backbone = SHViT(TINY, out_indices=out_indices).eval()
    full = SHViT(TINY).eval()
    full.load_state_dict(backbone.state_dict(), strict=False)
    assert len(backbone.stages) == num_stages
    image = torch.randn(1, 3, 80, 80)
    with torch.no_grad():
        outs, expected = backbone(image), full(image)
    assert [out.shape[1] for out in outs] == list(backbone.out_channels)
    for out, index in zip(outs, out_indices, strict=True):
        assert torch.equal(out, expected[index])


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
def test_frozen_stages_survive_train(frozen_stages):
    backbone = SHViT(TINY, frozen_stages=frozen_stages)
    assert backbone.train() is backbone
    parts = {0: backbone.patch_embed, **{i + 1: stage for i, stage in enumerate(backbone.stages)}}
    for number, part in parts.items():
        frozen = number <= frozen_stages
        assert all(p.requires_grad != frozen for p in part.parameters())
        assert all(m.training != frozen for m in part.modules() if isinstance(m, nn.BatchNorm2d))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    prefixes = ['patch_embed.', 'stages.0.', 'stages.1.', 'stages.2.']
    for number, prefix in enumerate(prefixes):
        assert any(name.startswith(prefix) for name in changed) == (number > frozen_stages)


@variants
@pytest.mark.parametrize('with_cp', [False, True])
def test_frozen_stages_and_fixed_norms_survive_every_change_of_mode(arch, with_cp):
    backbone = SHViT(arch, frozen_stages=1, norm_eval=True, with_cp=with_cp)
    detector = nn.Sequential(backbone)  # which sets the mode of its parts
    called = []
    for module in (backbone.stages[0], backbone.stages[2], backbone.patch_embed[0].c):
        module.register_forward_hook(lambda module, args, out: called.append(module))
    for mode in (True, False, True):
        assert backbone.train(mode) is backbone
        assert detector.train(mode) is detector and backbone.training == mode
    backbone.requires_grad_(True)
    backbone.train()
    for form in (backbone, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone)).train()):
        frozen = {id(module) for part in (form.patch_embed, form.stages[0]) for module in part.modules()}
        for module in form.modules():
            is_norm = isinstance(module, _BatchNorm)
            assert module.training == (id(module) not in frozen and not is_norm)
            assert all(p.requires_grad == (id(module) not in frozen) for p in module.parameters(recurse=False))
    randomise_norms(backbone)
    before = copy.deepcopy(dict(backbone.named_buffers()))
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(('patch_embed.', 'stages.0.')), name
    assert called[:3] == [backbone.patch_embed[0].c, backbone.stages[0], backbone.stages[2]]


@pytest.mark.parametrize('mode', [True, False])
def test_train_returns_the_module(mode):
    rpn_head = dict(type='SHViTRPNHead', in_channels=8, feat_channels=8)
    parts = [SHViT(TINY, frozen_stages=2), SHViTFPN((16, 24, 32), 8), MODELS.build(rpn_head)]
    for part in parts:
        for module in part.modules():
            assert module.train(mode) is module
        assert part.eval() is part


def test_norm_eval_keeps_statistics_and_trains_scales():
    backbone = SHViT(TINY, norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert backbone.training and not any(m.training for m in norms)
    assert all(p.requires_grad for p in backbone.parameters())
    before = [m.running_mean.clone() for m in norms]
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(m.running_mean, old) for m, old in zip(norms, before, strict=True))


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain = SHViT(TINY, norm_eval=True).train()
    randomise_norms(plain)
    saving = SHViT(TINY, norm_eval=True, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for backbone in (plain, saving):
        sum(out.square().mean() for out in backbone(image)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_drop_path_drops_whole_samples_in_training_only():
    backbone = SHViT(TINY, drop_path_rate=0.9)
    randomise_norms(backbone)
    image = torch.randn(1, 3, 64, 64).expand(8, -1, -1, -1)
    backbone.eval()
    with torch.no_grad():
        out = backbone(image)[-1]
        assert torch.allclose(out, out[:1].expand_as(out), atol=1e-5)
        for module in backbone.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        out = backbone(image)[-1]
    assert not torch.allclose(out, out[:1].expand_as(out), atol=1e-3)


@pytest.mark.parametrize('type_', ['SHViT', 'shvit_det.SHViT'])
@pytest.mark.parametrize('project', ['mmengine', 'mmdet', 'mmpretrain'])
def test_it_is_registered_for_every_project(type_, project):
    registry = MODELS
    if project != 'mmengine':
        registry = pytest.importorskip(f'{project}.registry').MODELS
    assert isinstance(registry.build(dict(type=type_, arch=TINY)), SHViT)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(arch='s5'), ["'s5'", 's1, s2, s3, s4']),
        (dict(out_indices=(0, 3)), ['out_indices', '0 to 2', '(0, 3)']),
        (dict(out_indices=(-1,)), ['out_indices', '(-1,)']),
        (dict(out_indices=(1, 0)), ['increasing', '(1, 0)']),
        (dict(out_indices=()), ['out_indices']),
        (dict(frozen_stages=4), ['frozen_stages', '4']),
        (dict(out_indices=(0,), frozen_stages=2), ['frozen_stages', '2']),
        (dict(drop_path_rate=1.0), ['drop_path_rate', '1.0']),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UsageError) as caught:
        SHViT(**{'arch': TINY, **arguments})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('shape', [(1, 4, 64, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_wrong_images_are_named(shape):
    with pytest.raises(UsageError, match=r'shape \(B, 3, H, W\)'):
        SHViT(TINY)(torch.zeros(shape))
