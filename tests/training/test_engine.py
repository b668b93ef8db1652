"""The parts behind the tools, one by one."""

import argparse
import json

import pytest
import torch
from line_model import Line, line_runner
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from shvit_det import BFloat16OptimWrapper, UsageError
from shvit_det.commands.cli import add_run_arguments
from shvit_det.configuration.changing import enable_auto_scale_lr, set_data_root
from shvit_det.configuration.classification import accuracy_table
from shvit_det.configuration.detection import coco_table, has_masks
from shvit_det.configuration.reading import datasets_of, load_config, warn_if_new
from shvit_det.training.curves import plot_curves, read_curves
from shvit_det.training.resuming import last_checkpoint


def coco_config() -> Config:
    inner = dict(
        type='CocoDataset', data_root='data/coco/', ann_file='annotations/a.json', data_prefix=dict(img='train/')
    )
    absolute = dict(type='CocoDataset', ann_file='data/coco/annotations/b.json', data_prefix=dict(img='data/coco/val/'))
    repeated = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner, absolute]))
    return Config(
        dict(
            data_root='data/coco/',
            train_dataloader=dict(
                dataset=repeated
            ),
            val_dataloader=dict(dataset=dict(inner, data_root='elsewhere/')),
            test_dataloader=None,
            val_evaluator=[dict(type='CocoMetric', ann_file='data/coco/annotations/a.json')],
            test_evaluator=dict(type='CocoMetric', ann_file='data/coco-extra/annotations/a.json'),
        )
    )  # fmt: skip


def test_the_data_root_reaches_every_loader_and_evaluator(tmp_path):
    config = coco_config()
    set_data_root(config, str(tmp_path))
    first, second = datasets_of(config, 'train')
    assert first.data_root == f'{tmp_path}/' and first.ann_file == 'annotations/a.json'
    assert second.ann_file == f'{tmp_path}/annotations/b.json' and second.data_prefix.img == f'{tmp_path}/val/'
    assert next(datasets_of(config, 'val')).data_root == f'{tmp_path}/'
    assert list(datasets_of(config, 'test')) == []
    assert config.val_evaluator[0].ann_file == f'{tmp_path}/annotations/a.json'
    assert config.test_evaluator.ann_file == 'data/coco-extra/annotations/a.json'


@pytest.mark.parametrize('root', ['D:\\data\\coco', 'D:\\data\\coco\\', 'D:/data/coco', 'data/coco'])
def test_folders_are_replaced_however_they_are_written(root, tmp_path):
    """Windows has two signs between folders, and mixes them."""
    below = root.rstrip('/\\')
    dataset = dict(data_root=root, ann_file=f'{below}\\annotations\\b.json', data_prefix=dict(img=f'{below}/val'))
    config = Config(dict(data_root=root, train_dataloader=dict(dataset=dict(dataset, seg_map=f'{below}2/a'))))
    set_data_root(config, str(tmp_path))
    (replaced,) = datasets_of(config, 'train')
    assert replaced.data_root == f'{tmp_path}/' and replaced.ann_file == f'{tmp_path}/annotations\\b.json'
    assert replaced.data_prefix.img == f'{tmp_path}/val' and replaced.seg_map == f'{below}2/a'


