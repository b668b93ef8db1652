"""Folded BatchNorms: exact where they go, left where they must stay, and the model untouched."""

import pytest
import torch
from mmdet.models import ResNet
from norms import norms_of, randomise_norms
from torch import nn

from shvit_det import SHViT
from shvit_det.models.batch_norm_folding import fold_batch_norms


class Forward(nn.Module):
    """A module of some children whose forward is given as a function of it and the input."""

    def __init__(self, forward, **children):
        super().__init__()
        self.function = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args):
        return self.function(self, *args)


def conv_and_norm(forward, **children):
    """A convolution and a norm that ``forward`` puts together, and what else it needs."""
    return Forward(forward, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), **children)


def folded(model, *inputs, count, **options):
    """Fold a model with random norms in float64; the number folded is ``count`` and the outputs agree to 1e-10."""
    randomise_norms(model)
    model.double().eval()
    inputs = [x.double() for x in inputs]
    result, number = fold_batch_norms(model, *inputs, **options)
    assert number == count
    assert len(norms_of(model)) - len(norms_of(result)) == count
    with torch.no_grad():
        expected, found = model(*inputs), result(*inputs)
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        expected, found = expected.values(), found.values()
    elif isinstance(expected, torch.Tensor):
        expected, found = [expected], [found]
    for one, other in zip(expected, found, strict=True):
        assert one.abs().max() > 0
        assert (one - other).abs().max() <= 1e-10 * one.abs().max()
    return result


IMAGE = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))


def test_shvit_keeps_no_norm():
    model = SHViT('s1')
    folded(model, torch.randn(1, 3, 64, 96), count=len(norms_of(model)))


@pytest.mark.slow
def test_mmdets_resnet_keeps_no_norm_in_float32_either():
    model = ResNet(50)
    model.eval()  # returns None there
    randomise_norms(model)
    image = torch.randn(1, 3, 64, 64)
    result, count = fold_batch_norms(model, image)
    assert count == 53 and norms_of(result) == []
    with torch.no_grad():
        for one, other in zip(model(image), result(image), strict=True):
            assert (one - other).abs().max() <= 1e-4 * one.abs().max()
    assert next(result.parameters()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mobilevitv2_100', 'resnet50'])
def test_timms_features_keep_no_norm_but_their_activations(name):
    timm = pytest.importorskip('timm', reason="timm is not here: pip install '.[peers]'")
    model = timm.create_model(name, features_only=True)
    folded(model, torch.randn(1, 3, 64, 64), count=len(norms_of(model)))


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, padding_mode='reflect'),
        nn.Conv2d(4, 8, 9, groups=4),
        nn.ConvTranspose2d(4, 8, 3, stride=2),
        nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2, bias=False),
        nn.ConvTranspose2d(8, 8, 3, groups=8),
    ],
    ids=['strided', 'dilated', 'grouped', 'transposed', 'transposed in groups', 'transposed depthwise'],
)
@pytest.mark.parametrize('affine', [True, False])
def test_every_kind_of_convolution(layer, affine):
    model = nn.Sequential(layer, nn.BatchNorm2d(8, affine=affine))
    result = folded(model, torch.randn(2, layer.in_channels, 10, 12), count=1)
    assert isinstance(result[1], nn.Identity)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('affine', [True, False])
def test_linear_layers(bias, affine):
    folded(nn.Sequential(nn.Linear(6, 5, bias), nn.BatchNorm1d(5, affine=affine)), torch.randn(7, 6), count=1)


@pytest.mark.parametrize('tokens', [5, 7])
def test_a_linear_layer_over_tokens_whose_norm_has_them_as_channels(tokens):
    folded(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(tokens)), torch.randn(2, tokens, 6), count=0)


def test_one_and_three_dimensions():
    folded(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), torch.randn(2, 2, 20), count=1)
    folded(nn.Sequential(nn.Conv3d(2, 4, 3), nn.SyncBatchNorm(4)), torch.randn(2, 2, 5, 5, 5), count=1)


def test_a_model_without_norms():
    folded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), IMAGE, count=0)


def test_children_in_another_order_than_they_run():
    model = Forward(
        lambda m, x: m.b(m.c(x)) + m.a(m.d(x)),
        a=nn.BatchNorm2d(8),
        b=nn.BatchNorm2d(8),
        c=nn.Conv2d(3, 8, 3),
        d=nn.Conv2d(3, 8, 3),
    )
    folded(model, IMAGE, count=2)


