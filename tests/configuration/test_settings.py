"""Settings that mmengine documents, through our tools: kept as they are written, or refused in one sentence."""

import importlib
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from line_model import HOOKS, line_runner
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.fileio import BaseStorageBackend, FileClient, register_backend
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.utils import get_object_from_string
from paths import ROOT
from tool_runs import RETINANET
from torch import distributed, nn
from torch.utils.data import DataLoader
from training_runs import run

from shvit_det import UsageError
from shvit_det.checkpoint.fetch import cached_path
from shvit_det.checkpoint.reading import read_content
from shvit_det.common.errors import RunError
from shvit_det.configuration.detection import Detection
from shvit_det.configuration.reading import load_config, splits_of, type_of
from shvit_det.configuration.type_names import dotted_name, type_name
from shvit_det.data.sample import ensure_sample
from shvit_det.evaluation.evaluate import evaluate
from shvit_det.training.build_runner import name_runner
from shvit_det.training.loop import ResumableEpochLoop
from shvit_det.training.resuming import CheckpointLocation, checkpoint_location, checkpoints_of, last_checkpoint
from shvit_det.training.runner import SHViTRunner
from shvit_det.training.seeding import with_seeded_samples
from shvit_det.training.train import train

pytestmark = pytest.mark.slow

SAMPLE = dict(num_train=4, num_val=2, image_size=96)
SMALL = f"""
_base_ = {str(RETINANET)!r}
sample_set = dict(num_train=4, num_val=2, image_size=96)
model = dict(test_cfg=dict(score_thr=0.0, max_per_img=10))
train_cfg = dict(max_epochs=1)
"""


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'sample'
    ensure_sample(f'{root}/', seed=0, **SAMPLE)
    return root


