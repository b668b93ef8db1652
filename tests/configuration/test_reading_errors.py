"""Configs that cannot be read, or hold what nothing takes: one sentence with the file, the line or the key."""

import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest
from mmdet.datasets import CocoDataset
from mmdet.utils import register_all_modules
from mmengine.config import Config
from paths import ROOT

from shvit_det import UsageError
from shvit_det.commands.cli import add_run_arguments
from shvit_det.configuration.coco_set_checks import draw_sample_set
from shvit_det.configuration.detection import check_mixing
from shvit_det.configuration.reading import inference_pipeline, load_config, named_classes
from shvit_det.configuration.type_names import registries
from shvit_det.configuration.value_kinds import check_values, parameters_of
from shvit_det.data.coco_dataset import CheckedCocoDataset

SAMPLE = str(ROOT / 'configs' / 'mask_rcnn_shvit_s1_sample.py')
IMAGENET = str(ROOT / 'configs' / 'shvit_s1_imagenet.py')
READ_BASE = 'from mmengine.config import read_base\nwith read_base():\n    from .{} import *\n'


@pytest.fixture(scope='module', autouse=True)
def registered():
    """The annotations of classes are compared where the classes are known, as in every tool."""
    register_all_modules()


# Files that cannot be read.

FILES = {
    'base.py': "a = 1\nb = {'c': 1 / 0}\n",
    'number.py': 'model = 5\n',
    'lazy.py': 'from mmdet.models import RetinaNet\nmodel = dict(type=RetinaNet)\n',
    'lazy_zero.py': 'from mmdet.models import RetinaNet\nmodel = dict(type=RetinaNet)\na = 1 / 0\n',
    'circle.py': "_base_ = 'circle.py'\n",
    'raising.py': "\nraise ValueError('no such card')\n",
    'module_here.py': '',
}
UNREADABLE = {  # by what goes wrong: the file, its content, what the sentence says
    'a value': ('a.py', "a = 1\nb = int('x')\n", r'ValueError: .* \(a\.py, line 2\)'),
    'a division in a base': ('a.py', "_base_ = 'base.py'", r'ZeroDivisionError: .* \(\S*base\.py, line 2\)'),
    'a division in a base of Python': ('a.py', READ_BASE.format('lazy_zero'), r'Zero.*lazy_zero\.py, line 3'),
    'an attribute': ('a.py', 'a = dict()\n\na.b\n', r"AttributeError: .*'b' \(a\.py, line 3\)"),
    'a recursion': ('a.py', 'def f():\n    return f()\nf()\n', r'RecursionError: .* \(a\.py, line 2\)'),
    'a circle of bases': ('a.py', "_base_ = 'circle.py'", r'one of its bases leads back to it \(\S*circle\.py\)'),
    'two styles': ('a.py', "_base_ = 'lazy.py'", r'read_base\(\) or imports cannot inherit each other'),
    'two styles again': ('a.py', READ_BASE.format('circle'), r'read_base\(\) or imports cannot inherit each other'),
    'no base': ('a.py', "_base_ = 'nowhere.py'", r'nowhere\.py.* \(a\.py\)'),
    'no base of Python': ('a.py', READ_BASE.format('nowhere'), r'nowhere\.py not found'),
    'no base of a project': ('a.py', "_base_ = 'mmdet::no/where.py'", r'no/where\.py'),
    'a base of another kind': ('a.py', "_base_ = 'number.py'\nmodel = dict(a=1)", 'model'),
    'a missing comma': ('a.py', 'a = dict(\n    b=1\n    c=2)\n', r'SyntaxError: .* \(a\.py, line 2\)'),
    'an open bracket in a base': ('b.py', "_base_ = 'a.py'", r'SyntaxError: .* \(\S*a\.py, line 1\)'),
    'JSON': ('a.json', '{"a": 1,\n "b": }', r'Expecting value \(a\.json, line 2\)'),
    'JSON that is a list': ('a.json', '[1]', r'does not consist of names with values \(a\.json\)'),
    'empty YAML': ('a.yaml', '', r'does not consist of names with values \(a\.yaml\)'),
    'YAML': ('a.yaml', 'a: 1\nb: [1, 2\nc: 3\n', r'\(a\.yaml, line 3\)'),
    'bytes': ('a.py', b'a = 1\nb = "caf\xe9"\n', r'it is not text in UTF-8 \(a\.py, line 2\)'),
    'an end': ('a.py', 'exit(3)', r'SystemExit: 3 \(a\.py, line 1\)'),
    'no such class': ('a.py', 'from mmdet.models import No\nmodel = dict(type=No)', r'import No from mmdet\..*line 1'),
    'no module': ('a.py', "custom_imports = dict(imports=['no_such'])", "No module named 'no_such'$"),
    'a module that raises': ('a.py', "custom_imports = dict(imports=['raising'])", r'card \(\S*raising\.py, line 2'),
    'a list of imports': ('a.py', "custom_imports = ['shvit_det']", r'write custom_imports=dict\(imports=\[\.\.\.\]\)'),
    'another ending': ('a.txt', 'a = 1', 'py/yml/yaml/json'),
    'no file': ('a.py', None, 'no such config: nowhere'),
}  # fmt: skip