def test_layer_and_norm_that_are_called_for_several_levels():
    model = conv_and_norm(lambda m, *levels: tuple(m.norm(m.conv(x)) for x in levels))
    folded(model, IMAGE, IMAGE[..., ::2, ::2], count=1)


def test_a_norm_with_two_names_goes_under_both():
    norm = nn.BatchNorm2d(8)
    result = folded(conv_and_norm(lambda m, x: m.again(m.conv(x)), norm_again=norm, again=norm), IMAGE, count=1)
    assert isinstance(result.again, nn.Identity) and result.again is result.norm_again


@pytest.mark.parametrize(
    'forward',
    [
        lambda m, x: (y := m.conv(x)) + m.norm(y),
        lambda m, x: m.norm(y := m.conv(x)) + y,
        lambda m, x: (m.norm(y := m.conv(x)), y),
        lambda m, x: dict(normed=m.norm(y := m.conv(x)), raw=y),
        lambda m, x: m.norm(y := m.conv(x)) * y[:, :1].detach(),
        lambda m, x: m.norm(m.conv(x).relu_()),
        lambda m, x: m.norm(m.conv(x) + 1),
        lambda m, x: m.norm(m.conv(x)) + m.conv(x),
        lambda m, x: m.norm(m.conv(x)) + m.norm(x.repeat(1, 3, 1, 1)[:, :8, 2:, 2:]),
        lambda m, x: m.norm(m.conv(x)) + m.conv.weight.mean(),
        lambda m, x: m.norm(m.conv(x)) + m.norm.running_mean.mean(),
        lambda m, x: m.norm.forward(m.conv(x)),
        lambda m, x: m.norm(m.conv.forward(x)),
    ],
    ids=[
        'used before',
        'used after',
        'returned',
        'returned by name',
        'a view of it used',
        'changed in place',
        'something between',
        'layer called for itself',
        'norm called for another',
        "the layer's weight used",
        "the norm's mean used",
        'norm called past its hooks',
        'layer called past its hooks',
    ],
)
@pytest.mark.parametrize('plain', [True, False], ids=['fresh norms', 'random norms'])
def test_what_is_used_otherwise_stays(forward, plain, monkeypatch):
    if plain:  # almost the identity, so that the outputs alone would not tell
        monkeypatch.setattr(f'{__name__}.randomise_norms', lambda model: None)
    folded(conv_and_norm(forward), IMAGE, count=0)


def test_a_layer_shared_by_two_norms_and_a_norm_shared_by_two_layers_stay():
    folded(conv_and_norm(lambda m, x: m.norm(m.conv(x)) + m.b(m.conv(x)), b=nn.BatchNorm2d(8)), IMAGE, count=0)
    folded(conv_and_norm(lambda m, x: m.norm(m.conv(x)) + m.norm(m.b(x)), b=nn.Conv2d(3, 8, 3)), IMAGE, count=0)


def test_an_output_that_a_hook_uses_stays():
    def add_mean(module, args, output):
        return output + output.mean()

    model = conv_and_norm(lambda m, x: m.norm(m.conv(x)))
    model.conv.register_forward_hook(add_mean)
    folded(model, IMAGE, count=0)
    model = conv_and_norm(lambda m, x: m.norm(m.conv(x)) + m.conv.mean)
    model.conv.register_forward_hook(lambda module, args, output: setattr(module, 'mean', output.mean()))
    folded(model, IMAGE, count=0)


def test_layers_with_tied_weights_stay():
    model = conv_and_norm(lambda m, x: m.norm(m.conv(x)) + m.b(m.a(x)), a=nn.Conv2d(3, 8, 3), b=nn.BatchNorm2d(8))
    model.a.weight = model.conv.weight
    folded(model, IMAGE, count=0)


def test_a_weight_that_is_computed_from_others_stays():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    folded(nn.Sequential(conv, nn.BatchNorm2d(8)), IMAGE, count=0)


def test_a_convolution_that_standardises_its_weight_stays():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)

    model = nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8)).eval()
    assert fold_batch_norms(model, IMAGE)[1] == 0  # though a fresh norm would change the outputs by 5e-6 only
    folded(model, IMAGE, count=0)