@pytest.fixture
def folder(sample, tmp_path, monkeypatch):
    """A working folder with data for the small config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'sample').symlink_to(sample)
    return tmp_path


def written(folder: Path, *lines: str) -> str:
    """Write the small config with more lines, and return its path."""
    path = folder / 'small.py'
    own_name = f"experiment_name = '{time.monotonic_ns()}'"  # mmengine's ends with the second
    path.write_text('\n'.join([SMALL, own_name, *lines]))
    return str(path)


def logged(folder: Path) -> str:
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return read_content(Path(path))['state_dict']


def same(first: Path | str, second: Path | str) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# Checkpoints.


def test_checkpoints_outside_the_work_dir_are_found_resumed_and_tested(folder):
    config = written(folder, "default_hooks = dict(checkpoint=dict(out_dir='far', save_best='auto'))")
    there = folder / 'far' / 'run'
    assert train(config, work_dir='run') == there / 'epoch_1.pth'
    assert list(folder.glob('run/*.pth')) == [] and len(list(there.glob('best_*.pth'))) == 1
    assert f'Checkpoint: {there}/epoch_1.pth' in logged(folder / 'run')
    longer = {'train_cfg.max_epochs': 2}
    assert train(config, work_dir='run', resume='auto', cfg_options=longer) == there / 'epoch_2.pth'
    assert 'epoch_1.pth' in logged(folder / 'run') and read_content(there / 'epoch_2.pth')['meta']['epoch'] == 2
    (there / 'epoch_2.pth').write_bytes(b'damaged')
    assert train(config, work_dir='run', resume='auto', cfg_options=longer) == there / 'epoch_2.pth'
    assert f'going back to the checkpoint before it, {there}/epoch_1.pth' in logged(folder / 'run')
    assert 'coco/bbox_mAP' in evaluate(config, str(there / 'epoch_2.pth'), work_dir='run')


def test_a_folder_for_checkpoints_that_cannot_be_written_is_found_before_the_start(folder):
    (folder / 'far').touch()
    config = written(folder, "default_hooks = dict(checkpoint=dict(out_dir='far'))")
    with pytest.raises(UsageError, match=r'cannot write into the folder of checkpoints .*far/run .*out_dir'):
        train(config, work_dir='run')
    assert not (folder / 'run').exists()


def test_where_checkpoints_are_looked_for(tmp_path):
    work_dir, far = tmp_path / 'run', tmp_path / 'far' / 'run'
    for each in (work_dir, far):
        each.mkdir(parents=True)
    hook = dict(type='CheckpointHook', out_dir=str(tmp_path / 'far'), filename_tmpl='model-{}.pt')
    place = checkpoint_location(Config(dict(work_dir=str(work_dir), default_hooks=dict(checkpoint=hook))))
    assert place == CheckpointLocation(work_dir, far, 'model-{}.pt')
    for name in ('model-7.pt', 'iter_3.pth', 'best_model-7.pt', 'model-x.pt'):
        (far / name).touch()
    assert {path.name for path in checkpoints_of(place)} == {'model-7.pt', 'iter_3.pth'}
    # a checkpoint of the same name from an earlier run in the work dir is not the one that was written last
    (work_dir / 'last_checkpoint').write_text(str(far / 'model-7.pt'))
    (work_dir / 'model-7.pt').touch()
    assert next(checkpoints_of(place)) == far / 'model-7.pt'
    assert last_checkpoint(work_dir) == work_dir / 'model-7.pt'  # for a config that says nothing of another folder
    (work_dir / 'model-7.pt').unlink()
    assert last_checkpoint(work_dir) == far / 'model-7.pt'
    for settings in (None, dict(checkpoint=None), dict(checkpoint=dict(out_dir=str(work_dir)))):
        assert checkpoint_location(Config(dict(work_dir=str(work_dir), default_hooks=settings))).folder == work_dir


class Cupboard(BaseStorageBackend):
    """Stands in for storage on another machine."""

    files: ClassVar[dict[str, bytes]] = {}  # the same for all who open it

    def get(self, filepath):
        return self.files[str(filepath)]

    def get_text(self, filepath):
        return self.get(filepath).decode()

    def put(self, obj, filepath):
        self.files[str(filepath)] = obj

    def isfile(self, filepath):
        return str(filepath) in self.files

    def isdir(self, filepath):
        return False

    def remove(self, filepath):
        del self.files[str(filepath)]

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath).rstrip('/'), *filepaths])

    @contextmanager
    def get_local_path(self, filepath):
        with tempfile.NamedTemporaryFile(suffix='.json') as file:
            file.write(self.get(filepath))
            file.flush()
            yield file.name


for register in (register_backend, FileClient.register_backend):  # mmengine keeps two lists of them
    register('cupboard', Cupboard, force=True, prefixes='cupboard')


@pytest.fixture
def cupboard():
    yield Cupboard.files
    Cupboard.files.clear()


def test_checkpoints_on_remote_storage(folder, cupboard):
    hook = "dict(out_dir='cupboard://far', max_keep_ckpts=1, save_best='auto')"
    config = written(folder, f'default_hooks = dict(checkpoint={hook})')
    last = train(config, work_dir='run', cfg_options={'train_cfg.max_epochs': 2})
    assert last == 'cupboard://far/run/epoch_2.pth' and list(folder.glob('**/*.pth*')) == []
    best, kept = sorted(cupboard)
    assert best.startswith('cupboard://far/run/best_coco_bbox_mAP_epoch_') and kept == last
    assert f'Checkpoint: {last}' in logged(folder / 'run')
    with pytest.raises(UsageError, match=f'on remote storage, {last}: copy it to this machine'):
        train(config, work_dir='run', resume='auto')
    (folder / 'here.pth').write_bytes(cupboard[last])
    longer = {'train_cfg.max_epochs': 3}
    assert train(config, work_dir='run', resume='here.pth', cfg_options=longer) == 'cupboard://far/run/epoch_3.pth'


@pytest.mark.parametrize(
    'hook, words',
    [('dict(interval=5, save_last=False)', 'interval=5, save_begin=0 and save_last=False'), ('None', '')],
)
def test_a_run_that_saves_no_checkpoint_ends_well_and_says_so(hook, words, folder):
    (folder / 'run').mkdir()
    shutil.copy(RETINANET, folder / 'run' / 'epoch_9.pth')  # of an earlier run
    (folder / 'run' / 'last_checkpoint').write_text('epoch_9.pth')
    assert train(written(folder, f'default_hooks = dict(checkpoint={hook})'), work_dir='run') is None
    text = logged(folder / 'run')
    assert 'Checkpoint: none was written' in text and words in text
    assert ('saves no checkpoint to go on from' in text) == bool(words)


@pytest.mark.parametrize(
    'hook, warned',
    [
        (dict(interval=2, save_last=False), False),
        (dict(interval=3, save_last=False), True),
        (dict(interval=-1, save_last=False), True),
        (dict(interval=-1), False),
        (dict(interval=9, save_begin=2, save_last=False), False),
        (dict(interval=1, save_begin=3, save_last=False), True),
        (dict(interval=4, by_epoch=False, save_last=False), False),
        (dict(interval=5, by_epoch=False, save_last=False), True),
    ],
)
def test_a_warning_before_a_run_without_checkpoints(hook, warned, tmp_path):
    runner = line_runner(tmp_path, default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', **hook)))
    runner.train()
    assert ('saves no checkpoint to go on from' in logged(tmp_path)) == warned
    assert bool(list(tmp_path.glob('*.pth'))) != warned


def test_a_best_checkpoint_by_something_that_is_not_measured(tmp_path):
    with pytest.raises(UsageError, match=r'save_best of CheckpointHook is accuracy, .* choose from value'):
        run(tmp_path, checkpoint=dict(save_best='accuracy', rule='greater')).train()


def test_what_a_checkpoint_lacks_is_said_when_it_is_resumed(folder):
    lacking = 'dict(save_optimizer=False, save_param_scheduler=False)'
    config = written(folder, f'default_hooks = dict(checkpoint={lacking})')
    train(config, work_dir='run')
    train(config, work_dir='run', resume='auto', cfg_options={'train_cfg.max_epochs': 2})
    assert 'the moments of the optimizer start anew: they are not in it' in logged(folder / 'run')


# resume and load_from in the config.


@pytest.fixture(scope='module')
def begun(sample, tmp_path_factory):
    """A folder in which a run of one epoch has ended."""
    folder = tmp_path_factory.mktemp('begun')
    (folder / 'data').mkdir()
    (folder / 'data' / 'sample').symlink_to(sample)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(written(folder), work_dir='run')
    return folder


@pytest.mark.parametrize('lines', [['resume = True'], ['resume = True', "load_from = 'first/epoch_1.pth'"]])
def test_resume_in_the_config_is_that_of_the_command_line(lines, begun, folder):
    longer = {'train_cfg.max_epochs': 2}
    for name in ('first', 'second'):
        shutil.copytree(begun / 'run', folder / name)
    expected = train(written(folder), work_dir='first', resume='auto', cfg_options=longer)
    assert same(expected, train(written(folder, *lines), work_dir='second', cfg_options=longer))
    assert 'Epoch(train) [1]' not in logged(folder / 'second').split('resumed epoch: 1', 1)[1]


def test_resume_in_the_config_without_a_checkpoint_starts_anew(folder):
    assert train(written(folder, 'resume = True'), work_dir='run') == folder / 'run' / 'epoch_1.pth'
    assert 'holds no checkpoint yet, so that this run starts anew' in logged(folder / 'run')


def test_the_command_line_comes_before_the_config(begun, folder):
    config = written(folder, 'resume = True', "load_from = 'nowhere.pth'")
    checkpoint = begun / 'run' / 'epoch_1.pth'
    last = train(config, work_dir='run', resume=str(checkpoint), cfg_options={'train_cfg.max_epochs': 2})
    assert 'resumed epoch: 1' in logged(folder / 'run') and 'Epoch(train) [1]' not in logged(folder / 'run')
    assert last == folder / 'run' / 'epoch_2.pth'


@pytest.mark.parametrize('length', [1, 2])
def test_a_run_that_has_ended_is_left_as_it_is(length, begun, folder, capsys):
    shutil.copytree(begun / 'run', folder / 'run')
    if length == 2:
        train(written(folder), work_dir='run', resume='auto', cfg_options={'train_cfg.max_epochs': 2})
    before = sorted((path, path.stat().st_mtime_ns) for path in (folder / 'run').rglob('*'))
    last = train(written(folder), work_dir='run', resume='auto')
    assert last == folder / 'run' / f'epoch_{length}.pth'
    assert f'{last} has {length} epochs, and train_cfg.max_epochs is 1. To go on' in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in (folder / 'run').rglob('*')) == before


@pytest.mark.parametrize('resume', ['~/epoch_1.pth', 'file of a URL'])
def test_checkpoints_at_home_and_in_the_cache_of_downloads(resume, begun, folder, monkeypatch):
    if resume.startswith('~'):
        monkeypatch.setenv('HOME', str(begun / 'run'))
    else:
        resume = 'https://example.com/weights/epoch_1.pth'
        monkeypatch.setenv('TORCH_HOME', str(folder / 'cache'))
        cached_path(resume).parent.mkdir(parents=True)
        shutil.copy(begun / 'run' / 'epoch_1.pth', cached_path(resume))
    longer = {'train_cfg.max_epochs': 2}
    resumed = train(written(folder), work_dir='resumed', resume=resume, cfg_options=longer)
    in_config = train(written(folder, 'resume = True', f'load_from = {resume!r}'), work_dir='b', cfg_options=longer)
    assert same(resumed, in_config) and 'resumed epoch: 1' in logged(folder / 'resumed')
    for runner in ('SHViTRunner', 'Runner'):
        train(written(folder, f'load_from = {resume!r}'), work_dir=runner, cfg_options=dict(runner_type=runner))
        assert 'epoch_1' in logged(folder / runner)


# Names of classes.


def lazily(path: Path, scope: str | None) -> str:
    """Return a config as mmengine's other kind, in which every type is a class that is imported."""
    modules = [
        importlib.import_module(name)
        for name in (
            'mmdet.models', 'mmdet.models.task_modules', 'mmdet.datasets', 'mmdet.datasets.transforms',
            'mmdet.evaluation', 'mmdet.visualization', 'mmdet.engine.hooks', 'mmengine.hooks', 'mmengine.runner',
            'mmengine.optim', 'mmengine.dataset', 'mmengine.visualization', 'mmcv.transforms', 'torch.optim',
            'shvit_det',
        )
    ]  # fmt: skip
    config = Config.fromfile(path)
    config.default_scope = scope
    imports = []

    def named(match: re.Match) -> str:
        module = next((each for each in modules if hasattr(each, match[1])), None)
        if module is None:
            return match[0]
        imports.append(f'from {module.__name__} import {match[1]}')
        return f'type={match[1]}'

    text = re.sub(r"type='(\w+)'", named, config.pretty_text)
    assert len(set(imports)) > 25
    return '\n'.join([*sorted(set(imports)), text])


