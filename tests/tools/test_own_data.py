"""A data set in a folder: the config that ``train --data`` and ``init`` make for it, and the run."""

import json

import layouts
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from paths import MASK_RCNN
from processes import tool
from tool_runs import RETINANET, succeeded

from shvit_det.common.errors import UsageError
from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.own_data import Settings, fit_training, own_config
from shvit_det.configuration.reading import load_config

SMALL = ('--epochs', '1', '--batch-size', '2', '--image-size', '128', '--no-pretrained', '--seed', '0')


def config_of(made, path):
    path.write_text(made.text)
    return Config.fromfile(path)


@pytest.mark.parametrize('name', ['mask_rcnn_shvit_s1_coco', 'retinanet_shvit_s2_coco'])
def test_the_config_has_the_classes_and_files_at_every_place(tmp_path, name):
    layouts.roboflow_coco(tmp_path / 'set')
    made = own_config(name, str(tmp_path / 'set'), Settings(epochs=3, batch_size=1), tmp_path / 'annotations')
    assert not made.annotations  # COCO files are trained on as they are
    assert len(made.text.splitlines()) <= 22 and made.text.splitlines()[1] == f"_base_ = 'shvit_det::{name}.py'"
    config = config_of(made, tmp_path / 'my.py')
    task = task_of(config)
    splits = ('train', 'val', 'test')
    model = task.build(config)
    task.check_model(config, model, splits)
    task.check_data(config, model, splits)
    assert config.test_dataloader.dataset.ann_file == 'test/_annotations.coco.json'
    assert config.val_evaluator.ann_file == f'{tmp_path}/set/valid/_annotations.coco.json'
    assert config.train_dataloader.dataset.filter_cfg.filter_empty_gt  # of the base


def test_schedule_warm_up_and_rate_follow_epochs_and_batch(tmp_path):
    layouts.yolo(tmp_path / 'set')
    name = 'retinanet_shvit_s1_coco'
    made = own_config(name, str(tmp_path / 'set'), Settings(epochs=24, batch_size=4), tmp_path / 'annotations')
    config = config_of(made, tmp_path / 'my.py')
    warm_up, steps = config.param_scheduler
    assert (config.train_cfg.max_epochs, config.optim_wrapper.optimizer.lr) == (24, 2.5e-5)
    assert warm_up.end == 2 and steps.milestones == [16, 22] and steps.end == 24  # one step an epoch
    assert config.auto_scale_lr.base_batch_size == 4
    assert '24 epochs of 1 step, batch 4, learning rate 2.5e-05 (0.0001 is for 16)' in made.lines
    made = own_config(
        name, str(tmp_path / 'set'), Settings(learning_rate=3e-4, image_size=96), tmp_path / 'annotations'
    )
    config = config_of(made, tmp_path / 'my.py')
    assert config.optim_wrapper.optimizer.lr == 3e-4
    for split in ('train', 'val', 'test'):
        (resize,) = (each for each in config[f'{split}_dataloader'].dataset.pipeline if each.type == 'Resize')
        assert resize.scale == (96, 96)


@pytest.mark.parametrize(('epochs', 'steps'), [(2, 1), (2, 9), (12, 4), (30, 500)])
def test_every_warm_up_comes_to_the_full_rate(epochs, steps):
    """A linear schedule of mmengine with one step keeps the first rate, a thousandth, for the whole run."""
    schedules = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
        dict(type='LinearLR', start_factor=0.001, begin=0, end=3),
        dict(type='LinearLR', start_factor=0.001, begin=0, end=1, convert_to_iter_based=True),
    ]
    config = load_config('retinanet_shvit_s1_coco', dict(param_scheduler=schedules))
    values = {}
    fit_training(config, 'retinanet_shvit_s1_coco', 2 * steps, Settings(epochs=epochs, batch_size=2), values)
    for schedule in values['param_scheduler']:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        length = dict(epoch_length=steps) if schedule.get('convert_to_iter_based') else {}
        built = PARAM_SCHEDULERS.build(dict(schedule, optimizer=optimizer, **length))
        for _ in range(epochs if built.by_epoch else epochs * steps):
            optimizer.step()
            built.step()
        assert optimizer.param_groups[0]['lr'] == pytest.approx(1), schedule
    assert len(values['param_scheduler']) == 1 + (epochs > 4) + (steps > 1)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('mask_rcnn_shvit_s1_coco', Settings(), 'have boxes alone: train retinanet_shvit_s1_coco'),
        ('no_such', Settings(), 'no such config: no_such; ours are '),
        ('shvit_s1_imagenet', Settings(), 'is no detector'),
        ('retinanet_shvit_s1_coco', Settings(epochs=0), '--epochs is 0'),
        ('retinanet_shvit_s1_coco', Settings(learning_rate=-1.0), '--lr is -1.0'),
        ('retinanet_shvit_s1_sample', Settings(image_size=96), 'the train pipeline of'),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, name, settings, message):
    layouts.yolo(tmp_path)
    with pytest.raises(UsageError, match=message):
        own_config(name, str(tmp_path), settings, tmp_path / 'annotations')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda base: base.update(train_dataloader=None), 'has no train_dataloader: --data takes a config that trains'),
        (
            lambda base: base.train_dataloader.dataset.pop('pipeline'),
            'has not one data set of COCO with a pipeline for',
        ),
    ],
)
def test_a_base_that_cannot_be_changed_is_refused(tmp_path, change, message):
    layouts.yolo(tmp_path)
    base = load_config('retinanet_shvit_s1_sample')
    change(base._cfg_dict)
    base.dump(tmp_path / 'base.py')
    with pytest.raises(UsageError, match=message):
        own_config(str(tmp_path / 'base.py'), str(tmp_path), Settings(), tmp_path / 'annotations')


