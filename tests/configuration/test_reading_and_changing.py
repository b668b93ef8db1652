"""Configs: loaded, asked what they say, and changed by the options of the tools."""

import argparse

import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from shvit_det import UsageError
from shvit_det.commands.cli import add_run_arguments
from shvit_det.configuration.changing import enable_auto_scale_lr, set_data_root
from shvit_det.configuration.classification import Classification
from shvit_det.configuration.detection import Detection, has_masks
from shvit_det.configuration.names_at_top import warn_if_new
from shvit_det.configuration.reading import dataset_places, load_config


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
            val_dataloader=dict(dataset=dict(inner, data_root='elsewhere/', ann_file='annotations/c.json')),
            test_dataloader=None,
            val_evaluator=[dict(type='CocoMetric', ann_file='data/coco/annotations/a.json')],
            test_evaluator=dict(type='CocoMetric', ann_file='data/coco-extra/annotations/a.json'),
        )
    )  # fmt: skip


def datasets(config: Config, split: str) -> list:
    return [dataset for _, dataset in dataset_places(config, split)]


def test_the_data_root_reaches_every_loader_and_evaluator(tmp_path):
    config = coco_config()
    set_data_root(config, str(tmp_path))
    first, second = datasets(config, 'train')
    assert first.data_root == f'{tmp_path}/' and first.ann_file == 'annotations/a.json'
    assert second.ann_file == f'{tmp_path}/annotations/b.json' and second.data_prefix.img == f'{tmp_path}/val/'
    assert datasets(config, 'val')[0].data_root == f'{tmp_path}/'
    assert datasets(config, 'test') == []
    assert config.val_evaluator[0].ann_file == f'{tmp_path}/annotations/a.json'
    assert config.test_evaluator.ann_file == 'data/coco-extra/annotations/a.json'


@pytest.mark.parametrize('root', ['D:\\data\\coco', 'D:\\data\\coco\\', 'D:/data/coco', 'data/coco'])
def test_folders_are_replaced_however_they_are_written(root, tmp_path):
    """Windows has two signs between folders, and mixes them."""
    below = root.rstrip('/\\')
    dataset = dict(data_root=root, ann_file=f'{below}\\annotations\\b.json', data_prefix=dict(img=f'{below}/val'))
    config = Config(dict(data_root=root, train_dataloader=dict(dataset=dict(dataset, seg_map=f'{below}2/a'))))
    set_data_root(config, str(tmp_path))
    (replaced,) = datasets(config, 'train')
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


def test_the_table_has_a_row_per_kind_and_no_number_where_there_is_none():
    metrics = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP': 0.25}
    header, boxes, masks = Detection().table(metrics).splitlines()
    assert header.split() == ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert boxes.split() == ['bbox', '0.500', '0.750', 'none', 'none', 'none', 'none']
    assert masks.split()[:2] == ['segm', '0.250']


def test_the_accuracies_make_a_row_of_percent():
    header, row = Classification().table({'accuracy/top1': 72.814, 'accuracy/top5': 91.0, 'time': 3}).splitlines()
    assert header.split() == ['top-1', 'top-5'] and row.split() == ['accuracy', '72.81', '91.00', '(%)']
    assert Classification().table({}) == 'no accuracy was measured'
