"""Every config loads, builds, and says the same as the code and the paper."""

import pytest
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from shvit_det import ARCHS

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
COCO = [name for name in CONFIGS if name.endswith('_coco')]


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def test_all_configs_of_the_readme_are_there():
    assert set(CONFIGS) == {
        *(f'{head}_shvit_s{i}_coco' for head in ('mask_rcnn', 'retinanet') for i in (1, 2, 3, 4)),
        *(f'{head}_shvit_s1_sample' for head in ('mask_rcnn', 'retinanet')),
    }


@pytest.mark.parametrize('name', CONFIGS)
def test_it_builds_with_numbers_that_agree(name):
    register_all_modules()
    config = load(name)
    variant = name.split('_')[-2]
    detector = MODELS.build(config.model)
    assert detector.backbone.arch == ARCHS[variant]
    assert detector.neck.in_channels == ARCHS[variant].embed_dims
    assert detector.neck.out_strides((16, 32, 64)) == ((4, 8, 16, 32, 64) if 'mask' in name else (8, 16, 32, 64, 128))
    assert config.test_evaluator.metric == (['bbox', 'segm'] if 'mask' in name else 'bbox')
    assert config.val_evaluator == config.test_evaluator


@pytest.mark.parametrize('name', COCO)
def test_the_recipe_is_the_authors(name):
    config = load(name)
    backbone = config.model.backbone
    assert backbone.init_cfg.type == 'SHViTPretrained'
    assert backbone.init_cfg.checkpoint.endswith(f'/v1.0/shvit_{backbone.arch}.pth')
    assert backbone.norm_eval and backbone.get('frozen_stages', -1) == -1 and backbone.get('drop_path_rate', 0) == 0
    assert {key: value for key, value in config.optim_wrapper.items() if key != '_scope_'} == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    )
    assert config.train_cfg.max_epochs == 12
    warm_up, steps = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 500, False)
    assert steps.milestones == [8, 11]
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=16)
    resize, flip = (next(t for t in config.train_pipeline if t.type == kind) for kind in ('Resize', 'RandomFlip'))
    assert (resize.scale, resize.keep_ratio, flip.prob) == ((1333, 800), True, 0.5)
    assert config.model.data_preprocessor.pad_size_divisor == 32
    assert config.train_dataloader.batch_size == 2


@pytest.mark.parametrize('name', CONFIGS)
def test_leaves_are_short_and_open_with_their_command(name):
    lines = (ROOT / 'configs' / f'{name}.py').read_text().splitlines()
    assert lines[0].startswith('# ') and f'tools/train.py configs/{name}.py' in lines[1]
    assert len(lines) <= 32
