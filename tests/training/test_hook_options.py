"""The options of the train tool that add hooks and backends: averaged weights, best scores, early stopping, loggers."""

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from checkpoint_files import refusal
from mmengine.config import Config
from paths import MASK_RCNN
from training_runs import run

from shvit_det.configuration.detection import Detection
from shvit_det.configuration.reading import load_config
from shvit_det.training.curves import score_curves, validation_losses
from shvit_det.training.hook_options import (
    BACKEND_PACKAGES,
    enable_ema,
    enable_val_loss,
    full_name,
    log_to,
    set_monitored,
)
from shvit_det.training.hooks import run_summary
from shvit_det.training.hooks.run_summary import MEASURED, WARM_UP, outlook
from shvit_det.training.hooks.validation_loss import reordered

KNOWN = [f'coco/{output}_{item}' for output in ('bbox', 'segm') for item in ('mAP', 'mAP_50')]


@pytest.fixture
def config() -> Config:
    return load_config(str(MASK_RCNN))


def monitored(config, save_best=None, early_stop=None) -> list[str]:
    task = Detection()
    task.register()
    return set_monitored(config, task, save_best, early_stop)


# ----- scores


@pytest.mark.parametrize(
    'name, full',
    [
        ('coco/segm_mAP', 'coco/segm_mAP'),
        ('segm', 'coco/segm_mAP'),
        ('segm_mAP_50', 'coco/segm_mAP_50'),
        ('mAP', 'coco/bbox_mAP'),
        ('mAP_50', 'coco/bbox_mAP_50'),
    ],
)
def test_a_short_name_means_a_score(name, full):
    assert full_name(name, KNOWN, '--save-best') == full


def test_other_names_are_refused_with_those_that_exist():
    assert refusal(full_name, 'mIoU', KNOWN, '--save-best') == (
        f"--save-best is 'mIoU', which val_evaluator does not measure: choose from {', '.join(KNOWN)}"
    )
    two = ['day/bbox_mAP', 'night/bbox_mAP']
    assert 'which several data sets have: choose from day/bbox_mAP, night/bbox_mAP' in refusal(
        full_name, 'bbox', two, '--save-best'
    )


def test_short_names_in_a_config_get_their_prefix(config):
    config.val_evaluator.prefix = 'mine'
    config.default_hooks.checkpoint.save_best = ['segm', 'bbox_mAP']
    config.custom_hooks = [dict(type='EarlyStoppingHook', monitor='bbox')]
    assert monitored(config) == []
    assert config.default_hooks.checkpoint.save_best == ['mine/segm_mAP', 'mine/bbox_mAP']
    assert config.custom_hooks[0].monitor == 'mine/bbox_mAP'


def test_early_stopping_waits_for_the_score_of_save_best(config):
    lines = monitored(config, 'segm', 3)
    assert config.default_hooks.checkpoint.save_best == 'coco/segm_mAP'
    (hook,) = config.custom_hooks
    assert (hook['monitor'], hook['patience']) == ('coco/segm_mAP', 3)
    assert lines == [
        '--save-best: coco/segm_mAP',
        '--early-stop: after 3 validations in a row without a better coco/segm_mAP',
    ]


def test_early_stopping_alone_also_keeps_the_best_checkpoint(config):
    monitored(config, None, 1)
    assert config.default_hooks.checkpoint.save_best == config.custom_hooks[0]['monitor'] == 'coco/bbox_mAP'
    monitored(config, None, 7)
    assert len(config.custom_hooks) == 1 and config.custom_hooks[0]['patience'] == 7


def test_what_has_no_sense_is_refused(config):
    assert '--early-stop is 0' in refusal(monitored, config, None, 0)
    config.merge_from_dict(dict(val_dataloader=None, val_cfg=None, val_evaluator=None))
    for settings in (('bbox', None), (None, 2)):
        assert 'needs a validation' in refusal(monitored, config, *settings)
    assert '--val-loss needs a validation' in refusal(enable_val_loss, config)


@pytest.mark.parametrize('length', [2, 4])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(length, tmp_path):
    """The score never rises by so much: four validations are enough for a patience of three."""
    hook = dict(type='ResumableEarlyStoppingHook', monitor='value', rule='greater', min_delta=1000, patience=3)
    run(tmp_path, [hook], max_epochs=length).train()
    resumed = run(tmp_path, [hook], max_epochs=9, load_from=str(tmp_path / f'epoch_{length}.pth'), resume=True)
    resumed.train()
    scores = json.loads((tmp_path / 'scores.json').read_text())['evaluations']
    assert [each['epoch'] for each in scores] == [1, 2, 3, 4] and resumed.epoch == 4


# ----- averaged weights


def test_averages_are_added_once(config):
    assert 'averaged weights' in enable_ema(config)
    assert enable_ema(config) == 'averaged weights as in the config'
    (hook,) = config.custom_hooks
    run_hook = SimpleNamespace(**hook)
    assert run_hook.type == 'EMAHook' and run_hook.update_buffers


