"""The trial build before a run: what is wrong is named by its key in the config, and nothing is left behind."""

import copy
from typing import Any

import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from paths import ROOT
from torch import nn

from shvit_det import UsageError
from shvit_det.configuration.build_errors import refusal_of
from shvit_det.configuration.detection import Detection
from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.reading import load_config, splits_of
from shvit_det.training.build_runner import built_runner
from shvit_det.training.trial_build import check_parts

TRAINING, TEST = ('train', 'val'), ('test',)
LOADER, VAL_LOADER, OPTIMIZER = 'train_dataloader.', 'val_dataloader.', 'optim_wrapper.optimizer.'
PIPELINE, CLIP = f'{LOADER}dataset.pipeline.', 'optim_wrapper.clip_grad.'
SAVING = 'default_hooks.checkpoint.'


class Small(nn.Module):
    """Stands in for a detector: the trial only needs its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def train_step(self, *args: Any) -> None: ...

    val_step = test_step = train_step


@pytest.fixture(scope='module')
def loaded():
    config = load_config(str(ROOT / 'tests' / 'data' / 'tiny_mask_rcnn.py'))
    config.work_dir = 'never'
    task_of(config).register()
    return config


@pytest.fixture
def config(loaded, tmp_path, monkeypatch):
    """A config without its data set, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(loaded)


def refused(config: Config, options: dict, splits=TRAINING) -> str:
    """Return the sentence about a config that was changed by some options."""
    config.merge_from_dict(options)
    with pytest.raises(UsageError) as caught:
        check_parts(config, Small(), splits)
    assert '\n' not in str(caught.value)
    return str(caught.value)


WRONG_NAMES: dict[str, tuple[str, str | None]] = {
    f'{OPTIMIZER}type': ('AdamWW', 'AdamW'),
    'optim_wrapper.type': ('OptimWraper', 'OptimWrapper'),
    'optim_wrapper.constructor': ('LayerDecayOptimizerConstructor', 'LayerDecayOptimWrapperConstructor'),
    'param_scheduler.1.type': ('CosineAnealingLR', 'CosineAnnealingLR'),
    'train_cfg.type': ('EpochBasedTrainLop', 'EpochBasedTrainLoop'),
    'val_cfg.type': ('Validation', None),
    'val_evaluator.type': ('mmdet.CocoMetrics', 'CocoMetric'),
    f'{LOADER}sampler.type': ('DefaultSamplr', 'DefaultSampler'),
    f'{LOADER}dataset.type': ('CocoDatset', 'CocoDataset'),
    f'{PIPELINE}2.type': ('RandomFlipp', 'RandomFlip'),
    f'{VAL_LOADER}dataset.pipeline.1.type': ('resise', 'Resize'),
    'default_hooks.timer.type': ('IterTimer', 'IterTimerHook'),
    'visualizer.type': ('DetLocalVisualiser', 'DetLocalVisualizer'),
    'visualizer.vis_backends.0.type': ('LocalVisBackends', 'LocalVisBackend'),
    'log_processor.type': ('LogProcesor', 'LogProcessor'),
    'runner_type': ('SHVitRunner', 'SHViTRunner'),
}


@pytest.mark.parametrize('place', WRONG_NAMES)
def test_an_unknown_type_is_named_with_the_nearest_one(place, config, tmp_path):
    name, near = WRONG_NAMES[place]
    sentence = refused(config, {place: name})
    hint = 'name the module that has it in custom_imports' if near is None else f'did you mean {near!r}?'
    assert sentence.startswith(f'{place} is {name!r}, but no such ') and sentence.endswith(f' is registered: {hint}')
    assert list(tmp_path.iterdir()) == []


FUNCTIONS_AND_SAMPLERS: list[tuple[dict, str, str]] = [
    ({f'{LOADER}collate_fn': dict(type='pseudo_colate')}, f'{LOADER}collate_fn.type', 'pseudo_collate'),
    (
        {f'{LOADER}batch_sampler': dict(type='AspectRatioBatchSamplr')},
        f'{LOADER}batch_sampler.type',
        'AspectRatioBatchSampler',
    ),
    ({'custom_hooks': [dict(type='EMAHok')]}, 'custom_hooks.0.type', 'EMAHook'),
    (
        {'custom_hooks': [dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=[dict(type='Flip')])]},
        'custom_hooks.0.switch_pipeline.0.type',
        'Flip',
    ),
    (
        {'model_wrapper_cfg': dict(type='MMDistributedDataParalel')},
        'model_wrapper_cfg.type',
        'MMDistributedDataParallel',
    ),
    ({'model.neck.init_cfg': dict(type='Xaviers')}, 'model.neck.init_cfg.type', 'Xavier'),
    (
        {'val_evaluator': [dict(type='CocoMetric'), dict(type='VocMetric')]},
        'val_evaluator.1.type',
        'VOCMetric',
    ),
]


