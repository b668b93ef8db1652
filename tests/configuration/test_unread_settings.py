"""Settings of a config that nothing reads, or that spoil scores without an error, are found before a run."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from paths import ROOT

from shvit_det import UsageError
from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.reading import load_config
from shvit_det.configuration.unread_settings import (
    check_model_settings,
    check_optimizer_keys,
    warn_of_moving,
    warn_of_normalization,
)

RETINANET, MASK_RCNN = (ROOT / 'tests' / 'data' / f'tiny_{name}.py' for name in ('retinanet', 'mask_rcnn'))
RESIZE = dict(type='Resize', scale=(64, 64), keep_ratio=True)


def written(folder, *lines: str, base=RETINANET) -> str:
    path = folder / 'config.py'
    path.write_text('\n'.join([f'_base_ = {str(base)!r}', *lines]))
    return str(path)


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ("data = dict(samples_per_gpu=2)", 'mmdet 3.x has train_dataloader.batch_size, train_dataloader.num_workers'),
        ("lr_config = dict(policy='step', step=[8, 11])", 'mmdet 3.x has param_scheduler'),
        ("runner = dict(type='EpochBasedRunner', max_epochs=9)", 'mmdet 3.x has train_cfg.max_epochs'),
        ("evaluation = dict(interval=1)", 'mmdet 3.x has train_cfg.val_interval, val_evaluator.metric'),
        ("custom_hook = [dict(type='EMAHook')]", "nothing reads custom_hook of .* did you mean 'custom_hooks'"),
        ("optim_wraper = dict(optimizer=dict(lr=0.1))", "did you mean 'optim_wrapper'"),
        ("val_evalutor = dict(metric='bbox')", "did you mean 'val_evaluator'"),
    ],
)  # fmt: skip
def test_a_name_at_the_top_that_does_nothing_is_refused(line, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        load_config(written(tmp_path, line))


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ("optimizer = dict(type='SGD', lr=0.1)", 'optimizer is a setting of mmdet 2.x, and nothing reads it'),
        ('total_epochs = 9', 'mmdet 3.x has train_cfg.max_epochs'),
        ('data = dict(train=dict(type=1))', 'mmdet 3.x has train_dataloader.batch_size'),
    ],
)
def test_a_name_of_mmdet_2_that_may_be_a_variable_is_said(line, words, tmp_path, log):
    """A base may have used it, and its value may have been replaced since."""
    load_config(written(tmp_path, line))
    assert words in log.text


@pytest.mark.parametrize(
    'lines',
    [
        ("optimizer = dict(type='SGD', lr=0.1)", 'optim_wrapper = dict(optimizer=dict(_delete_=True, **optimizer))'),
        ('seed = 7', 'randomness = dict(seed=seed)'),
        ('total_epochs = 9', 'train_cfg = dict(max_epochs=total_epochs)'),
        ("train_dataset = dict(type='Some')", 'max_iter = 9'),
        ("val_evaluators = [dict(type='CocoMetric', metric='bbox')]", 'val_evaluator = dict(metric="bbox")',
         "test_evaluator = [dict(type='CocoMetric', metric='bbox')]"),
        ('data = None',),
    ],
)  # fmt: skip
def test_variables_that_a_file_uses_may_have_any_name(lines, tmp_path):
    load_config(written(tmp_path, *lines))


def test_options_that_change_a_setting_do_not_make_its_variable_unused(tmp_path):
    lines = "optimizer = dict(type='SGD', lr=0.1)", 'optim_wrapper = dict(optimizer=dict(_delete_=True, **optimizer))'
    config = load_config(written(tmp_path, *lines), {'optim_wrapper.optimizer.lr': 0.5})
    assert config.optim_wrapper.optimizer.lr == 0.5


def built(path: str):
    config = load_config(path)
    task = task_of(config)
    task.register()
    with DefaultScope.overwrite_default_scope('mmdet'):
        return config, MODELS.build(config.model)


@pytest.mark.parametrize(
    ('base', 'settings', 'words'),
    [
        (RETINANET, 'test_cfg=dict(score_threshold=0.3)', r"RetinaNet reads .*score_threshold: .*'score_thr'"),
        (RETINANET, 'test_cfg=dict(max_per_imgs=5)', "did you mean 'max_per_img'"),
        (MASK_RCNN, 'test_cfg=dict(rcnn=dict(score_treshold=0.3))', 'model.test_cfg.rcnn.score_treshold'),
        (MASK_RCNN, 'train_cfg=dict(rpn_proposals=dict(nms_pre=5))', "did you mean 'rpn_proposal'"),
        (MASK_RCNN, 'train_cfg=dict(zzz=1)', 'model.train_cfg.zzz: leave it out'),
    ],
)  # fmt: skip
def test_a_setting_of_the_model_that_nothing_reads_is_refused(base, settings, words, tmp_path):
    config, model = built(written(tmp_path, f'model = dict({settings})', base=base))
    with pytest.raises(UsageError, match=words):
        check_model_settings(config, model)


@pytest.mark.parametrize(
    'name', ['tiny_retinanet', 'tiny_mask_rcnn', 'cascade_mask_rcnn_shvit', 'fcos_shvit', 'atss_shvit', 'rtmdet_shvit']
)
def test_settings_of_mmdets_configs_are_accepted(name):
    check_model_settings(*built(str(ROOT / 'tests' / 'data' / f'{name}.py')))


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        ("{'backbone': dict(lr_mul=0.1)}", "custom_keys.backbone.lr_mul: .* did you mean 'lr_mult'"),
        ("{'backbone': 0.1}", r'custom_keys.backbone is 0.1, .*dict\(lr_mult=0.1\)'),
        ("['backbone']", r"custom_keys is \['backbone'\], where a dict is wanted"),
    ],
)
def test_factors_of_learning_rates_have_names_that_are_read(keys, words, tmp_path):
    config, model = built(written(tmp_path, f'optim_wrapper = dict(paramwise_cfg=dict(custom_keys={keys}))'))
    with pytest.raises(UsageError, match=words):
        check_optimizer_keys(config, model)


def test_a_key_that_no_parameter_has_is_said(tmp_path, log):
    keys = "{'backbon.': dict(lr_mult=0.1), 'backbone': dict(lr_mult=0.1, decay_mult=0)}"
    check_optimizer_keys(*built(written(tmp_path, f'optim_wrapper = dict(paramwise_cfg=dict(custom_keys={keys}))')))
    (sentence,) = [record.getMessage() for record in log.records if 'changes nothing' in record.getMessage()]
    assert 'custom_keys.backbon. changes nothing' in sentence and 'backbone, neck, bbox_head' in sentence


def with_step(step: dict, split: str = 'val') -> Config:
    pipeline = [dict(type='LoadImageFromFile'), RESIZE, step, dict(type='PackDetInputs')]
    dataset = dict(type='CocoDataset', ann_file='a.json', data_prefix=dict(img=''), pipeline=pipeline)
    preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    return Config({f'{split}_dataloader': dict(dataset=dataset), 'model': dict(data_preprocessor=preprocessor)})


@pytest.mark.parametrize(
    ('step', 'split', 'said'),
    [
        (dict(type='RandomFlip', prob=0.5), 'val', True),
        (dict(type='RandomCrop', crop_size=(32, 32)), 'test', True),
        (dict(type='mmdet.RandomAffine'), 'val', True),
        (dict(type='RandomFlip', prob=0.0), 'val', False),
        (dict(type='RandomFlip', prob=0.5), 'train', False),
        (dict(type='Pad', size_divisor=32), 'val', False),
        (dict(type='TestTimeAug', transforms=[[dict(type='RandomFlip', prob=1.0)]]), 'test', False),
    ],
)
def test_transforms_that_move_objects_away_from_predictions_are_said(step, split, said, log):
    with DefaultScope.overwrite_default_scope('mmdet'):
        warn_of_moving(with_step(step, split), [split])
    assert (f'{split}_dataloader.dataset.pipeline.2 is' in log.text) == said


def test_normalization_that_is_done_twice_or_for_other_values_is_said(log):
    config = with_step(dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]), 'train')
    warn_of_normalization(config, ['train'])
    assert 'pipeline.2 normalizes images, and data_preprocessor does so again' in log.text
    config.model.data_preprocessor = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    warn_of_normalization(config, [])
    assert 'multiply both by 255' in log.text


@pytest.mark.parametrize(
    'preprocessor', [None, dict(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]), dict(mean=[127.5], std=[127.5])]
)
def test_other_normalizations_are_left_alone(preprocessor, log):
    config = with_step(RESIZE, 'train')
    config.model.data_preprocessor = preprocessor
    warn_of_normalization(config, ['train'])
    assert not [record for record in log.records if record.levelname == 'WARNING']