def test_a_run_that_drops_averages_says_so(tmp_path):
    run(tmp_path, max_epochs=1).train()
    run(tmp_path, max_epochs=2, load_from=str(tmp_path / 'epoch_1.pth'), resume=True, custom_hooks=[]).train()
    text = max(tmp_path.glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()
    assert 'the weights that go on are the average in it, since this run averages none (--ema)' in text


# ----- other programs


def test_backends_are_added_beside_those_of_the_config(config, monkeypatch):
    for name in ('TensorboardVisBackend', 'MLflowVisBackend', 'WandbVisBackend'):
        monkeypatch.setitem(BACKEND_PACKAGES, name, 'json')  # which is installed
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    config.work_dir = 'runs/first'
    for _ in range(2):
        log_to(config, ['tensorboard', 'mlflow', 'wandb'])
    kinds = [each['type'] for each in config.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend', 'TensorboardVisBackend', 'MLflowVisBackend', 'WandbVisBackend']
    mlflow = config.visualizer.vis_backends[2]
    assert mlflow['exp_name'] == 'first' and mlflow['tracking_uri'].endswith('/runs/first/mlflow.db')


def test_a_missing_package_is_named_with_its_command(config, monkeypatch):
    monkeypatch.setitem(BACKEND_PACKAGES, 'WandbVisBackend', 'a_package_that_is_not_there')
    assert refusal(log_to, config, ['wandb']) == (
        '--log-to wandb needs a_package_that_is_not_there, which is not installed: '
        'pip install a_package_that_is_not_there'
    )


# ----- losses of the validation images


def test_annotations_are_loaded_before_the_image_is_resized(config):
    kinds = [step['type'] for step in reordered(config.val_dataloader.dataset.pipeline)]
    assert kinds.index('LoadAnnotations') == kinds.index('LoadImageFromFile') + 1 < kinds.index('Resize')
    assert 'no LoadAnnotations: add it' in refusal(reordered, [dict(type='Resize'), dict(type='mmdet.PackDetInputs')])
    assert reordered([dict(type='PackInputs')]) == [dict(type='PackInputs')]


def test_validation_losses_are_means_and_change_nothing_else(tmp_path):
    """The loss of the model is (w x + b + noise)^2, on one batch after the other."""
    without = run(tmp_path / 'without', max_epochs=2)
    without.train()
    scored = run(tmp_path / 'with', [dict(type='ValidationLossHook')], max_epochs=2)
    scored.train()
    for name, value in without.model.state_dict().items():
        if name != 'seen':  # a buffer that counts calls
            assert torch.equal(scored.model.state_dict()[name], value)
    evaluations = scored.scores.evaluations
    assert all(each['scores']['val_loss'] > 0 for each in evaluations)
    assert list(validation_losses(evaluations)) == ['val_loss'] and list(score_curves(evaluations)) == ['value']
    assert 'val_loss' in next((tmp_path / 'with').glob('*/*.log')).read_text()


# ----- the first lines


def test_a_run_says_what_is_before_it_and_when_it_will_end(tmp_path, monkeypatch):
    times = iter((100.0, 100.0 + 90 * MEASURED))
    monkeypatch.setattr(run_summary, 'time', SimpleNamespace(monotonic=lambda: next(times)))
    run(tmp_path, [dict(type='RunSummaryHook')], max_epochs=WARM_UP + MEASURED).train()  # of three steps
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'training on 6 images, 12 epochs of 3 steps of 2 images; validation on 6 images' in text
    assert text.count('a step takes 90 s and an epoch 4 min: the last one ends at about ') == 1


def test_an_end_on_another_day_has_its_date():
    runner = SimpleNamespace(train_loop=None, val_loop=None)
    late = datetime(2026, 1, 31, 23, 0)
    assert outlook(runner, 60, 30, late) == 'a step takes 60 s: the last one ends at about 23:30'
    assert outlook(runner, 60, 90, late).endswith('ends at about 00:30 on 2026-02-01')


LATE = {
    'milestones': ([dict(type='MultiStepLR', milestones=[2, 3, 8])], '3 epochs, before the milestones 3, 8'),
    'in steps': ([dict(type='MultiStepLR', milestones=[1, 9], convert_to_iter_based=True)], 'the milestones 27'),
    'a warm-up of one step': (
        [dict(type='LinearLR', start_factor=0.1, end=1, by_epoch=False)],
        'lasts 1 step, and the rate stays at start_factor: let end be 2 or more',
    ),
    'warm-up': ([dict(type='LinearLR', start_factor=0.1, end=50, by_epoch=False)], '9 steps, before the 50 steps'),
}
IN_TIME = [
    dict(type='MultiStepLR', milestones=[1, 2]),
    dict(type='LinearLR', start_factor=0.1, end=9, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=3, end=3),
]


@pytest.mark.parametrize('schedules, words', [*LATE.values(), (IN_TIME, None)])
def test_what_a_schedule_does_after_the_end_is_said(schedules, words, tmp_path):
    hook = dict(type='RunSummaryHook')
    run(tmp_path, hooks=[hook], max_epochs=3, param_scheduler=schedules).train()
    text = next(tmp_path.glob('*/*.log')).read_text()
    said = [line for line in text.splitlines() if 'param_scheduler.0 (' in line]
    assert said == [] if words is None else len(said) == 1 and words in said[0]