def test_a_data_root_needs_something_to_replace(tmp_path):
    with pytest.raises(UsageError, match='data_root'):
        set_data_root(Config(dict(train_dataloader=dict(dataset=dict(ann_file='a.json')))), str(tmp_path))
    with pytest.raises(UsageError, match='no such data folder'):
        set_data_root(coco_config(), str(tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    'key, is_new', [('a.b', False), ('a.c', True), ('list.1', False), ('list.7', True), ('x.y', True)]
)
def test_an_option_that_names_nothing_is_warned_of(key, is_new, log):
    warn_if_new(Config(dict(a=dict(b=1), list=[1, 2])), key)
    assert bool(log.messages) == is_new
    assert not is_new or key in log.text


@pytest.mark.parametrize('content', ['model = dict(', "_base_ = 'nowhere.py'", 'model = undefined_name'])
def test_a_broken_config_is_named(tmp_path, content):
    path = tmp_path / 'broken.py'
    path.write_text(content)
    with pytest.raises(UsageError, match=r'cannot read the config .*broken\.py'):
        load_config(str(path))


@pytest.mark.parametrize(
    'text, value',
    [
        ('__import__("os").system("touch executed")', '__import__("os").system("touch executed")'),
        ('[1,2.5,(True,None,x)]', [1, 2.5, (True, None, 'x')]),
        ('{{fileDirname}}', '{{fileDirname}}'),
        ('open("executed","w")', None),
        ('1e-3', 0.001),
    ],
)
def test_options_are_read_and_never_evaluated(text, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    if value is None:
        with pytest.raises(SystemExit):
            parser.parse_args(['--cfg-options', f'a.b={text}'])
    else:
        assert parser.parse_args(['--cfg-options', f'a.b={text}']).cfg_options == {'a.b': value}
    assert list(tmp_path.iterdir()) == []


def test_scaling_the_rate_needs_a_base():
    with pytest.raises(UsageError, match='base_batch_size'):
        enable_auto_scale_lr(Config(dict(optim_wrapper=dict())))


@pytest.mark.parametrize(
    'name, expected',
    [
        ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', False),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', False),
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', True),
        ('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', True),
        ('mmdet::solo/solo_r50_fpn_1x_coco.py', True),
        ('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py', True),
    ],
)
def test_which_detectors_predict_masks(name, expected, tmp_path):
    register_all_modules()
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {name!r}')
    model = Config.fromfile(path).model
    model.backbone.init_cfg = None
    assert has_masks(MODELS.build(model)) == expected


def write_log(work_dir, run: str, *records: dict) -> None:
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))


def test_curves_go_on_after_a_resume_and_start_anew_with_a_new_run(tmp_path):
    write_log(
        tmp_path,
        '1',
        dict(loss=3, step=10),
        dict(loss=2, step=20),
        {'coco/bbox_mAP': 0.1, 'step': 1},
        dict(loss=9, step=30),
    )
    write_log(
        tmp_path, '2', dict(loss=1, loss_cls=0.5, step=30), {'coco/bbox_mAP': 0.2, 'coco/bbox_mAP_50': 0.4, 'step': 2}
    )
    assert read_curves(tmp_path) == {
        'loss': {10: 3, 20: 2, 30: 1}, 'loss_cls': {30: 0.5}, 'coco/bbox_mAP': {20: 0.1, 30: 0.2}
    }  # fmt: skip
    write_log(tmp_path, '3', dict(loss=7, step=5))
    (tmp_path / '3' / 'vis_data' / 'scalars.json').open('a').write('\n{"loss": 6, "st')
    assert read_curves(tmp_path) == {'loss': {5: 7}}
    assert plot_curves(tmp_path).read_bytes().startswith(b'\x89PNG')
    assert plot_curves(tmp_path / 'empty') is None


def test_the_table_has_a_row_per_kind_and_no_number_where_there_is_none():
    metrics = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP': 0.25}
    header, boxes, masks = coco_table(metrics).splitlines()
    assert header.split() == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert boxes.split() == ['bbox', '0.500', '0.750', 'none', 'none', 'none', 'none']
    assert masks.split()[:2] == ['segm', '0.250']


def test_the_accuracies_make_a_row_of_percent():
    header, row = accuracy_table({'accuracy/top1': 72.814, 'accuracy/top5': 91.0, 'time': 3}).splitlines()
    assert header.split() == ['top-1', 'top-5'] and row.split() == ['accuracy', '72.81', '91.00', '(%)']
    assert accuracy_table({}) == 'no accuracy was measured'


def test_a_cpu_trains_in_bfloat16_with_weights_in_float32():
    model = Line()
    wrapper = BFloat16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.layer.weight.item()
    model.train_step(dict(inputs=torch.ones(4, 1)), wrapper)
    assert model.dtype_seen == torch.bfloat16
    assert model.layer.weight.dtype == torch.float32 and model.layer.weight.item() != before


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    runner = line_runner(tmp_path)
    save, saved = torch.save, []

    def failing_save(*args, **kwargs):
        if saved:
            args[1].write(b'half of it')
            raise OSError('No space left on device')
        saved.append(True)
        save(*args, **kwargs)

    monkeypatch.setattr('torch.save', failing_save)
    with pytest.raises(OSError, match='No space left'):
        runner.train()
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['meta']['epoch'] == 1
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['epoch_1.pth']
    assert any(isinstance(hook, CheckpointHook) for hook in runner.hooks)


def test_the_last_checkpoint_is_found_where_the_folder_was_moved_to(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'last_checkpoint').write_text('/gone/run/epoch_3.pth')
    assert last_checkpoint(tmp_path) is None
    (tmp_path / 'epoch_3.pth').touch()
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_3.pth'