@pytest.mark.parametrize('what', UNREADABLE)
def test_whatever_a_config_raises_is_one_sentence_with_the_place(what, tmp_path, monkeypatch):
    name, content, words = UNREADABLE[what]
    monkeypatch.chdir(tmp_path)
    if what == 'a module that raises':
        monkeypatch.syspath_prepend(tmp_path)
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    if what == 'an open bracket in a base':
        (tmp_path / 'a.py').write_text('model = dict(')
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else (content or '').encode())
    with pytest.raises(UsageError, match=words) as caught:
        load_config('nowhere' * 100 if content is None else name)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('folder', ['', 'my configs'])
def test_a_module_of_the_present_folder_or_beside_the_config_needs_a_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder / 'my_parts').mkdir(parents=True)
    config = tmp_path / folder / 'a.py'
    config.write_text("custom_imports = dict(imports=['my_parts.heads'])")
    with pytest.raises(UsageError, match=r"No module named 'my_parts': it is in .* put PYTHONPATH=") as caught:
        load_config(str(config.relative_to(tmp_path)))
    assert shlex.split(str(caught.value).split('PYTHONPATH=')[1])[0] == (folder or '.')


# Values of the wrong kind.


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('train_dataloader', 3, 'takes a dict'),
        ('train_dataloader.dataset', 'data/coco', 'train_dataloader.dataset is'),
        ('train_dataloader.dataset.data_prefix', 'images/', 'CocoDataset takes a dict'),
        ('train_dataloader.dataset.ann_file', 5, 'CocoDataset takes a text'),
        ('train_dataloader.dataset.data_root', 5, 'CocoDataset takes a text'),
        ('train_dataloader.dataset.metainfo', ['disc'], 'CocoDataset takes a dict'),
        ('train_dataloader.dataset.pipeline', ['LoadImageFromFile'], 'pipeline.0 is'),
        ('train_dataloader.dataset.pipeline', [{}], 'has no type'),
        ('train_dataloader.sampler', 'DefaultSampler', 'train_dataloader.sampler is'),
        ('model', 'MaskRCNN', 'takes a dict'),
        ('model.backbone', 'SHViT', 'MaskRCNN takes a dict'),
        ('optim_wrapper', 'AdamW', 'takes a dict'),
        ('optim_wrapper.optimizer', 'AdamW', 'optimizer is'),
        ('val_evaluator', 'CocoMetric', 'takes a dict or a list'),
        ('val_evaluator.ann_file', 5, 'CocoMetric takes a text'),
        ('default_hooks.logger', 'LoggerHook', 'default_hooks.logger is'),
        ('custom_hooks', ['EMAHook'], 'custom_hooks.0 is'),
        ('param_scheduler', 'cosine', 'takes a dict or a list'),
        ('work_dir', 5, 'takes a text'),
        ('resume', 'epoch_1.pth', 'takes True or False'),
        ('auto_scale_lr', True, 'takes a dict'),
        ('sample_set', 5, 'a dict is wanted'),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(key, value, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_config(SAMPLE, {key: value})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    'key, value',
    [
        ('model.neck', None),
        ('test_dataloader', None),
        ('log_level', 10),
        ('load_from', None),
        ('optim_wrapper.loss_scale', 512.0),  # annotated as a text
        ('train_dataloader.dataset.indices', [0, 1]),
        ('test_dataloader.dataset.bad_data', 'refuse'),  # annotated by its two values
        ('default_hooks.visualization', None),
        ('param_scheduler', [{'type': 'LinearLR', 'start_factor': 0.1}]),
    ],
)
def test_what_mmengine_takes_is_taken(key, value):
    load_config(SAMPLE, {key: value})


