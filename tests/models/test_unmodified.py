"""A module is stock unless somebody has changed what a call of it does."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from shvit_det.models.unmodified import is_unmodified


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class TensorOfItsOwn(torch.Tensor):
    pass


class OwnConv2d(nn.Conv2d):
    pass


def replace(name):
    def change(conv):
        setattr(conv, name, functools.partial(getattr(conv, name)))

    return change


def own_tensor(conv):
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(TensorOfItsOwn))


CHANGES = {
    'forward hook': lambda conv: conv.register_forward_hook(lambda *_: None),
    'forward hook, always called': lambda conv: conv.register_forward_hook(lambda *_: None, always_call=True),
    'forward pre-hook': lambda conv: conv.register_forward_pre_hook(lambda *_: None),
    'backward hook': lambda conv: conv.register_full_backward_hook(lambda *_: None),
    'backward pre-hook': lambda conv: conv.register_full_backward_pre_hook(lambda *_: None),
    'pruned': lambda conv: prune.l1_unstructured(conv, 'weight', 0.5),
    'spectral norm': spectral_norm,
    'weight norm': weight_norm,
    'parametrised spectral norm': parametrizations.spectral_norm,
    'parametrised': lambda conv: parametrize.register_parametrization(conv, 'weight', Doubled()),
    'forward replaced': replace('forward'),
    'part of forward replaced': replace('_conv_forward'),
    'tensor with a class': own_tensor,
    'subclass': lambda conv: setattr(conv, '__class__', OwnConv2d),
}


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_module_is_not_stock(change):
    conv = nn.Conv2d(4, 4, 3)
    assert is_unmodified(conv, nn.Linear, nn.Conv2d)
    CHANGES[change](conv)
    assert not is_unmodified(conv, nn.Linear, nn.Conv2d)


@pytest.mark.parametrize(
    'register',
    [
        register_module_forward_hook,
        register_module_forward_pre_hook,
        register_module_full_backward_hook,
        register_module_full_backward_pre_hook,
    ],
)
def test_under_hooks_for_all_modules_none_is_stock(register):
    handle = register(lambda *_: None)
    try:
        assert not is_unmodified(nn.ReLU(), nn.ReLU)
    finally:
        handle.remove()
    assert is_unmodified(nn.ReLU(), nn.ReLU)


def test_a_module_is_stock_again_when_the_change_is_taken_back():
    conv = nn.Conv2d(4, 4, 3)
    conv.register_forward_hook(lambda *_: None).remove()
    prune.remove(prune.l1_unstructured(conv, 'weight', 0.5), 'weight')
    parametrize.register_parametrization(conv, 'weight', Doubled())
    parametrize.remove_parametrizations(conv, 'weight')
    assert is_unmodified(conv, nn.Conv2d)


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False, track_running_stats=False)])
def test_copies_and_casts_of_stock_modules_are_stock(norm):
    for module in (norm, copy.deepcopy(norm), copy.deepcopy(norm).double().eval(), copy.deepcopy(norm).to('meta')):
        assert is_unmodified(module, nn.BatchNorm2d)
