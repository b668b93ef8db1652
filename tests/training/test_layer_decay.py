"""Layer-wise learning rates, and weight decay without norms and biases."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from paths import ROOT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from variants import VARIANTS

from shvit_det import SHViT, UsageError
from shvit_det.training.layer_decay import LayerDecayOptimWrapperConstructor

RATE, LR, DECAY = 0.5, 1e-3, 0.05


def tiny_detector() -> nn.Module:
    register_all_modules()
    config = Config.fromfile(ROOT / 'tests' / 'data' / 'tiny_retinanet.py')
    return MODELS.build(config.model)


def build(model: nn.Module, **paramwise: object) -> torch.optim.Optimizer:
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=RATE, **paramwise),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return build_optim_wrapper(model, cfg).optimizer


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Return rate and weight decay of every parameter by name; a parameter in two groups fails here."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    pairs = [
        (names[p], (group['lr'], group['weight_decay'])) for group in optimizer.param_groups for p in group['params']
    ]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


@pytest.mark.parametrize('arch', VARIANTS, ids=['s1', 's2', 's3', 's4', 'tiny'])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_depths_rise_from_the_stem_in_the_order_of_the_network(arch, prefix):
    backbone = SHViT(arch)
    depths = [backbone.get_layer_depth(prefix + name, prefix) for name, _ in backbone.named_parameters()]
    number = 1 + sum(backbone.arch.depths) + 2 + 1  # stem, blocks, downsamplings, what comes after
    assert {total for _, total in depths} == {number}
    order = [depth for depth, _ in depths]
    assert order == sorted(order) and sorted(set(order)) == list(range(number - 1))


def test_stages_that_are_not_built_have_no_depth_and_other_names_are_the_last():
    backbone = SHViT('s1', out_indices=(1,))
    assert backbone.get_layer_depth('stages.1.blocks.3.ffn.m.pw1.c.weight') == (7, 9)
    assert backbone.get_layer_depth('neck.patch_embed.weight', 'backbone.') == (8, 9)
    assert backbone.get_layer_depth('patch_embed.0.c.weight', 'backbone.') == (8, 9)


def test_every_parameter_of_a_detector_has_one_group_and_the_rate_of_its_depth():
    model = tiny_detector()
    optimizer = build(model)
    found = settings(model, optimizer)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, (rate, decay) in found.items():
        depth, total = model.backbone.get_layer_depth(name, 'backbone.')
        assert rate == pytest.approx(LR * RATE ** (total - 1 - depth)) and decay == DECAY
    stem = {rate for name, (rate, _) in found.items() if name.startswith('backbone.patch_embed.')}
    others = {rate for name, (rate, _) in found.items() if not name.startswith('backbone.patch_embed.')}
    assert len(stem) == 1 and stem.pop() < min(others)
    assert {rate for name, (rate, _) in found.items() if not name.startswith('backbone.')} == {LR}
    assert len(optimizer.param_groups) == 7


def test_frozen_parameters_are_left_out():
    model = tiny_detector()
    model.backbone.frozen_stages = 1
    model.backbone.train()
    found = settings(model, build(model))
    assert not any(name.startswith(('backbone.patch_embed', 'backbone.stages.0')) for name in found)
    assert sum(p.requires_grad for p in model.parameters()) == len(found)


def test_norms_and_biases_go_without_weight_decay_when_asked():
    model = tiny_detector()
    found = settings(model, build(model, norm_decay_mult=0.0, bias_decay_mult=0.0))
    norms = {
        f'{name}.{key}'
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm | nn.GroupNorm)
        for key in ('weight', 'bias')
    }
    assert norms
    for name, (_, decay) in found.items():
        assert decay == (0 if name in norms or name.endswith('.bias') else DECAY)


def test_a_custom_key_multiplies_the_decayed_rate():
    model = tiny_detector()
    found = settings(model, build(model, custom_keys={'blocks': dict(lr_mult=0.1)}))
    plain = settings(model, build(model))
    for name, (rate, _) in found.items():
        assert rate == pytest.approx(plain[name][0] * (0.1 if 'blocks' in name else 1))


def test_merged_groups_step_as_single_ones():
    """The optimizer that the groups make moves each parameter by its own rate."""
    model = tiny_detector()
    optimizer = build(model, norm_decay_mult=0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate, decay = settings(model, optimizer)[name]
        expected = before[name] * (1 - rate * decay) - rate  # the first step of Adam is the sign of the gradient
        assert torch.allclose(parameter, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'high'])
def test_the_rate_of_decay_is_checked(rate):
    with pytest.raises(UsageError, match=rf'layer_decay_rate .* got {rate}'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=LR)), dict(layer_decay_rate=rate))


def test_what_cannot_be_decayed_is_named():
    with pytest.raises(UsageError, match=r'optimizer\.lr'):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='AdamW')), dict(layer_decay_rate=0.9))
    with pytest.raises(UsageError, match='get_layer_depth'):
        build(nn.Sequential(nn.Linear(2, 2)))
