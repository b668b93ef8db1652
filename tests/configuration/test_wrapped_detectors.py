"""Detectors within another module, as the student and the teacher of mmdet's semi-supervised ones."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from paths import ROOT
from timed import settings
from torch import nn

from shvit_det import deploy, load_checkpoint
from shvit_det.checkpoint import check_checkpoint
from shvit_det.checkpoint.convert import convert_checkpoint
from shvit_det.configuration.changing import remove_pretrained
from shvit_det.configuration.detection import Detection, predicting_part
from shvit_det.configuration.reading import load_config, pretrained_parts
from shvit_det.deployment.backbone import FusedSHViT
from shvit_det.export.detector_export import export_detector
from shvit_det.export.phone_parts import build_part
from shvit_det.timing.model_builder import build_models

pytestmark = pytest.mark.slow

SEMI = str(ROOT / 'tests' / 'data' / 'tiny_semi.py')
PLAIN = str(ROOT / 'tests' / 'data' / 'tiny_retinanet.py')


def semi(**changes) -> tuple[Config, nn.Module]:
    config = load_config(SEMI, changes)
    torch.manual_seed(0)
    return config, Detection().build(config)


def predictions(detector: nn.Module) -> list[torch.Tensor]:
    image = torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(metainfo=dict(img_shape=(128, 160), ori_shape=(128, 160), scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        found = detector.eval().test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances
    return [found.bboxes, found.scores, found.labels]


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Files of the semi-supervised detector, and of its teacher alone."""
    folder, model = tmp_path_factory.mktemp('semi'), semi()[1]
    torch.save(dict(state_dict=model.state_dict()), folder / 'semi.pth')
    torch.save(dict(state_dict=model.teacher.state_dict()), folder / 'plain.pth')
    return folder


def test_pretrained_weights_of_both_branches_are_found_and_taken_out():
    config, _ = semi()
    config.model.detector.backbone.init_cfg = dict(type='SHViTPretrained', checkpoint='a.pth')
    found = list(pretrained_parts(Detection().build(config)))
    assert [arguments for _, arguments in found] == [dict(checkpoint='a.pth')] * 2
    remove_pretrained(config)
    assert list(pretrained_parts(Detection().build(config))) == []


def test_a_plain_checkpoint_is_for_both_branches(checkpoints):
    plain, (_, model) = torch.load(checkpoints / 'plain.pth')['state_dict'], semi()
    for file in ('semi.pth', 'plain.pth'):
        for parameter in model.parameters():
            parameter.data.zero_()
        load_checkpoint(model, checkpoints / file)
        torch.testing.assert_close(dict(model.teacher.state_dict()), plain, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.student.state_dict()), plain, rtol=0, atol=0)
    _, other = semi(**{'model.detector.bbox_head.num_classes': 7})
    check_checkpoint(other, checkpoints / 'plain.pth', new_classes=True)


def test_a_plain_detector_and_a_conversion_take_the_teacher(checkpoints, tmp_path):
    content = torch.load(checkpoints / 'semi.pth')
    state = {name: value + 1 if name.startswith('student.') else value for name, value in content['state_dict'].items()}
    torch.save(dict(state_dict=state), tmp_path / 'semi.pth')
    model = Detection().build(load_config(PLAIN))
    load_checkpoint(model, tmp_path / 'semi.pth')
    teacher = {name.removeprefix('teacher.'): value for name, value in state.items() if name.startswith('teacher.')}
    torch.testing.assert_close(dict(model.state_dict()), teacher, rtol=0, atol=0)
    done = convert_checkpoint(tmp_path / 'semi.pth', tmp_path / 'plain.pth', 'ours')
    assert done.count == len(teacher) and 'the teacher' in done.form
    torch.testing.assert_close(torch.load(done.path)['state_dict'], teacher, rtol=0, atol=0)


def test_the_teacher_and_frozen_stages_stay_frozen_and_rates_decay_in_the_backbone():
    _, model = semi(**{'model.detector.backbone.frozen_stages': 1})
    model.train()
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert not model.student.backbone.patch_embed[0].c.weight.requires_grad
    assert not model.student.backbone.patch_embed[0].bn.training
    decay = dict(constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.5))
    wrapper = build_optim_wrapper(model, dict(decay, optimizer=dict(type='AdamW', lr=1.0)))
    rates = {id(parameter): group['lr'] for group in wrapper.optimizer.param_groups for parameter in group['params']}
    found = [rates[id(parameter)] for parameter in model.student.backbone.parameters() if parameter.requires_grad]
    assert found[0] < max(found) == 0.5 and found == sorted(found)
    assert {rates[id(parameter)] for parameter in model.student.neck.parameters()} == {1.0}


@pytest.mark.parametrize('branch', ['teacher', 'student'])
def test_the_deployed_form_and_the_part_that_predicts_compute_the_same(branch):
    _, model = semi(**{'model.semi_test_cfg.predict_on': branch})
    for parameter in model.student.parameters():
        parameter.data += 0.01
    expected = predictions(model)
    torch.testing.assert_close(predictions(predicting_part(model)), expected)
    deployed = deploy(model)
    assert isinstance(deployed.teacher.backbone, FusedSHViT) and isinstance(deployed.student.backbone, FusedSHViT)
    torch.testing.assert_close(predictions(deployed)[0], expected[0], rtol=1e-3, atol=1e-2)
    assert not isinstance(model.teacher.backbone, FusedSHViT)


def test_exports_and_timing_take_the_part_that_predicts(checkpoints, tmp_path):
    exported = export_detector(SEMI, str(checkpoints / 'semi.pth'), 'onnx', str(tmp_path / 'a.onnx'))
    assert exported.is_file()
    part = build_part(SEMI, str(checkpoints / 'semi.pth'), 'backbone+neck', (64, 64))
    assert len(part.outputs(part.example())) == len(build_part(PLAIN, None, 'backbone+neck', (64, 64)).output_names)
    (timed,) = build_models([SEMI], settings(shape=(64, 64), deploy=True), None, None)
    assert type(timed.model).__name__ == 'RetinaNet' and isinstance(timed.model.backbone, FusedSHViT)
    timed.first_run()
