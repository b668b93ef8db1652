"""``type='SHViT'`` in configs derived from mmdet's own: build, one training step, one prediction."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from paths import ROOT

pytestmark = pytest.mark.slow

CONFIGS = sorted(path.stem for path in (ROOT / 'tests' / 'data').glob('*_shvit.py'))


@pytest.mark.parametrize('name', CONFIGS)
def test_a_detector_of_mmdet_trains_and_predicts(name):
    torch.manual_seed(0)
    register_all_modules()
    config = Config.fromfile(ROOT / 'tests' / 'data' / f'{name}.py')
    detector = MODELS.build(config.model)
    detector.init_weights()
    with_mask = 'mask' in name
    inputs = demo_mm_inputs(2, [(3, 128, 160), (3, 96, 128)], num_classes=80, with_mask=with_mask)
    optimizer = OptimWrapper(torch.optim.AdamW(detector.parameters(), lr=1e-4))
    before = {key: value.clone() for key, value in detector.backbone.named_parameters()}

    detector.train()
    losses = detector.train_step(inputs, optimizer)
    assert torch.isfinite(losses['loss']) and losses['loss'] > 0
    assert any(not torch.equal(value, before[key]) for key, value in detector.backbone.named_parameters())

    detector.eval()
    with torch.no_grad():
        samples = detector.test_step(demo_mm_inputs(1, [(3, 128, 160)], num_classes=80, with_mask=with_mask))
    predicted = samples[0].pred_instances
    assert set(predicted.keys()) >= {'bboxes', 'scores', 'labels'}
    assert ('masks' in predicted) == with_mask
    assert torch.isfinite(predicted.bboxes).all()