def test_a_config_of_classes_is_trained_and_tested(folder):
    path = folder / 'lazy.py'
    path.write_text(lazily(Path(written(folder)), scope=None))
    last = train(str(path), work_dir='run', amp=True, fast=True)
    text = logged(folder / 'run')
    assert 'fused AdamW' in text and '--amp: bfloat16' in text
    assert 'objects are trained on' in text  # the checked data set took the place of mmdet's
    results = evaluate(str(path), str(last), metrics=['bbox'], classwise=True, work_dir='run')
    assert 'coco/disc_precision' in results


def test_classes_become_names_that_lead_back_to_them(tmp_path):
    from mmcv.ops import nms
    from mmdet.models import L1Loss
    from torch.optim import AdamW

    for kind in (SHViTRunner, AdamW, L1Loss, EpochBasedTrainLoop, pseudo_collate):
        assert get_object_from_string(dotted_name(kind)) is kind
    names = {
        AdamW: 'AdamW',
        L1Loss: 'mmdet.L1Loss',
        nn.BatchNorm2d: 'BN',
        nn.ReLU: 'ReLU',
        nms: 'nms',
        Counter: 'collections.Counter',
    }
    assert {kind: type_name(kind) for kind in names} == names  # those that configs of text have, where there are any
    assert type_name(L1Loss, 'mmdet') == 'L1Loss' and type_name(SHViTRunner) == 'shvit_det.SHViTRunner'
    assert type_name('RetinaNet') == 'RetinaNet' and type_name(None) is None
    assert type_of(dict(type='mmdet.models.RetinaNet')) == type_of(dict(type='RetinaNet')) == 'RetinaNet'
    assert type_of({}, 'OptimWrapper') == 'OptimWrapper'
    path = tmp_path / 'own.py'
    path.write_text('class Own:\n    pass\nmodel = dict(type=Own)')
    with pytest.raises(UsageError, match='type=Own cannot be imported'):
        load_config(str(path))