@pytest.mark.parametrize('options, place, near', FUNCTIONS_AND_SAMPLERS)
def test_an_unknown_type_in_what_is_added(options, place, near, config):
    config.update({key: value for key, value in options.items() if key == 'val_evaluator'})
    sentence = refused(config, {key: value for key, value in options.items() if key != 'val_evaluator'})
    assert sentence.startswith(f'{place} is ') and near in sentence


def test_a_type_of_another_scope_names_the_scope(config):
    sentence = refused(config, {'default_scope': 'mmpretrain'})
    assert "'CocoDataset'" in sentence and 'default_scope=mmdet' in sentence


def test_a_metric_with_the_key_of_an_evaluator(config):
    sentence = refused(config, {'val_evaluator.metrics': 'segm'})
    assert sentence == "val_evaluator.metrics: CocoMetric has no argument 'metrics': did you mean 'metric'?"


@pytest.mark.parametrize('key, hint', [('min_sise', "did you mean 'min_size'?"), ('crowd', 'it takes filter_empty_gt')])
def test_an_unknown_key_of_a_filter(key, hint, config):
    sentence = refused(config, {f'{LOADER}dataset.filter_cfg.{key}': 8})
    assert sentence.startswith(f'{LOADER}dataset.filter_cfg.{key}: CocoDataset has no argument') and hint in sentence


WRONG_ARGUMENTS: dict[str, str | None] = {
    f'{OPTIMIZER}lrr': 'lr',
    'train_cfg.max_epoch': 'max_epochs',
    'val_cfg.fp61': 'fp16',
    'val_evaluator.metrc': 'metric',
    f'{LOADER}num_worker': 'num_workers',
    f'{LOADER}sampler.shufle': 'shuffle',
    f'{LOADER}dataset.anno_file': 'ann_file',
    f'{PIPELINE}2.probs': 'prob',
    'param_scheduler.1.Tmax': 'T_max',
    f'{SAVING}max_keep_ckpt': 'max_keep_ckpts',
    'default_hooks.visualization.drw': 'draw',
    'visualizer.linewidth': 'line_width',
    'log_processor.windw_size': 'window_size',
    'randomness.sed': 'seed',
    'env_cfg.cudnn_bench': 'cudnn_benchmark',
    f'{CLIP}max_nrm': 'max_norm',
    f'{CLIP}clip_value': None,
    'optim_wrapper.paramwise_cfg.bias_lr_mul': 'bias_lr_mult',
}


@pytest.mark.parametrize('place', WRONG_ARGUMENTS)
def test_an_unknown_argument_is_named_with_the_nearest_one(place, config):
    near, name = WRONG_ARGUMENTS[place], place.rpartition('.')[2]
    sentence = refused(config, {place: 1})
    assert sentence.startswith(f'{place}: ') and f' has no argument {name!r}: ' in sentence
    assert sentence.endswith(f'did you mean {near!r}?') == (near is not None)


def test_an_averaged_model_is_built_too(config):
    hook = dict(type='EMAHook', momentums=0.1)
    assert refused(config, {'custom_hooks': [hook]}).startswith('custom_hooks.0.momentums: ExponentialMovingAverage')
    hook = dict(type='EMAHook', momentum=3)
    assert 'custom_hooks.0.momentum is 3, which' in refused(config, {'custom_hooks': [hook]})