def test_every_default_of_data_sets_hooks_and_metrics_may_be_written_into_a_config():
    load_config(SAMPLE)  # imports mmdet's
    classes = [
        kind
        for registry in registries()
        if registry.name in ('dataset', 'transform', 'hook', 'metric', 'data sampler', 'visualizer', 'vis_backend')
        for kind in registry.module_dict.values()
    ]
    assert CheckedCocoDataset in classes and len(classes) > 200
    for kind in classes:
        defaults = {key: each.default for key, each in parameters_of(kind).items()}
        given = {key: value for key, value in defaults.items() if value not in (inspect.Parameter.empty, None)}
        check_values('val_evaluator.', given, [kind])


def test_a_config_of_ours_is_found_by_its_name():
    named = load_config('mask_rcnn_shvit_s1_sample')
    assert named.to_dict() == load_config(SAMPLE).to_dict()
    with pytest.raises(UsageError, match=r'no such config: nosuch; ours are .*mask_rcnn_shvit_s4_coco'):
        load_config('nosuch')


# Options that change nothing.


def pasted(message: str) -> dict:
    """Return the options that a message suggests, as they arrive when they are pasted into a command."""
    import argparse

    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    words = shlex.split(message.split('are read are ')[-1].split(' (of the')[0])
    return parser.parse_args(words).cfg_options


@pytest.mark.parametrize(
    'config, key, value, keys',
    [
        (SAMPLE, 'max_epochs', 1, ['train_cfg.max_epochs']),
        (SAMPLE, 'train_pipeline.1.with_mask', False, ['train_dataloader.dataset.pipeline.1.with_mask']),
        (SAMPLE, 'test_pipeline.1.scale', (96, 96),
         ['test_dataloader.dataset.pipeline.1.scale', 'val_dataloader.dataset.pipeline.1.scale']),
        (SAMPLE, 'vis_backends.0.type', 'TensorboardVisBackend', ['visualizer.vis_backends.0.type']),
        (SAMPLE, 'group_norm.num_groups', 4,
         [f'model.roi_head.{kind}_head.norm_cfg.num_groups' for kind in ('bbox', 'mask')]),
        (SAMPLE, 'metainfo.classes', ('disc (big)', 'a, b'),
         [f'{split}_dataloader.dataset.metainfo.classes' for split in ('train', 'val', 'test')]),
        (SAMPLE, 'lr', 0.1, ['optim_wrapper.optimizer.lr']),
        (SAMPLE, 'seed', 3, ['randomness.seed']),
        (SAMPLE, 'evaluation.interval', 2, ['train_cfg.val_interval']),
        (SAMPLE, 'checkpoint_config.interval', 2, ['default_hooks.checkpoint.interval']),
        (SAMPLE, 'data.samples_per_gpu', 2, ['train_dataloader.batch_size']),
        (SAMPLE, 'epochs', 3, ['train_cfg.max_epochs']),
        (SAMPLE, 'workdir', 'my runs/1', ['work_dir']),
        (SAMPLE, 'num_classes', 3, [f'model.roi_head.{kind}_head.num_classes' for kind in ('bbox', 'mask')]),
    ],
)  # fmt: skip
def test_an_option_that_nothing_reads_names_the_keys_that_are_read(config, key, value, keys):
    with pytest.raises(UsageError, match='changes nothing') as caught:
        load_config(config, {key: value})
    options = pasted(str(caught.value))
    assert options == dict.fromkeys(keys, value)
    load_config(config, options)