def test_a_base_without_a_batch_of_reference_trains_from_random_weights(tmp_path):
    layouts.yolo(tmp_path)
    (tmp_path / 'base.py').write_text("_base_ = 'shvit_det::retinanet_shvit_s1_coco.py'\nauto_scale_lr = None\n")
    made = own_config(
        str(tmp_path / 'base.py'), str(tmp_path), Settings(from_scratch=True, image_size=128), tmp_path / 'annotations'
    )
    assert config_of(made, tmp_path / 'own.py').auto_scale_lr.base_batch_size > 0


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['yolo', 'voc', 'labelme', 'coco'])
def test_training_on_a_folder_in_one_command_and_again_by_its_config(tmp_path, layout):
    masks = layout in ('labelme', 'coco')
    maker = dict(yolo=layouts.yolo, voc=layouts.voc, labelme=layouts.labelme, coco=layouts.cvat_coco)[layout]
    maker(tmp_path / 'set')
    base = MASK_RCNN if masks else RETINANET
    options = ('--epochs', '1', '--batch-size', '2', '--seed', '0')
    output = succeeded(tool('train', base, '--data', 'set', '--work-dir', 'run', *options, cwd=tmp_path))
    assert f'{layout} layout, 2 classes' in output and 'Epoch(train) [1]' in output
    assert ('drawn with seed 0, are val' in output) == masks
    config = (tmp_path / 'run' / 'config.py').read_text()
    assert config.startswith('# tiny_') and '_base_' in config  # no dump of the whole has replaced it
    scores = json.loads((tmp_path / 'run' / 'scores.json').read_text())
    (tmp_path / 'run' / 'epoch_1.pth').unlink()
    again = succeeded(tool('train', 'run/config.py', '--seed', '0', cwd=tmp_path))
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file() and (tmp_path / 'run' / 'config.py').read_text() == config
    assert losses_in(again) == losses_in(output) and losses_in(output)
    assert scores and not list(tmp_path.glob('work_dirs'))


def losses_in(output):
    return [line.partition('  loss: ')[2].split()[0] for line in output.splitlines() if '  loss: ' in line]


def test_from_random_weights_nothing_of_a_pretrained_recipe_is_left(tmp_path):
    layouts.voc(tmp_path / 'set')
    base = tmp_path / 'base.py'
    base.write_text(
        "_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']\n"
        'optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0), clip_grad=None)\n'
        "model = dict(neck=dict(init_cfg=dict(type='Pretrained', checkpoint='neck.pth')))\n"
    )
    with pytest.raises(UsageError, match='--image-size is 127: 128 is the least with --no-pretrained'):
        own_config(str(base), 'set', Settings(image_size=127, from_scratch=True), tmp_path)
    for name in (str(base), 'retinanet_shvit_s1_coco'):
        settings = Settings(epochs=2, batch_size=8, from_scratch=True)
        made = own_config(name, str(tmp_path / 'set'), settings, tmp_path / 'annotations')
        config = config_of(made, tmp_path / 'my.py')
        backbone = config.model.backbone
        assert (backbone.init_cfg, backbone.norm_eval, backbone.get('frozen_stages', -1)) == (None, False, -1)
        assert ('frozen_stages' in backbone) == (name == str(base)) and config.model.neck.get('init_cfg') is None
        assert config.optim_wrapper == dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            clip_grad=dict(max_norm=10),
        )
        assert 'batch 8, learning rate 0.001 (0.0005 is for 4)' in made.lines[-1]
        model = task_of(config).build(config)
        assert all(parameter.requires_grad for parameter in model.backbone.parameters())
        assert all(module.training for module in model.train().backbone.modules())


@pytest.mark.slow
def test_the_init_tool_writes_a_config_that_trains(tmp_path):
    layouts.voc(tmp_path / 'set')
    succeeded(tool('init', 'retinanet_shvit_s1_coco', '--data', 'set', '--out', 'my.py', *SMALL[:7], cwd=tmp_path))
    assert sorted(path.name for path in (tmp_path / 'my_annotations').iterdir()) == ['train.json', 'val.json']
    output = succeeded(tool('train', 'my.py', cwd=tmp_path))
    assert 'Epoch(train) [1]' in output and (tmp_path / 'work_dirs' / 'my' / 'epoch_1.pth').is_file()
    result = tool('init', 'retinanet_shvit_s1_coco', '--data', 'set', '--out', 'my.py', cwd=tmp_path)
    assert result.returncode == 2 and result.stderr == 'error: --out is my.py: name a new file that ends with .py\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--epochs', '2'), '--epochs needs --data DIR'),
        (('--data', 'nothing'), 'no such folder of a data set'),
        (('--data', 'set', '--work-dir', 'set/ImageSets/Main/train.txt/run'), 'cannot write'),
        (('--data', 'set', '--cfg-options', 'default_hooks.checkpoint.interval=no'), 'interval'),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(tmp_path, arguments, message):
    layouts.voc(tmp_path / 'set')
    result = tool('train', RETINANET, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['set']