def test_a_subclass_of_a_norm_keeps_what_else_it_computes():
    class WithActivation(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.drop, self.act = nn.Dropout(), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    class WithResidual(nn.BatchNorm2d):
        def forward(self, x):
            return x + super().forward(x)

    result = folded(nn.Sequential(nn.Conv2d(3, 8, 3), WithActivation(8)), IMAGE, count=1)
    assert [type(module) for module in result[1]] == [nn.Dropout, nn.ReLU]
    folded(nn.Sequential(nn.Conv2d(3, 8, 3), WithResidual(8)), IMAGE, count=0)


def test_norms_without_running_statistics_stay():
    folded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), IMAGE, count=0)


def test_a_norm_in_training_mode_stays_and_its_statistics_too():
    model = conv_and_norm(lambda m, x: m.norm(m.conv(x))).eval()
    randomise_norms(model)
    model.norm.train()
    before = model.norm.running_mean.clone()
    result, count = fold_batch_norms(model, IMAGE)
    assert count == 0 and result.norm.training
    assert torch.equal(model.norm.running_mean, before) and torch.equal(result.norm.running_mean, before)


def test_what_the_example_does_not_reach_stays():
    folded(conv_and_norm(lambda m, x: x + 1), IMAGE, count=0)


def test_nested_outputs_are_compared():
    model = conv_and_norm(lambda m, x: [{'a': (m.norm(m.conv(x)), None)}, 3]).eval()
    randomise_norms(model)
    result, count = fold_batch_norms(model, IMAGE)
    assert count == 1
    assert torch.allclose(result(IMAGE)[0]['a'][0], model(IMAGE)[0]['a'][0], atol=1e-5)


def test_run_replaces_the_call():
    model = conv_and_norm(lambda m, x: pytest.fail('called')).eval()
    assert fold_batch_norms(model, run=lambda m: m.norm(m.conv(IMAGE)))[1] == 1


def test_the_example_may_be_changed_by_the_model():
    model = conv_and_norm(lambda m, x: m.norm(m.conv(x.mul_(2)))).eval()
    image = IMAGE.clone()
    assert fold_batch_norms(model, image)[1] == 1
    assert torch.equal(image, IMAGE)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r'call eval\(\)'):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGE)


@pytest.mark.parametrize(
    'change',
    [
        lambda m, y: y * 2 if isinstance(m.norm, nn.Identity) else y,
        lambda m, y: y[None] if isinstance(m.norm, nn.Identity) else y,
        lambda m, y: y / 0 * 0 if isinstance(m.norm, nn.Identity) else y,
        lambda m, y: (y, y) if isinstance(m.norm, nn.Identity) else y,
    ],
    ids=['values', 'size', 'not finite', 'number'],
)
def test_other_outputs_are_an_error(change):
    model = conv_and_norm(lambda m, x: change(m, m.norm(m.conv(x)))).eval()
    with pytest.raises(RuntimeError, match='folding 1 BatchNorms changed an output'):
        fold_batch_norms(model, IMAGE)


def test_outputs_without_tensors_are_an_error():
    with pytest.raises(RuntimeError, match='no tensors'):
        fold_batch_norms(conv_and_norm(lambda m, x: m.norm(m.conv(x)).sum().item()).eval(), IMAGE)


def raise_after_folding(module, x):
    if isinstance(module.norm, nn.Identity):
        raise KeyError('later')
    return module.norm(module.conv(x))


def raise_at_once(module, x):
    module.conv(x)
    raise KeyError('at once')


@pytest.mark.parametrize('forward', [lambda m, x: m.norm(m.conv(x)), raise_at_once, raise_after_folding])
def test_the_model_stays_as_it_is(forward):
    model = conv_and_norm(forward).eval()
    randomise_norms(model)
    calls = []
    model.conv.register_forward_hook(lambda *_: calls.append(1) and None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, parameters = list(model.modules()), list(model.parameters())
    try:
        result, _ = fold_batch_norms(model, IMAGE)
    except KeyError:
        assert forward in (raise_at_once, raise_after_folding)
    else:
        assert {id(p) for p in result.parameters()}.isdisjoint(map(id, parameters))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in parameters)
    assert len(model.conv._forward_hooks) == 1
    for module in modules:
        assert not module._forward_pre_hooks
        assert module is model.conv or not module._forward_hooks


def test_the_copy_has_no_hooks_of_ours():
    result, _ = fold_batch_norms(conv_and_norm(lambda m, x: m.norm(m.conv(x))).eval(), IMAGE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.modules())