WRONG_VALUES: dict[str, Any] = {
    f'{OPTIMIZER}lr': 'abc',
    f'{OPTIMIZER}betas': 0.9,
    f'{OPTIMIZER}weight_decay': -3.5,
    'optim_wrapper.accumulative_counts': 0,
    'optim_wrapper.paramwise_cfg': 3,
    'val_evaluator.metric': 'seg',
    f'{LOADER}batch_size': 0,
    f'{VAL_LOADER}num_workers': -1,
    f'{LOADER}collate_fn': 'pseudo_collate',
    f'{PIPELINE}2.prob': 'x',
    f'{LOADER}dataset.pipeline': 'x',
    f'{LOADER}dataset.metainfo': 'disc',
    f'{LOADER}dataset.data_prefix': 'train2017/',
    'param_scheduler.1.T_max': '13',
    f'{VAL_LOADER}dataset.pipeline.1.scale': 'large',
    f'{SAVING}interval': 'x',
    f'{SAVING}save_best': 'quality',
    'default_hooks.logger.interval': 0,
    'train_cfg.max_epochs': 0,
    'train_cfg.val_interval': 0,
    'log_processor.window_size': 0,
    'randomness.seed': 'x',
    'env_cfg.dist_cfg.backend': 'ncl',
    'env_cfg.mp_cfg.mp_start_method': 'frok',
    'log_level': 'LOUD',
    'log_processor.by_epoch': 'no',
    'auto_scale_lr.enable': 'no',
    'channels_last': 'yes',
    'randomness.deterministic': 'no',
    'val_evaluator.iou_thrs': 'abc',
    'visualizer.vis_backends': 'LocalVisBackend',
}


@pytest.mark.parametrize('place', WRONG_VALUES)
def test_a_wrong_value_is_named(place, config):
    value = WRONG_VALUES[place]
    kind = 'text' if isinstance(value, str) else 'number'
    assert refused(config, {place: value}).startswith((f'{place} is {value!r}', f'{place} is the {kind} {value!r}'))


@pytest.mark.parametrize('value, becomes', [(-1, -1), (0, 0)])
def test_a_gradient_that_would_be_turned_or_lost(value, becomes, config):
    sentence = refused(config, {f'{CLIP}max_norm': value})
    assert sentence.startswith('optim_wrapper.clip_grad is') and f'a gradient of 1 becomes {becomes}: set' in sentence


WRONG_SCHEDULES: list[tuple[dict, str]] = [
    (dict(type='MultiStepLR', milestones=8), 'param_scheduler.0.milestones is the number 8'),
    (dict(type='MultiStepLR', milestones='8, 11'), "param_scheduler.0.milestones is the text '8, 11'"),
    (dict(type='MultiStepLR', milestones=[8], gamma='0.1'), "param_scheduler.0.gamma is the text '0.1'"),
    (dict(type='MultiStepLR'), "param_scheduler.0 lacks 'milestones', which MultiStepLR needs"),
    (dict(type='LinearLR', start_factor=0.1, begin=9, end=3), 'param_scheduler.0.end is 3, which LinearLR refuses: '),
    (dict(type='StepLR', step_size=0), 'param_scheduler.0 (StepLR) fails in its first steps: '),
]


@pytest.mark.parametrize('schedule, start', WRONG_SCHEDULES)
def test_a_schedule_that_cannot_be_followed(schedule, start, config):
    assert refused(config, {'param_scheduler': [schedule]}).startswith(start)


@pytest.mark.parametrize('priority', ['VERYHIGH', 200])
def test_a_priority_that_does_not_exist(priority, config):
    sentence = refused(config, {'custom_hooks': [dict(type='EMAHook', priority=priority)]})
    assert sentence.startswith(f'custom_hooks.0.priority is {priority!r}: choose from HIGHEST, VERY_HIGH, ')


def test_a_backend_whose_package_is_not_installed(config):
    backends = [dict(type='LocalVisBackend'), dict(type='NeptuneVisBackend')]
    sentence = refused(config, {'visualizer.vis_backends': backends})
    assert sentence.startswith("visualizer.vis_backends.1.type is 'NeptuneVisBackend', which needs neptune")
    assert 'pip install neptune' in sentence


MONITORED: list[tuple[dict, str, str | None]] = [
    ({f'{SAVING}save_best': 'bbox_mAP'}, f"{SAVING}save_best is 'bbox_mAP'", 'coco/bbox_mAP'),
    ({f'{SAVING}save_best': 'coco/segm_map_50'}, f"{SAVING}save_best is 'coco/segm_map_50'", 'coco/segm_mAP_50'),
    (
        {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='bbox_mAP')]},
        "custom_hooks.0.monitor is 'bbox_mAP'",
        'coco/bbox_mAP',
    ),
    ({f'{SAVING}save_best': 'mAP', 'val_evaluator.prefix': 'mine'}, f"{SAVING}save_best is 'mAP'", 'mine/bbox_mAP'),
    ({f'{SAVING}save_best': 'coco/mAP', 'val_evaluator.classwise': True}, '', None),
]