# Storage of data.


@pytest.mark.parametrize('what', ['annotations', 'images', 'nothing'])
def test_data_on_remote_storage_is_left_to_the_run(what, folder, cupboard, log):
    lines = []
    root = Path('data/sample').absolute()
    for split in ('train', 'val'):
        images, file = f'{split}2017/', f'annotations/instances_{split}2017.json'
        if what == 'annotations':
            cupboard[f'cupboard://far/{file}'] = (root / file).read_bytes()
            lines += [f"place = dict(data_root='cupboard://far/', data_prefix=dict(img='{root}/{images}'))"]
        elif what == 'images':
            cupboard |= {f'cupboard://far/{images}{path.name}': path.read_bytes() for path in (root / images).iterdir()}
            lines += [f"place = dict(data_root='cupboard://far/', ann_file='{root}/{file}')"]
        else:
            lines += ["place = dict(backend_args=dict(backend='local'))"]
        lines += [f'{split}_dataloader = dict(dataset=place)']
    if what == 'annotations':
        lines += ["val_evaluator = dict(ann_file='cupboard://far/annotations/instances_val2017.json')"]
    train(written(folder, *lines), work_dir='run')
    assert ('is on remote storage' in log.text) == (what == 'annotations')


def test_storage_that_nobody_can_reach_is_refused(folder):
    line = "train_dataloader = dict(dataset=dict(backend_args=dict(backend='petrel')))"
    with pytest.raises(UsageError, match=r'instances_train2017.json cannot be reached .*petrel_client'):
        train(written(folder, line), work_dir='run')
    assert not (folder / 'run').exists()