def test_an_option_that_nothing_reads_may_have_an_option_of_its_own_or_a_namesake_in_value():
    with pytest.raises(UsageError, match=r"--data-root 'my data' names the folder"):
        load_config(SAMPLE, dict(data_root='my data'))
    with pytest.raises(UsageError, match=r'\(of the same value now: optim_wrapper\.optimizer\.lr\)'):
        load_config(IMAGENET, dict(learning_rate=1e-3))
    with pytest.raises(UsageError, match=r'nothing reads xyz$'):
        load_config(SAMPLE, dict(xyz=1))


def test_an_option_for_code_of_its_own_is_taken(tmp_path, monkeypatch, log):
    (tmp_path / 'gain_of_mine.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / 'config.py'
    lines = f"_base_ = {str(SAMPLE)!r}\nmy_gain = 1\ncustom_imports = dict(imports=['shvit_det', 'gain_of_mine'])\n"
    file.write_text(lines)
    assert load_config(str(file), {'my_gain': 3}).my_gain == 3
    assert 'only code of your own can read it' in log.text
    for key, value in (('your_gain', 3), ('max_epochs', 3), ('data_root', 'x')):  # not there, or read elsewhere
        with pytest.raises(UsageError, match='changes nothing'):
            load_config(str(file), {key: value})


def test_the_pipeline_for_new_images_can_be_changed_where_no_loader_has_one(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text("model = dict(type='RetinaNet')\ntest_pipeline = [dict(type='Resize', scale=(9, 9))]\n")
    assert load_config(str(file), {'test_pipeline.0.scale': (8, 8)}).test_pipeline[0].scale == (8, 8)


@pytest.mark.parametrize('key, near', [
    ('model.test_cfg.rcnn.score_threshold', 'score_thr'), ('sample_set.num_trian', 'num_train'),
])  # fmt: skip
def test_an_option_that_is_nearly_a_key_of_a_dict_without_a_type_is_refused(key, near):
    with pytest.raises(UsageError, match=f'did you mean {near!r}'):
        load_config(SAMPLE, {key: 3})
    load_config(SAMPLE, {'model.test_cfg.rcnn.min_size': 3})  # which may be new


def test_an_evaluator_after_a_comma_is_a_list(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(f"_base_ = {str(SAMPLE)!r}\ntest_evaluator = (dict(type='CocoMetric'),)\n")
    assert load_config(str(file)).test_evaluator == [dict(type='CocoMetric')]


@pytest.mark.parametrize('content', ['\ufeffdisc\nstar\n', 'disc\n\nstar\n', 'disc\nstar\n\n'])
def test_a_file_of_names_has_names_only(content, tmp_path):
    (tmp_path / 'names.txt').write_text(content, encoding='utf-8')
    with pytest.raises(UsageError, match='no empty lines and no byte-order mark'):
        named_classes(dict(metainfo=dict(classes=str(tmp_path / 'names.txt'))), CocoDataset)


@pytest.mark.parametrize('settings, words', [
    (dict(num_trian=8), "sample_set.num_trian: the sample set has no argument 'num_trian': did you mean 'num_train'"),
    (dict(image_size='big'), "sample_set.image_size is 'big', where a whole number is wanted"),
])  # fmt: skip
def test_settings_of_the_sample_set_are_checked(settings, words, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words)):
        draw_sample_set(Config(dict(data_root=str(tmp_path / 'data'), sample_set=settings)))
    draw_sample_set(Config(dict(data_root=str(tmp_path / 'data'), sample_set=None)))
    assert not list(tmp_path.iterdir())


def test_an_element_that_cannot_be_set_alone_is_named():
    with pytest.raises(UsageError, match=r'metric\.0 does not fit .*set test_evaluator\.metric as a whole'):
        load_config(SAMPLE, {'test_evaluator.metric.0': 'bbox'})


# Classes, pipelines and transforms.


def test_classes_are_read_as_mmengine_reads_them(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('disc (big)\n__star__\nžlutý\n', encoding='utf-8')
    for classes in (str(file), ['disc (big)', '__star__', 'žlutý']):
        expected = tuple(CocoDataset._load_metainfo(dict(classes=classes))['classes'])
        assert named_classes(dict(metainfo=dict(classes=classes)), CocoDataset) == expected
        assert expected == ('disc (big)', '__star__', 'žlutý')
    assert named_classes(dict(metainfo=dict(palette=[(1, 2, 3)])), CocoDataset) == CocoDataset.METAINFO['classes']


@pytest.mark.parametrize(
    'dataset, words',
    [
        (dict(metainfo=dict(classes=('disc'))), r"'disc', which is neither .* classes=\('NAME',\)"),
        (dict(metainfo=dict(classes=5)), '5, which is neither'),
        (dict(metainfo=dict(classes={'a', 'b'})), 'neither a list'),
        (dict(metainfo=dict(classes='.')), r"classes of a data set is '\.': .*directory"),
        (dict(metainfo=dict(classes=('disc', 'box', 'disc'))), "names 'disc' twice"),
        (dict(metainfo=dict(CLASSES=('disc',))), r'nothing reads CLASSES .*metainfo=dict\(classes='),
        (dict(metainfo=dict(class_names=['disc'])), 'nothing reads class_names'),
        (dict(classes=('disc',)), r'takes no classes: write metainfo=dict\(classes='),
    ],
)
def test_classes_that_mmengine_would_misread_are_refused(dataset, words):
    with pytest.raises(UsageError, match=words):
        named_classes(dataset, CocoDataset)


@pytest.mark.parametrize('transform', ['Mosaic', 'MixUp', 'RandomAffine', 'RandomCenterCropPad', 'CachedMosaic'])
@pytest.mark.parametrize('with_mask', [False, True])
def test_masks_are_not_left_behind_by_transforms(transform, with_mask):
    loading = dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)
    inner = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile'), loading])
    mixed = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[dict(type=f'mmdet.{transform}')])
    config = Config(dict(train_dataloader=dict(dataset=mixed)))
    if with_mask and transform != 'CachedMosaic':
        with pytest.raises(UsageError, match=rf'pipeline\.0 is {transform}, which moves no masks'):
            check_mixing(config)
    else:
        check_mixing(config)


def test_new_images_are_read_as_in_validation_where_there_is_no_test():
    steps = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    val = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='CocoDataset', pipeline=steps)))
    config = Config(dict(test_dataloader=None, val_dataloader=val))
    assert inference_pipeline(config) == steps
    assert inference_pipeline(Config(dict(test_pipeline=steps))) == steps
    assert inference_pipeline(Config(dict(val_dataloader=None)), needed=False) == []