@pytest.mark.parametrize('options, start, near', MONITORED)
def test_a_score_that_is_not_measured(options, start, near, config):
    if near is None:  # with an AP of each class, the names are not known before
        config.merge_from_dict(options)
        check_parts(config, Small(), TRAINING)
    else:
        sentence = refused(config, options)
        assert sentence.startswith(start) and near in sentence


def test_the_parts_of_a_test_are_built_and_not_those_of_a_training(config):
    config.merge_from_dict({f'{OPTIMIZER}type': 'AdamWW', 'train_cfg.max_epochs': 0, 'val_evaluator.metric': 'seg'})
    check_parts(config, Small(), TEST)
    assert refused(config, {'test_evaluator.metric': 'box'}, TEST).startswith("test_evaluator.metric is 'box'")
    del config.test_evaluator.metric
    assert refused(config, {'test_cfg.type': 'TestLop'}, TEST).startswith("test_cfg.type is 'TestLop'")


def test_what_depends_on_the_data_is_left_to_the_run(config):
    dataset = dict(config.train_dataloader.dataset)
    for wrapped in (
        dict(type='RepeatDataset', times=2, dataset=dataset),
        dict(type='ConcatDataset', datasets=[dataset, dataset]),
        dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset),
        dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[dict(type='Mosaic', img_scale=(64, 64))]),
    ):
        config.train_dataloader.dataset = wrapped
        check_parts(config, Small(), TRAINING)
    config.train_dataloader.dataset.pipeline[0].type = 'Mosaik'
    assert 'train_dataloader.dataset.pipeline.0.type' in refused(config, {})
    config.train_dataloader.dataset = dataset
    config.train_dataloader.sampler = dict(type='ClassAwareSampler')
    check_parts(config, Small(), TRAINING)
    assert 'train_dataloader.sampler.sed: ClassAwareSampler has no argument' in refused(
        config, {f'{LOADER}sampler.sed': 1}
    )


def test_a_loop_by_iterations_starts_no_worker(config):
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    config.train_dataloader.num_workers = 1
    check_parts(config, Small(), TRAINING)
    assert refused(config, {'train_cfg.max_iters': 0}) == 'train_cfg.max_iters is 0: it takes a whole number from 1 on'


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_our_configs_pass(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(str(path))
    config.work_dir = 'never'
    task_of(config).register()
    splits = splits_of(config)
    check_parts(config, Small(), splits)
    check_parts(config, Small(), TEST)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_changed_written_or_left_behind(config, tmp_path):
    kinds = (MMLogger, MessageHub, Visualizer, DefaultScope)
    model, text, state = Small(), config.pretty_text, torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    before = [dict(kind._instance_dict) for kind in kinds]
    check_parts(config, model, TRAINING)
    wrong = copy.deepcopy(config)
    wrong.val_evaluator.metric = 'seg'
    with pytest.raises(UsageError):
        check_parts(wrong, model, TRAINING)
    assert config.pretty_text == text and list(tmp_path.iterdir()) == []
    assert [dict(kind._instance_dict) for kind in kinds] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('part, value', [('backbone', 's1'), ('neck', 3)])
def test_a_part_of_a_model_that_is_no_dict_is_named(part, value, config):
    config.model[part] = value
    with pytest.raises(UsageError, match=rf'model\.{part} is {value!r}: TypeError: cfg should be a dict'):
        Detection().build(config)


def test_an_error_that_no_value_of_the_config_explains_keeps_its_traceback(config):
    with pytest.raises(TypeError) as caught:
        Detection().table(3)  # type: ignore[arg-type]
    assert refusal_of(caught.value, config, 'model') is None


class Failing(Hook):
    def before_run(self, runner: Any) -> None:
        raise RuntimeError


def test_a_hook_that_fails_keeps_its_traceback(config):
    with pytest.raises(RuntimeError) as caught:
        Failing().before_run(None)
    assert refusal_of(caught.value, config) is None


def test_an_error_of_a_run_before_its_first_step_keeps_its_traceback(config, tmp_path):
    """The next run of the program gets a visualizer of its own, since the folder of this one is removed."""
    config.work_dir = str(tmp_path / 'run')
    before = dict(DetLocalVisualizer._instance_dict)
    with pytest.raises(ZeroDivisionError), built_runner(config):
        raise ZeroDivisionError
    assert not (tmp_path / 'run').exists() and DetLocalVisualizer._instance_dict == before
