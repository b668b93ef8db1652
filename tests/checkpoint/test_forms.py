"""Every published form loads in full through the function that users call, and computes what the reference computes."""

from functools import cache
from pathlib import Path

import checkpoint_files as files
import golden
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from paths import ROOT
from safetensors.torch import save_file
from torch import nn

from shvit_det import SHViT, UsageError, load_checkpoint
from shvit_det.checkpoint.key_renaming import renamed_weights
from shvit_det.checkpoint.loading import load_content, match_content, tensors_of
from shvit_det.checkpoint.matching import match_keys
from shvit_det.configuration.detection import Detection

pytestmark = pytest.mark.slow

FORMS = pytest.mark.parametrize('form', files.CLASSIFIER_FILES)
DETECTORS = pytest.mark.parametrize('detector', ['mask_rcnn', 'retinanet'])
VARIANTS = pytest.mark.parametrize('variant', ['s1', 's4'])


class Classifier(nn.Module):
    """The least that has the names of an mmpretrain classifier."""

    def __init__(self, variant: str, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = SHViT(variant)
        width = self.backbone.out_channels[-1]
        self.head = nn.ModuleDict(dict(bn=nn.BatchNorm1d(width), l=nn.Linear(width, num_classes)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head['l'](self.head['bn'](self.backbone(image)[-1].mean((2, 3))))


@cache
def reference(variant: str, kind: str) -> dict[str, torch.Tensor]:
    return golden.state_dict(golden.load(f'shvit_{variant}')[f'{kind}_keys'])


def write(form: str, variant: str, folder: Path) -> Path:
    kind, suffix, writer, _ = files.CLASSIFIER_FILES[form]
    path = folder / f'checkpoint{suffix}'
    writer(reference(variant, kind), path)
    return path


def expected(variant: str, kind: str) -> dict[str, torch.Tensor]:
    """Return each tensor of the model with the fill of the reference's key; both lists are in the model's order."""
    keys = golden.load(f'shvit_{variant}')
    values = reference(variant, kind).values()
    return dict(zip(keys['timm_keys'], values, strict=True))


@FORMS
def test_every_tensor_of_the_backbone_comes_from_the_file(form, tmp_path, log):
    backbone = SHViT('s1')
    load_checkpoint(backbone, write(form, 's1', tmp_path))
    values = expected('s1', files.CLASSIFIER_FILES[form][0])
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, values[name]), name
    message = log.messages[-1]
    assert f'{files.CLASSIFIER_FILES[form][3]}, 464 of 464 backbone tensors' in message and '\n' not in message


@FORMS
def test_a_file_without_one_of_them_is_refused(form, tmp_path):
    kind, suffix, writer, _ = files.CLASSIFIER_FILES[form]
    lacking = {key: value for key, value in reference('s1', kind).items() if key != 'patch_embed.0.bn.bias'}
    writer(lacking, tmp_path / f'lacking{suffix}')
    backbone = SHViT('s1')
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UsageError, match=r"1 are missing .*'backbone\.patch_embed\.0\.bn\.bias'"):
        load_checkpoint(backbone, tmp_path / f'lacking{suffix}')
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize('naming', ['official', 'timm', 'features', 'prefixed'])
def test_none_of_them_can_be_missing(naming):
    state = files.without_head(reference('s1', 'official' if naming == 'official' else 'timm'))
    if naming == 'features':
        state = files.features_only(state)
    if naming == 'prefixed':
        state = files.prefixed('backbone.', state)
    backbone = SHViT('s1')
    match_content(backbone, state, 'file')
    own, names = tensors_of(backbone), {*backbone.state_dict()}
    for name in state:
        result = match_keys(renamed_weights({key: value for key, value in state.items() if key != name}).tensors, own)
        assert len(result.missing) == 1 and not result.complete
        names.discard(result.missing[0].removeprefix('backbone.'))
    assert names == set()


@VARIANTS
@pytest.mark.parametrize('form', ['official release', 'timm safetensors', 'mmpretrain'])
def test_features_and_logits_are_the_references(variant, form, tmp_path, log):
    kind = files.CLASSIFIER_FILES[form][0]
    model = Classifier(variant).eval()
    load_checkpoint(model, write(form, variant, tmp_path))
    assert '7 of 7 head tensors' in log.messages[-1]
    for case in golden.load(f'shvit_{variant}')['cases']:
        with torch.no_grad():
            outs = model.backbone(golden.image(case['input']))
            logits = model(golden.image(case['input']))
        for out, feature in zip(outs, case[kind]['features'], strict=True):
            golden.assert_matches(out, feature)
        golden.assert_matches(logits, case[kind]['logits'])


@pytest.fixture(scope='module')
def build():
    return cache(
        lambda variant, form: (
            Detection().build(Config.fromfile(ROOT / 'configs' / f'{form}_shvit_{variant}_coco.py')).eval()
        )
    )


@VARIANTS
@DETECTORS
def test_the_authors_detectors_load_in_full(variant, detector, build, tmp_path, log):
    state = files.official_detector(variant, detector)
    path = tmp_path / 'detector.pth'
    torch.save(files.mmdet2(state), path, _use_new_zipfile_serialization=detector == 'retinanet')
    model = build(variant, detector)
    load_checkpoint(model, path)
    message = log.messages[-1]
    assert 'official detection' in message and 'left' not in message

    own = model.state_dict()
    backbone = expected(variant, 'official')
    assert len(own) == len(state)
    for name, value in own.items():
        inner = name.removeprefix('backbone.')
        assert torch.equal(value, state[name] if inner == name else backbone[inner]), name
    for case in golden.load(f'shvit_{variant}')['cases']:
        with torch.no_grad():
            outs = model.backbone(golden.image(case['input']))
        for out, feature in zip(outs, case['official']['features'], strict=True):
            golden.assert_matches(out, feature)
    for case in golden.load(f'neck_{detector}_{variant}')['cases']:
        with torch.no_grad():
            outs = model.neck([golden.image(shape) for shape in case['inputs']])
        for out, level in zip(outs, case['outputs'], strict=True):
            golden.assert_matches(out, level)


@DETECTORS
def test_mmdet_names_its_heads_as_it_did_in_2_25(detector, build):
    own = {
        name: list(value.shape)
        for name, value in build('s4', detector).state_dict().items()
        if not name.startswith(('backbone.', 'neck.'))
    }
    assert own == files.with_biases(files.HEADS[detector])


@DETECTORS
def test_a_detector_without_one_of_its_tensors_is_refused(detector, build):
    state = files.official_detector('s1', detector)
    model = build('s1', detector)
    for name in [name for name in state if not name.startswith('backbone.')]:
        with pytest.raises(UsageError, match='another model'):
            match_content(model, {key: value for key, value in state.items() if key != name}, 'file')


def test_a_detector_or_a_classifier_gives_its_backbone_to_another(tmp_path, log):
    path = tmp_path / 'detector.pth'
    torch.save(files.mmdet2(files.official_detector('s1', 'retinanet')), path)
    backbone = ROOT_MODELS.build(
        dict(type='SHViT', arch='s1', init_cfg=dict(type='SHViTPretrained', checkpoint=str(path)))
    )
    backbone.init_weights()
    values = expected('s1', 'official')
    assert all(torch.equal(value, values[name]) for name, value in backbone.state_dict().items())
    assert any('left out: neck (18), bbox_head (20)' in message for message in log.messages)

    path = write('mmpretrain', 's1', tmp_path)
    backbone = SHViT('s1', init_cfg=dict(type='SHViTPretrained', checkpoint=str(path)))
    backbone.init_weights()
    values = expected('s1', 'timm')
    assert all(torch.equal(value, values[name]) for name, value in backbone.state_dict().items())
    assert any('from state_dict and not ema_state_dict; left out: head (7)' in message for message in log.messages)


def test_weights_of_an_average_alone_are_taken(log):
    state = {f'backbone.{name}': value for name, value in files.without_head(reference('s1', 'timm')).items()}
    raw = {f'module.{name}': value for name, value in state.items()}
    backbone = SHViT('s1')
    load_content(backbone, dict(ema_state_dict=dict(raw, steps=torch.tensor(3)), meta={}), 'average.pth')
    assert all(torch.equal(value, state[f'backbone.{name}']) for name, value in backbone.state_dict().items())


def test_a_second_head_is_left_out_and_named(log):
    state = dict(reference('s1', 'official'))
    state |= {name.replace('head.', 'head_dist.'): value for name, value in state.items() if name.startswith('head.')}
    load_content(Classifier('s1'), dict(model=state), 'distilled.pth')
    assert log.messages[-1].endswith('7 of 7 head tensors; left out: distillation head (7)')


def test_stages_that_were_not_built_are_left_out_and_named(log):
    backbone = SHViT('s4', out_indices=(0, 1))
    load_content(backbone, reference('s4', 'timm'), 'file')
    assert 'left out: stage 2 (' in log.messages[-1]
    values = expected('s4', 'timm')
    assert all(torch.equal(value, values[name]) for name, value in backbone.state_dict().items())


def test_matrices_serve_as_kernels_of_1x1_convolutions():
    state = dict(reference('s1', 'official'))
    name = 'blocks2.3.mixer.m.qkv.c.weight'
    state[name] = state[name][:, :, 0, 0]
    backbone = SHViT('s1')
    load_content(backbone, state, 'file')
    assert torch.equal(
        backbone.state_dict()['stages.1.blocks.0.mixer.m.qkv.c.weight'], reference('s1', 'official')[name]
    )


@pytest.mark.parametrize('variant', ['s1', 's2', 's3', 's4'])
def test_a_state_dict_of_every_variant_comes_back(variant, tmp_path):
    """S2's second squeeze is 312 wide and not 308."""
    torch.manual_seed(0)
    source, target = SHViT(variant), SHViT(variant)
    save_file(source.state_dict(), tmp_path / 'backbone.safetensors')
    load_checkpoint(target, tmp_path / 'backbone.safetensors')
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    if variant == 's2':
        assert target.state_dict()['stages.2.downsample.2.se.fc1.weight'].shape[0] == 312


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast(dtype):
    state = {
        name: value.to(dtype) if value.is_floating_point() else value.int()
        for name, value in reference('s1', 'timm').items()
    }
    backbone = SHViT('s1')
    load_content(backbone, state, 'file')
    for name, value in backbone.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64) and torch.equal(value, state[name].to(value.dtype))