# Loaders.


def loader_of(**settings) -> DataLoader:
    return SHViTRunner.build_dataloader(
        dict(dataset=[1, 2, 3, 4], batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), **settings), seed=0
    )


@pytest.mark.parametrize(
    'name, value',
    [('persistent_workers', True), ('prefetch_factor', 4), ('timeout', 9), ('multiprocessing_context', 'fork')],
)
def test_settings_of_workers_are_left_out_where_there_are_none(name, value, log):
    assert len(list(loader_of(num_workers=0, **{name: value}))) == 2
    assert log.messages == [f'{name} of a loader left out, since its num_workers is 0']
    log.clear()
    kept = getattr(loader_of(num_workers=1, **{name: value}), name)
    assert kept == value or kept.get_start_method() == value
    assert len(list(loader_of(num_workers=0, **{name: None if name != 'timeout' else 0}))) == 2
    assert log.messages == []


def test_a_loader_with_seeds_keeps_its_settings():
    class Own(DataLoader):
        pass

    options = dict(num_workers=1, pin_memory=True, timeout=5, prefetch_factor=3, in_order=False)
    loader = Own(Numbers(range(4)), 2, collate_fn=list, generator=torch.Generator(), **options)
    seeded = with_seeded_samples(loader, 0)
    assert type(seeded) is Own and loader.batch_sampler is not seeded.batch_sampler
    for name in (*options, 'generator', 'collate_fn', 'persistent_workers', 'sampler', 'dataset', 'batch_size'):
        assert getattr(seeded, name) == getattr(loader, name)
    assert [sample for batch in Own(Numbers(range(4)), 2, collate_fn=list) for sample in batch] == [0, 1, 2, 3]


class Numbers(list):
    """A data set to which an attribute can be added."""


# Hooks, loops and the rest of the runner.


def test_hooks_that_are_none_are_left_out(tmp_path):
    names = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'visualization')
    runner = line_runner(tmp_path, default_hooks=dict.fromkeys([*names, *HOOKS]), custom_hooks=None)
    runner.train()
    assert runner.hooks == []
    assert list(tmp_path.glob('*.pth')) == []


def names_of(config: Config) -> tuple:
    """Return what a config names of what our configs name."""
    hooks = {name: hook.get('type') for name, hook in config.default_hooks.items() if name in HOOKS}
    return config.runner_type, config.train_cfg.get('type'), hooks


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_a_config_that_names_no_runner_gets_what_ours_name(scope):
    names = {
        'mmdet': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'retinanet_shvit_s4_coco'),
        'mmpretrain': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 'shvit_s4_imagenet'),
    }[scope]
    plain, ours = (load_config(str(name)) for name in (names[0], ROOT / 'configs' / f'{names[1]}.py'))
    assert 'names no runner' in name_runner(plain)
    assert names_of(plain) == names_of(ours)
    before = ours.to_dict()
    assert name_runner(ours) is None and ours.to_dict() == before


