"""The ImageNet head and the published classifiers inside mmpretrain."""

import subprocess
import sys

import golden
import pytest
import torch
from checkpoint_files import official_release
from mmengine.registry import MODELS, DefaultScope
from paths import ROOT

from shvit_det import SHViT, UsageError, load_checkpoint

pytest.importorskip('mmpretrain')

from classifiers import build_classifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample

from shvit_det.models.classifier import SHViTHead

pytestmark = pytest.mark.slow

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8))


@pytest.fixture(autouse=True)
def scope():
    """Build under mmpretrain's scope, whichever another test has left."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.mark.parametrize('source', ['official', 'timm'])
@pytest.mark.parametrize('variant, in_channels', [('s1', 320), ('s4', 448)])
def test_logits_agree_with_the_reference(variant, in_channels, source, tmp_path):
    reference = golden.load(f'shvit_{variant}')
    classifier = build_classifier(variant, in_channels, 1000).eval()
    weights = golden.state_dict(reference[f'{source}_keys'])
    torch.save(official_release(weights) if source == 'official' else weights, tmp_path / 'weights.pth')
    load_checkpoint(classifier, str(tmp_path / 'weights.pth'))
    for case in reference['cases']:
        with torch.no_grad():
            logits = classifier(golden.image(case['input']), mode='tensor')
        golden.assert_matches(logits, case[source]['logits'])


@pytest.mark.parametrize('type_', ['SHViTHead', 'shvit_det.SHViTHead'])
@pytest.mark.parametrize('registry', [MODELS, MMPRETRAIN_MODELS], ids=['mmengine', 'mmpretrain'])
def test_the_head_is_registered_for_every_project(type_, registry):
    head = registry.build(dict(type=type_, num_classes=7, in_channels=32, topk=(1, 5)))
    assert type(head) is SHViTHead and head.topk == (1, 5)


def test_the_class_scores_of_two_heads_are_averaged():
    torch.manual_seed(0)
    head = SHViTHead(num_classes=5, in_channels=4, distillation=True).eval()
    names = {'bn', 'l', 'distillation_bn', 'distillation_l'}
    assert {name.split('.')[0] for name in head.state_dict()} == names
    for norm in (head.bn, head.distillation_bn):
        norm.running_mean.uniform_()
        norm.running_var.uniform_(0.5, 1.5)
    feature = torch.randn(3, 4, 2, 5)
    pooled = feature.mean((2, 3))
    expected = (head.l(head.bn(pooled)) + head.distillation_l(head.distillation_bn(pooled))) / 2
    assert torch.allclose(head((torch.zeros(3, 9, 1, 1), feature)), expected, atol=1e-6)
    assert torch.equal(head.pre_logits((feature,)), pooled)
    plain = SHViTHead(num_classes=5, in_channels=4).eval()
    plain.load_state_dict({name: value for name, value in head.state_dict().items() if name in plain.state_dict()})
    assert torch.allclose(plain((feature,)), head.l(head.bn(pooled)), atol=1e-6)


def test_train_returns_the_module():
    classifier = build_classifier(TINY, 32, 6)
    for part in (classifier, classifier.backbone, classifier.head):
        assert part.train() is part and part.eval() is part


def test_the_head_without_storage_and_with_no_images():
    with torch.device('meta'):
        head = SHViTHead(num_classes=5, in_channels=4, distillation=True).eval()
        assert head((torch.zeros(3, 4, 2, 2),)).device.type == 'meta'
    assert SHViTHead(num_classes=5, in_channels=4).eval()((torch.zeros(0, 4, 2, 2),)).shape == (0, 5)


def test_the_linear_layers_start_small_and_without_bias():
    head = SHViTHead(num_classes=200, in_channels=64, distillation=True)
    head.init_weights()
    for layer in (head.l, head.distillation_l):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize('distillation', [False, True])
def test_losses_and_predictions_are_mmpretrains(distillation):
    torch.manual_seed(0)
    classifier = build_classifier(TINY, 32, 6, distillation=distillation)
    images = torch.randn(4, 3, 64, 64)
    samples = [DataSample().set_gt_label(label) for label in (0, 3, 5, 1)]
    losses = classifier(images, samples, mode='loss')
    losses['loss'].backward()
    assert all(p.grad is not None for p in classifier.head.parameters())
    classifier.eval()
    with torch.no_grad():
        predicted = classifier(images, samples, mode='predict')
        scores = classifier(images).softmax(dim=1)
    for sample, score in zip(predicted, scores, strict=True):
        assert torch.allclose(sample.pred_score, score) and sample.pred_label.item() == score.argmax()


@pytest.mark.parametrize('arguments', [dict(num_classes=0, in_channels=4), dict(num_classes=4, in_channels=-1)])
def test_sizes_of_the_head_must_be_positive(arguments):
    with pytest.raises(UsageError, match=r'must be positive, but got (0|-1)'):
        SHViTHead(**arguments)


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_detectors_need_no_mmpretrain():
    result = run_python(
        "import sys; sys.modules['mmpretrain'] = None\n"
        'import shvit_det\n'
        'from mmdet.registry import MODELS\n'
        "MODELS.build(dict(type='SHViT', arch='s1'))\n"
        'try:\n'
        "    MODELS.build(dict(type='SHViTHead', num_classes=2, in_channels=2))\n"
        'except shvit_det.UsageError as error:\n'
        '    print(error)\n'
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'needs mmpretrain' in result.stdout and 'pip install' in result.stdout


def test_the_clash_with_a_new_transformers_is_named(tmp_path):
    """A transformers without the names that mmpretrain imports, as the new ones are; detectors go on working."""
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers' / '__init__.py').write_text("__version__ = '99.0'")
    (tmp_path / 'transformers-99.0.dist-info').mkdir()
    (tmp_path / 'transformers-99.0.dist-info' / 'METADATA').write_text('Name: transformers\nVersion: 99.0\n')
    result = run_python(
        f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'import shvit_det\n'
        "shvit_det.SHViT('s1')\n"
        'from mmengine.registry import MODELS\n'
        'try:\n'
        "    MODELS.build(dict(type='SHViTHead', num_classes=2, in_channels=2))\n"
        'except shvit_det.UsageError as error:\n'
        '    print(error)\n'
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'mmpretrain cannot be imported' in result.stdout and 'uninstall transformers' in result.stdout


def test_depths_of_the_whole_classifier_are_those_of_the_backbone():
    classifier = build_classifier(TINY, 32, 6)
    backbone = SHViT(TINY)
    assert classifier.get_layer_depth('backbone.patch_embed.0.c.weight') == (0, 7)
    assert classifier.get_layer_depth('head.l.weight') == (6, 7)
    assert classifier.get_layer_depth('backbone.stages.2.blocks.0.conv.m.c.weight') == backbone.get_layer_depth(
        'stages.2.blocks.0.conv.m.c.weight'
    )
