"""A convolution with a fixed norm trains as it is written, whatever has been done to the two."""

import copy
import functools

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from norms import randomise_norms
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from shvit_det.models.layers import ConvNorm

CHANNELS = 6


class Tripled(nn.Module):
    def forward(self, weight):
        return 3 * weight


class LowRankAdapter(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(conv.in_channels, 2, 3, stride=2, padding=1)
        self.up = nn.Conv2d(2, conv.out_channels, 1)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


class RoundedConv2d(nn.Conv2d):
    """As quantisation-aware training replaces a layer."""

    def forward(self, x):
        rounded = self.weight + ((self.weight * 16).round() / 16 - self.weight).detach()
        return self._conv_forward(x, rounded, self.bias)


def doubled(layer, name):
    """Replace a method by one that doubles what it returns."""
    method = getattr(layer, name)
    setattr(layer, name, functools.wraps(method)(lambda *args: 2 * method(*args)))


def replace_conv(layer, kind=nn.Conv2d, **arguments):
    layer.c = kind(4, CHANNELS, 3, stride=2, padding=1, **{'bias': False, **arguments})


def replace_norm(layer, norm):
    layer.bn = norm


def double_gradient(module, grad_input, grad_output):
    return tuple(2 * gradient for gradient in grad_input)


CHANGES = {
    'nothing': lambda layer: None,
    'hook on the convolution': lambda layer: layer.c.register_forward_hook(lambda module, args, out: 2 * out),
    'hook on the norm': lambda layer: layer.bn.register_forward_hook(lambda module, args, out: 2 * out),
    'pre-hook on the convolution': lambda layer: layer.c.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    'pre-hook on the norm': lambda layer: layer.bn.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    'backward hook on the convolution': lambda layer: layer.c.register_full_backward_hook(double_gradient),
    'backward hook on the norm': lambda layer: layer.bn.register_full_backward_hook(double_gradient),
    'backward pre-hook': lambda layer: layer.bn.register_full_backward_pre_hook(lambda module, grad: (2 * grad[0],)),
    'pruned': lambda layer: prune.l1_unstructured(layer.c, 'weight', 0.5),
    'pruned channels': lambda layer: prune.ln_structured(layer.c, 'weight', 0.5, 1, dim=0),
    'pruned norm': lambda layer: prune.l1_unstructured(layer.bn, 'weight', 0.5),
    'spectral norm': lambda layer: spectral_norm(layer.c),
    'weight norm': lambda layer: weight_norm(layer.c),
    'parametrised weight norm': lambda layer: parametrizations.weight_norm(layer.c),
    'parametrised kernel': lambda layer: parametrize.register_parametrization(layer.c, 'weight', Tripled()),
    'parametrised scale': lambda layer: parametrize.register_parametrization(layer.bn, 'weight', Tripled()),
    'forward replaced': lambda layer: doubled(layer.c, 'forward'),
    'forward of the norm replaced': lambda layer: doubled(layer.bn, 'forward'),
    'part of forward replaced': lambda layer: doubled(layer.c, '_conv_forward'),
    'adapter': lambda layer: setattr(layer, 'c', LowRankAdapter(layer.c)),
    'quantised': lambda layer: replace_conv(layer, RoundedConv2d),
    'convolution with a bias': lambda layer: replace_conv(layer, bias=True),
    'circular padding': lambda layer: replace_conv(layer, padding_mode='circular'),
    'circular padding later': lambda layer: setattr(layer.c, 'padding_mode', 'circular'),
    'reflected padding': lambda layer: replace_conv(layer, padding_mode='reflect'),
    'group norm': lambda layer: replace_norm(layer, nn.GroupNorm(2, CHANNELS)),
    'frozen norm': lambda layer: replace_norm(layer, FrozenBatchNorm2d(CHANNELS)),
    'no norm': lambda layer: replace_norm(layer, nn.Identity()),
    'norm without scale': lambda layer: replace_norm(layer, nn.BatchNorm2d(CHANNELS, affine=False)),
    'norm without statistics': lambda layer: replace_norm(
        layer, nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    ),
    'synchronised': nn.SyncBatchNorm.convert_sync_batchnorm,
    'synchronised and reverted': lambda layer: revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(layer)),
}  # fmt: skip


def make(change: str, fold: bool) -> ConvNorm:
    torch.manual_seed(0)
    layer = ConvNorm(4, CHANNELS, kernel_size=3, stride=2)
    randomise_norms(layer)
    CHANGES[change](layer)
    layer.double().train()
    layer.fold_fixed = fold
    layer.bn.eval()
    return layer


def outputs_and_gradients(layer: ConvNorm) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.backward(torch.randn_like(out))
    gradients = {f'gradient of {name}': parameter.grad for name, parameter in layer.named_parameters()}
    return {'output': out.detach(), 'gradient of the input': x.grad, **gradients}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('change', CHANGES)
def test_a_fixed_norm_computes_what_is_written(change):
    assert_equal(outputs_and_gradients(make(change, fold=True)), outputs_and_gradients(make(change, fold=False)))


def only(module, note):
    """Return a hook for all modules that runs ``note`` for one of them."""
    return lambda called, *_: note() if called is module else None


@pytest.mark.parametrize('part', ['c', 'bn'])
@pytest.mark.parametrize(
    'register',
    [
        lambda module, note: module.register_forward_pre_hook(note),
        lambda module, note: module.register_forward_hook(note),
        lambda module, note: module.register_full_backward_pre_hook(note),
        lambda module, note: module.register_full_backward_hook(note),
        lambda module, note: register_module_forward_hook(only(module, note)),
        lambda module, note: register_module_full_backward_hook(only(module, note)),
    ],
    ids=['forward pre', 'forward', 'backward pre', 'backward', 'forward of all', 'backward of all'],
)
def test_hooks_run_at_each_call(part, register):
    calls = []
    layer = make('nothing', fold=True)
    handle = register(layer.get_submodule(part), lambda *_: calls.append(1))
    try:
        outputs_and_gradients(layer)
        outputs_and_gradients(layer)
    finally:
        handle.remove()
    assert len(calls) == 2
    outputs_and_gradients(layer)
    assert len(calls) == 2


@pytest.mark.parametrize('change, passes', [('nothing', 0), ('synchronised', 0), ('group norm', 1)])
def test_stock_norms_are_applied_to_the_kernel(change, passes):
    """The backward pass of a folded layer has a convolution and no norm."""
    layer = make(change, fold=True)
    out = layer(torch.randn(1, 4, 8, 8, dtype=torch.float64))
    assert ('Convolution' in out.grad_fn.name()) == (passes == 0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('whole', [True, False], ids=['all of it', 'only the convolution'])
def test_half_precision_is_rounded_as_it_is_written(dtype, whole):
    layer = make('nothing', fold=True).float()
    (layer if whole else layer.c).to(dtype)
    written_out = copy.deepcopy(layer)
    written_out.fold_fixed = False
    x = torch.randn(2, 4, 9, 7, dtype=dtype)
    assert torch.equal(layer(x), written_out(x))