@pytest.mark.parametrize('kind', ['CheckpointHook', 'mmengine.CheckpointHook', dotted_name(CheckpointHook)])
def test_every_checkpoint_hook_of_such_a_config_becomes_the_safe_one(kind):
    own = dict(type=kind, interval=3)
    config = Config(dict(default_hooks=dict(checkpoint=dict(type=kind)), custom_hooks=[own, dict(type='EMAHook')]))
    name_runner(config)
    assert config.default_hooks.checkpoint.type == config.custom_hooks[0].type == 'SafeCheckpointHook'
    assert config.custom_hooks[0].interval == 3 and config.custom_hooks[1].type == 'EMAHook'


def test_a_config_may_name_mmengines_runner_or_drop_our_hooks():
    config = Config(dict(runner_type='Runner', default_hooks=dict(checkpoint=dict(type='CheckpointHook'))))
    assert name_runner(config) is None and list(config.default_hooks) == ['checkpoint']
    config = Config(dict(default_hooks=dict(termination=None, checkpoint=None)))
    name_runner(config)
    assert config.default_hooks.termination is config.default_hooks.checkpoint is None


class OwnCheckpointHook(CheckpointHook):
    pass


class OwnLoop(EpochBasedTrainLoop):
    pass


def test_own_classes_are_not_replaced(tmp_path):
    config = Config(
        dict(
            default_hooks=dict(checkpoint=dict(type=dotted_name(OwnCheckpointHook))),
            train_cfg=dict(type=dotted_name(OwnLoop), max_epochs=1),
        )
    )
    name_runner(config)
    runner = line_runner(tmp_path, default_hooks=config.default_hooks, train_cfg=config.train_cfg)
    runner.train()
    assert type(runner.train_loop) is OwnLoop
    assert any(type(hook) is OwnCheckpointHook for hook in runner.hooks)


@pytest.mark.parametrize(
    'loop, expected',
    [
        (dict(by_epoch=True, max_epochs=1), ResumableEpochLoop),
        (dict(type='EpochBasedTrainLoop', max_epochs=1), ResumableEpochLoop),
        (dict(type='mmengine.EpochBasedTrainLoop', max_epochs=1), ResumableEpochLoop),
        (dict(type=dotted_name(EpochBasedTrainLoop), max_epochs=1), ResumableEpochLoop),
        (dict(by_epoch=False, max_iters=1), IterBasedTrainLoop),
        (dict(type='IterBasedTrainLoop', max_iters=1), IterBasedTrainLoop),
    ],
)
def test_which_loop_trains(loop, expected, tmp_path):
    config = Config(dict(train_cfg=loop))
    name_runner(config)
    assert type(line_runner(tmp_path, train_cfg=config.train_cfg).train_loop) is expected


def test_our_runner_leaves_the_loop_and_the_hooks_that_are_named(tmp_path):
    plain = dict(type='CheckpointHook', interval=1)
    runner = line_runner(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=1), default_hooks=dict(checkpoint=plain))
    runner.train()
    assert type(runner.train_loop) is EpochBasedTrainLoop
    assert {type(hook).__module__.split('.')[0] for hook in runner.hooks} == {'mmengine'}


@pytest.mark.parametrize('loop', [dict(max_epochs=1), dict(type='IterBasedTrainLoop', by_epoch=True, max_iters=1)])
def test_a_loop_has_a_type_or_counts_by_something(loop, tmp_path):
    with pytest.raises(UsageError, match='by type or by by_epoch'):
        line_runner(tmp_path, train_cfg=loop).train()


