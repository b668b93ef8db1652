"""Backbones by name: built the same each time, re-parameterised for real, foldable, and refused in one sentence."""

import copy
import importlib
import sys

import pytest
import torch
from norms import norms_of, randomise_norms
from torch import nn

from shvit_det import ARCHS, SHViT, UsageError
from shvit_det.models.batch_norm_folding import fold_batch_norms
from shvit_det.timing import model_builder

pytestmark = pytest.mark.slow


@pytest.fixture
def timm():
    return pytest.importorskip('timm', reason="timm is not here: pip install '.[peers]'")


# Number of BatchNorms as timm builds the backbone, as build_backbone returns it, and after folding.
PEERS = {
    'fastvit_sa12': (72, 14, 2),  # the two stand before attention, where there is no layer to take them
    'repvit_m1_1': (98, 0, 0),
    'mobilevitv2_100': (25, 25, 0),
    'efficientvit_m4': (112, 0, 0),
    'poolformer_s12': (0, 0, 0),
    'resnet50': (53, 53, 0),
    'mobilenetv4_conv_medium': (76, 76, 0),
    'shvit_s4': (99, 0, 0),
}


@pytest.mark.parametrize('name', PEERS)
def test_peers_lose_norms_and_keep_their_outputs(timm, name, monkeypatch):
    originals = []

    def randomise_and_keep(model):
        randomise_norms(model)
        originals.append(copy.deepcopy(model))

    monkeypatch.setattr(
        model_builder, 'undo_zero_init', randomise_and_keep
    )  # what happens before the re-parameterisation
    backbone, prepared = model_builder.build_backbone(f'timm:{name}')
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded, count = fold_batch_norms(backbone, image)

    numbers = PEERS[name]
    assert tuple(len(norms_of(model)) for model in (*originals, backbone, folded)) == numbers
    assert count == numbers[1] - numbers[2]
    assert prepared == ([model_builder.REPARAMETERISED] if numbers[0] > numbers[1] else [])
    assert not any(module.training for module in backbone.modules())
    with torch.no_grad():
        expected = originals[0](image)
        for model in (backbone, folded):
            for one, other in zip(expected, model(image), strict=True):
                assert one.dim() == 4 and one.abs().max() > 0
                assert (one - other).abs().max() <= 1e-4 * one.abs().max()


@pytest.mark.parametrize('arch', ARCHS)
def test_shvits_variants(arch):
    backbone, prepared = model_builder.build_backbone(f'shvit:{arch}')
    assert isinstance(backbone, SHViT) and backbone.arch == ARCHS[arch] and prepared == []
    assert not any(module.training for module in backbone.modules())


def test_no_branch_is_closed(timm):
    for source in ('shvit:s1', 'timm:resnet18'):
        assert all(norm.weight.all() for norm in norms_of(model_builder.build_backbone(source)[0]))


def test_only_closed_branches_are_opened():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    nn.init.zeros_(model[0].weight)
    model[1].weight.data = torch.tensor([0.0, 0.5])
    model_builder.undo_zero_init(model)
    assert [norm.weight.tolist() for norm in model[:2]] == [[1, 1], [0, 0.5]]


@pytest.mark.parametrize('source', ['shvit:s1', 'timm:mobilenetv3_small_050'])
def test_weights_are_the_same_at_every_call_and_the_random_state_too(source, request):
    if source.startswith('timm'):
        request.getfixturevalue('timm')
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(model_builder.build_backbone(source)[0].state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    'source, words',
    [
        ('resnet50', ["'resnet50'", 'timm:NAME', 'shvit:ARCH']),
        ('torch:resnet50', ["'torch:resnet50'", 'timm:NAME', 'shvit:ARCH']),
        ('timm:', ["'timm:'", 'timm:NAME']),
        ('shvit:s5', ["'s5'", 's1, s2, s3, s4']),
        ('timm:restnet50', ["'restnet50'", 'did you mean resnet50 or']),
        ('timm:zzz', ["'zzz'", 'timm.list_models()']),
        ('timm:hf-hub:timm/resnet50', ["'hf-hub:timm/resnet50'"]),
        ('timm:resnet50.nonsense', ['cannot build resnet50.nonsense', 'Invalid pretrained tag']),
    ],
)
def test_what_is_not_there_is_named(source, words, request):
    if source.startswith('timm'):
        request.getfixturevalue('timm')
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(UsageError) as caught:
        model_builder.build_backbone(source)
    for word in words:
        assert word in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_returns_no_feature_maps_is_named(timm, monkeypatch):
    def refuse(name, **options):
        assert options == dict(pretrained=False, features_only=True)
        raise RuntimeError('features_only not implemented for Vision Transformer models.')

    monkeypatch.setattr(timm, 'create_model', refuse)
    with pytest.raises(UsageError, match=r'timm cannot build coat_tiny .* features_only not implemented'):
        model_builder.build_backbone('timm:coat_tiny')


def test_without_timm_its_extra_is_named_and_shvit_works(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    importlib.reload(model_builder)
    with pytest.raises(UsageError, match=r"timm:resnet50: needs timm.*pip install 'shvit_det\[peers\]'"):
        model_builder.build_backbone('timm:resnet50')
    assert isinstance(model_builder.build_backbone('shvit:s1')[0], SHViT)


def test_a_broken_timm_shows_what_is_broken(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name == 'timm' or name.startswith('timm.')]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / 'timm.py').write_text('import no_such_module')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_module'):
        model_builder.build_backbone('timm:resnet50')
