"""The parts of a model for phones, before any runtime: what they compute, their names, what is refused."""

import re
import sys

import pytest
import torch
from norms import randomise_norms
from phone_parts import CLASSIFIER, MASK_RCNN, R18, RETINANET, SHAPE, trained
from processes import tool

from shvit_det import UsageError
from shvit_det.export import phone_parts
from shvit_det.export.phone_export import export_part
from shvit_det.export.phone_parts import Probabilities, build_part, distinct

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('config', [MASK_RCNN, RETINANET, R18], ids=['mask_rcnn', 'retinanet', 'r18'])
@pytest.mark.parametrize('name', ['backbone', 'backbone+neck'])
def test_a_part_of_a_detector_computes_what_the_detector_does(config, name, tmp_path):
    model, path = trained(config, tmp_path)
    part = build_part(config, path, name, SHAPE)
    image = part.example()
    bgr = [image[0].flip(0)]  # as a pipeline reads images
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=bgr), False)['inputs']
        expected = model.backbone(inputs) if name == 'backbone' else model.extract_feat(inputs)
    found = part.outputs(image)
    assert [out.shape for out in found] == [out.shape for out in expected] and inputs.shape == image.shape
    for out, wanted in zip(found, expected, strict=True):
        assert (out - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert part.colors == 'RGB' and part.weights == 'weights.pth' and part.classes is None
    strides = [round(SHAPE[1] / out.shape[3]) for out in expected]
    assert part.output_names == tuple(f'stride_{stride}' for stride in strides)


def test_the_classifier_gives_what_mmpretrain_does(tmp_path):
    pytest.importorskip('mmpretrain')
    model, path = trained(CLASSIFIER, tmp_path, dataset_meta=dict(classes=('a', 'b', 'a', 'c', 'd', 'e')))
    part = build_part(CLASSIFIER, path)
    assert (part.name, part.shape, part.output_names) == ('classifier', (64, 64), ('probabilities',))
    assert part.classes == ('a (0)', 'b', 'a (2)', 'c', 'd', 'e')  # the checkpoint's, each with a name of its own
    image = part.example()
    with torch.no_grad():
        inputs = model.data_preprocessor(dict(inputs=image.flip(1)), False)['inputs']
        expected = model(inputs, mode='tensor').softmax(dim=1)
    assert torch.allclose(part.outputs(image)[0], expected, atol=1e-6)


def test_names_of_classes_come_from_the_data_where_the_checkpoint_has_none(tmp_path):
    pytest.importorskip('mmpretrain')
    _, path = trained(CLASSIFIER, tmp_path, dataset_meta=dict(classes=('too', 'few')))
    assert build_part(CLASSIFIER, path).classes == ('disc', 'square', 'triangle', 'star', 'cross', 'ring')


def test_the_two_heads_of_a_distilled_classifier_become_one_layer():
    pytest.importorskip('mmpretrain')
    from shvit_det.models.classifier import SHViTHead

    torch.manual_seed(0)
    head = SHViTHead(num_classes=5, in_channels=8, distillation=True).eval()
    randomise_norms(head)
    feature = torch.randn(2, 8, 3, 4)
    with torch.no_grad():
        assert torch.allclose(Probabilities(head)((feature,)), head((feature,)).softmax(1), atol=1e-6)
    assert [name for name, _ in Probabilities(head).named_children()] == ['linear']


def test_the_deployed_attention_is_replaced():
    part = build_part(MASK_RCNN, name='backbone', shape=(64, 64))
    kinds = [type(module).__name__ for module in part.module.modules()]
    assert kinds.count('PhoneAttention') == 2 and not {'FusedAttention', 'BatchNorm2d', 'GroupNorm'} & set(kinds)


def test_random_weights_are_the_same_each_time_and_close_no_branch():
    first, second = (build_part(MASK_RCNN, shape=(64, 64)) for _ in range(2))
    assert (first.name, first.weights) == ('backbone', 'random')
    values = [module.module.state_dict() for module in (first, second)]
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert all(value.any() for name, value in values[0].items() if name.endswith('weight'))


def test_levels_of_one_pixel_have_strides_of_their_own():
    names = build_part(RETINANET, name='backbone+neck', shape=(64, 64)).output_names
    assert names == ('stride_8', 'stride_16', 'stride_32', 'stride_64', 'stride_128')


def test_a_detector_is_exported_at_the_papers_size(monkeypatch):
    monkeypatch.setattr(phone_parts, 'DETECTION_SHAPE', (64, 96))
    assert build_part(MASK_RCNN).shape == (64, 96)


def test_equal_names_get_their_numbers():
    assert distinct(('crane', 'tench', 'crane')) == ('crane (0)', 'tench', 'crane (2)')


@pytest.mark.parametrize(
    'arguments, words',
    [
        (('no_such.py',), 'no such config: no_such.py'),
        ((MASK_RCNN, None, 'classifier'), "has a detector, which has no part 'classifier'"),
        ((MASK_RCNN, None, 'head'), "no part 'head' for a phone: choose from backbone, backbone+neck, classifier"),
        ((MASK_RCNN, None, None, (100, 128)), '--shape 100 128: height and width must be at least 64 and multiples of'),
        ((MASK_RCNN, None, None, (32, 64)), '--shape 32 64: height and width must be at least 64'),
        ((MASK_RCNN, 'no_such.pth'), 'no_such.pth'),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        build_part(*arguments)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _, path = trained(RETINANET, tmp_path)
    with pytest.raises(UsageError, match='belongs to another model'):
        build_part(MASK_RCNN, path)


def test_a_classifier_has_no_neck_and_needs_a_size():
    pytest.importorskip('mmpretrain')
    with pytest.raises(UsageError, match=r"has a classifier, which has no part 'backbone\+neck'"):
        build_part(CLASSIFIER, name='backbone+neck')


@pytest.mark.parametrize(
    'target, package', [('coreml', 'coremltools'), ('executorch', 'executorch'), ('executorch', 'executorch.exir')]
)
def test_a_missing_package_is_named_with_the_command(target, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"is not installed: pip install 'shvit_det\[{target}\]'"):
        export_part(MASK_RCNN, None, target)


def test_the_name_of_the_file_must_fit_the_target():
    with pytest.raises(UsageError, match=r'takes a name that ends in \.pte, but got a\.mlpackage'):
        export_part(MASK_RCNN, None, 'executorch', 'a.mlpackage')
    with pytest.raises(UsageError, match="no target 'tflite' for a phone: choose from coreml, executorch"):
        export_part(MASK_RCNN, None, 'tflite')


def test_the_tool_ends_in_one_sentence(tmp_path):
    result = tool('export', 'no_such.py', 'random', '--to', 'executorch', '--out', 'a.onnx', cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith('error: --out') and 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('to', 'option', 'words'),
    [
        ('onnx', ['--part', 'backbone'], '--part and --shape are for phones'),
        ('openvino', ['--shape', '64', '64'], '--part and --shape are for phones'),
        ('executorch', ['--cfg-options', 'model.test_cfg.score_thr=0.3'], '--cfg-options has no effect'),
    ],
)
def test_options_of_other_formats_are_refused(to, option, words, tmp_path):
    result = tool('export', MASK_RCNN, 'random', '--to', to, *option, cwd=tmp_path)
    assert result.returncode == 2 and words in result.stderr