@pytest.mark.parametrize('interval', [1, 7, 50])
def test_the_interval_of_the_log_stays(interval, tmp_path):
    hook = dict(type='LoggerHook', interval=interval)
    runner = line_runner(tmp_path, default_hooks=dict(logger=hook))
    runner.train()
    assert [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)] == [interval]


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_a_run_by_iterations_goes_on_from_its_checkpoints(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    options = dict(iterations=True, checkpoint=dict(interval=4, by_epoch=False), randomness=dict(seed=3))

    def started(name: str, **more) -> SHViTRunner:
        runner = run(tmp_path / name, **options, **more)
        runner._train_dataloader['sampler']['type'] = sampler
        return runner

    started('whole').train()
    shutil.copytree(tmp_path / 'whole', tmp_path / 'half')
    for path in ('iter_8.pth', 'iter_12.pth'):
        (tmp_path / 'half' / path).unlink()
    started('half', resume=True, load_from=str(tmp_path / 'half' / 'iter_4.pth')).train()
    assert same(tmp_path / 'whole' / 'iter_12.pth', tmp_path / 'half' / 'iter_12.pth')


def test_a_wrapper_of_the_model_and_a_timeout_are_kept_without_a_gpu(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("with a GPU they are mmengine's affair")
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for name, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    timeouts = []
    start = distributed.init_process_group

    def watching_start(**options):
        timeouts.append(options['timeout'])
        start(**options)

    monkeypatch.setattr(distributed, 'init_process_group', watching_start)
    config = Config(dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', find_unused_parameters=True)))
    try:
        runner = line_runner(tmp_path, launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=77)), cfg=config)
        runner.train()
        assert runner.model.find_unused_parameters and timeouts == [timedelta(seconds=77)]
    finally:
        distributed.destroy_process_group()


def test_a_seed_leaves_the_other_settings_of_randomness(folder):
    try:
        last = train(written(folder, 'randomness = dict(deterministic=True, diff_rank_seed=True)'), seed=5)
        assert torch.are_deterministic_algorithms_enabled()
        stored = read_content(Path(last))['meta']
        assert stored['seed'] == 5 and 'diff_rank_seed=True' in stored['cfg']
    finally:
        torch.use_deterministic_algorithms(False)


def test_settings_that_are_none_are_those_of_mmengine(folder):
    none = ['randomness', 'env_cfg', 'launcher', 'log_level', 'log_processor', 'visualizer', 'param_scheduler',
            'custom_hooks', 'auto_scale_lr', 'experiment_name', 'load_from', 'resume',
            'val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader', 'test_evaluator']  # fmt: skip
    config = written(folder, *(f'{name} = None' for name in none), 'default_hooks = dict(visualization=None)')
    assert splits_of(load_config(config)) == ['train']
    assert train(config, work_dir='run') == folder / 'run' / 'epoch_1.pth'
    assert 'no average precision was measured' in logged(folder / 'run')
    with pytest.raises(UsageError, match='there is nothing to test'):
        evaluate(config, str(folder / 'run' / 'epoch_1.pth'))


def test_scores_do_not_need_a_file_of_scalars(folder):
    config = written(folder, 'visualizer = dict(vis_backends=[])', "work_dir = 'run'")
    train(config)
    text = logged(folder / 'run')
    assert 'no average precision was measured' not in text and 'Curves: ' in text
    assert re.search(r'^bbox +0\.', text, re.MULTILINE)
    longer = {'train_cfg.max_epochs': 2}
    train(config, resume='auto', cfg_options=longer)
    assert logged(folder / 'run').count('Epoch(val) [1]') == 1  # it is not made again


def test_scores_of_another_kind_are_shown():
    assert Detection().table({'voc/mAP': 0.25, 'name': 'x'}) == 'voc/mAP  0.25'
    assert Detection().table({}) == 'no average precision was measured'


REFUSED = {
    'a part of the validation': (['val_cfg = None'], 'val_dataloader and val_evaluator, but no val_cfg'),
    'no training': (['train_cfg = train_dataloader = optim_wrapper = None'], 'there is nothing to train'),
    'a hook without type': (
        ['default_hooks = dict(timer=dict(_delete_=True))'],
        'default_hooks.timer is {}, which has no type',
    ),
    'an unknown hook': (["custom_hooks = [dict(type='NoHook')]"], 'NoHook'),
    'an unknown argument': (['optim_wrapper = dict(optimizer=dict(rate=1))'], "'rate'"),
    'a device that no process has': (
        ["val_evaluator = dict(collect_device='tpu')"],
        "val_evaluator.collect_device is 'tpu': choose from cpu, gpu",
    ),
    'an argument of a hook that takes none': (
        ["custom_hooks = [dict(type='FiniteCheckHook', each=1)]"],
        "custom_hooks.0.each: FiniteCheckHook has no argument 'each': it takes none",
    ),
    'a number as the name of a score': (
        ['default_hooks = dict(checkpoint=dict(save_best=True))'],
        'default_hooks.checkpoint.save_best is the number True, but ',
    ),
    'a level of the log': (["log_level = 'loud'"], 'loud'),
    'a collate function by name': (["train_dataloader = dict(collate_fn='pseudo_collate')"], 'collate_fn'),
    'two loops': (['train_cfg = dict(by_epoch=False)'], 'by type or by by_epoch'),
    'annotations that nobody serves': (
        ["train_dataloader = dict(dataset=dict(data_root='', ann_file='http://127.0.0.1:9/a.json'))"],
        'refused',
    ),
    'a part of an epoch': (['train_cfg = dict(max_epochs=1.5)'], '1.5'),
    'half precision': (['val_cfg = dict(fp16=True)'], 'fp16 needs a GPU'),
    'a window of the log': (
        ["log_processor = dict(custom_cfg=[dict(data_src='loss', method_name='mean', window_size='globall')])"],
        "custom_cfg.0.window_size is 'globall': it takes a number, epoch or global: did you mean 'global'?",
    ),
    'a method of the log': (
        ["log_processor = dict(custom_cfg=[dict(data_src='loss', method_name='average')])"],
        "method_name is 'average': choose from ",
    ),
    'indices that no image has': (
        ['train_dataloader = dict(dataset=dict(indices=[0, 99]))'],
        'indices of the data set are [0, 99], and it has 4 images',
    ),
    'no time through the images': (
        [
            "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=0, "
            'dataset={{_base_.train_dataloader.dataset}}))'
        ],
        'train_dataloader has no image: look at times',
    ),
    'a number of workers as text': (["train_dataloader = dict(num_workers='2')"], "num_workers is the text '2'"),
    'more images than there are': (['train_dataloader = dict(batch_size=9, drop_last=True)'], 'lower'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_settings_that_cannot_work_are_refused_and_leave_nothing(what, folder):
    lines, words = REFUSED[what]
    if what == 'half precision' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(UsageError) as caught:
        train(written(folder, *lines))
    assert words in str(caught.value) and '\n' not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ['data', 'small.py']


def test_a_mistake_that_shows_after_the_first_step_is_an_end_of_the_run(folder):
    """A ``UsageError`` would promise that nothing was written."""
    best = "default_hooks = dict(checkpoint=dict(save_best='coco/AP_of_cats', rule='greater'))"
    config = written(folder, 'val_evaluator = dict(classwise=True)', best)
    with pytest.raises(RunError, match=r'save_best .* is coco/AP_of_cats, .*; the last checkpoint is .*/epoch_1.pth'):
        train(config, work_dir='run')


def test_a_resumed_run_that_is_refused_leaves_the_work_dir_as_it_was(begun, folder):
    shutil.copytree(begun / 'run', folder / 'run')
    content = torch.load(folder / 'run' / 'epoch_1.pth', weights_only=False)
    content['optimizer']['state'][0]['exp_avg'].fill_(torch.nan)
    torch.save(content, folder / 'run' / 'epoch_1.pth')
    before = {path: path.read_bytes() for path in (folder / 'run').rglob('*') if path.is_file()}
    with pytest.raises(UsageError, match='cannot be resumed: exp_avg in its optimizer holds NaN'):
        train(written(folder), work_dir='run', resume='auto', cfg_options={'train_cfg.max_epochs': 2})
    assert {path: path.read_bytes() for path in (folder / 'run').rglob('*') if path.is_file()} == before


def test_a_run_that_is_refused_leaves_what_was_there(folder):
    (folder / 'work_dirs' / 'other').mkdir(parents=True)
    (folder / 'run').mkdir()
    (folder / 'run' / 'mine.txt').touch()
    for options in ({}, dict(work_dir='run')):
        with pytest.raises(UsageError, match='NoHook'):
            train(written(folder, "custom_hooks = [dict(type='NoHook')]"), **options)
    assert [path.name for path in (folder / 'work_dirs').iterdir()] == ['other']
    assert (folder / 'run' / 'mine.txt').exists()


def test_another_launcher_than_that_of_the_config_is_named(folder):
    train(written(folder, "launcher = 'slurm'"), work_dir='run')
    assert 'launcher: none in place of slurm' in logged(folder / 'run')