def test_a_config_of_python_may_import_and_define_what_it_likes(tmp_path):
    (tmp_path / 'base.py').write_text(
        'import math\nfrom pathlib import Path\nfrom mmdet.models import RetinaNet\nfrom mmcv.ops import nms\n'
        'from torch import nn\n\ndef double(x):\n    return 2 * x\n\n'
        'model = dict(type=RetinaNet, neck=dict(norm_cfg=dict(type=nn.BatchNorm2d)), '
        'test_cfg=dict(nms=dict(type=nms), max_per_img=double(50)))\n'
    )
    (tmp_path / 'child.py').write_text(READ_BASE.format('base') + 'model.test_cfg.update(score_thr=0.5)\n')
    (tmp_path / 'text.py').write_text(
        "_base_ = []\nfrom pathlib import Path\nwork_dir = Path('runs')\nclass Own:\n    pass\nmodel = dict(a=1)"
    )
    config = load_config(str(tmp_path / 'child.py'))
    assert config.model.type == 'mmdet.RetinaNet' and config.model.neck.norm_cfg.type == 'BN'
    assert config.model.test_cfg == dict(nms=dict(type='nms'), max_per_img=100, score_thr=0.5)
    assert set(config) == {'model'}
    config = load_config(str(tmp_path / 'text.py'))
    assert config.to_dict() == dict(work_dir='runs', model=dict(a=1))


def test_names_of_classes_are_printed_in_any_locale(tmp_path):
    """Python's process of its own, since the locale counts when it starts."""
    script = (
        'import sys\nfrom shvit_det.commands.cli import run\n'
        "def main():\n    print('\\u017elut\\xfd')\n    raise SystemExit(len(sys.argv) - 1)\nrun(main)\n"
    )
    environment = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, env=environment, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, rb'\u017elut\xfd' + b'\n', b'')
