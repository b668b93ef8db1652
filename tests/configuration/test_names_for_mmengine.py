"""Our configs by name, the index of models, and the commands that the package answers to."""

import importlib
import sys

import pytest
import torch
from checkpoint_files import mmdet2, official_detector
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DefaultScope
from paths import ROOT

from shvit_det import UsageError, commands, config_file, on_import
from shvit_det.configuration import model_zoo, names_for_mmengine
from shvit_det.configuration.reading import load_config, name_of

pytestmark = pytest.mark.slow

CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
RELEASE = 'https://github.com/ysj9909/SHViT/releases/download/v1.0'


@pytest.fixture
def scope():
    """mmdet's, and afterwards the one that was before: inferencers leave theirs behind."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def models():
    modelindex = pytest.importorskip('modelindex', reason='modelindex comes with mmpretrain')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.check(silent=False)  # raises nothing but prints; what it found is below
    assert not index.check_errors
    for model in index.models:
        assert not model.check_errors and model.in_collection in {each.name for each in index.collections}
    return {model.name: model for model in index.models}


@pytest.mark.parametrize('name', ['mask_rcnn_shvit_s4_coco', '_base_/sample'])
def test_a_config_has_one_path_under_all_its_names(name):
    path = str(ROOT / 'configs' / f'{name}.py')
    for spelled in (name, f'{name}.py', f'shvit_det::{name}', f'shvit_det::{name}.py'):
        assert config_file(spelled) == path


def test_a_config_that_does_not_exist_is_named_with_the_choices():
    for call in (config_file, load_config, lambda name: Config.fromstring(f'_base_ = {name!r}', '.py')):
        with pytest.raises(UsageError, match=r"no config 'shvit_det::mask_rcnn.py': choose from .*shvit_s4_imagenet"):
            call('shvit_det::mask_rcnn.py')


def test_bases_of_mmdet_are_found_without_its_metafiles(monkeypatch):
    """They are a hundred, read anew for each base."""
    monkeypatch.setattr('mmengine.config.utils.load', None)
    loaded = Config.fromstring("_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'", '.py')
    assert loaded.model.type == 'RetinaNet' and loaded.model._scope_ == 'mmdet'


def test_a_base_that_mmdet_lacks_is_named():
    with pytest.raises(FileNotFoundError, match=r'_base_/none\.py'):
        Config.fromstring("_base_ = 'mmdet::_base_/none.py'", '.py')


@pytest.mark.parametrize('name', ['retinanet_shvit_s2_coco', 'mask_rcnn_shvit_s1_sample', 'shvit_s1_imagenet'])
def test_bases_by_name_are_what_the_files_are(name):
    if name.endswith('_imagenet'):
        pytest.importorskip('mmpretrain')
    named = Config.fromstring(f"_base_ = 'shvit_det::{name}.py'\nseed = 1", '.py')
    assert named.pop('seed') == 1
    assert named.to_dict() == Config.fromfile(ROOT / 'configs' / f'{name}.py').to_dict()


def test_other_bases_are_left_to_mmengine():
    assert Config.fromstring("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'", '.py').train_cfg.max_epochs == 12
    with pytest.raises(AssertionError, match='does not support to load other_package'):
        Config.fromstring("_base_ = 'other_package::a/b.py'", '.py')


def test_the_tools_take_configs_by_name():
    config = load_config('shvit_det::retinanet_shvit_s1_sample', {'train_cfg.max_epochs': 1})
    assert config.train_cfg.max_epochs == 1
    assert config.filename == str(ROOT / 'configs' / 'retinanet_shvit_s1_sample.py')


def test_names_of_configs_make_names_of_folders():
    assert name_of('shvit_det::mask_rcnn_shvit_s1_sample.py') == 'mask_rcnn_shvit_s1_sample'
    assert name_of('mmdet::retinanet/retinanet_r50.py') == 'retinanet_r50'
    assert name_of('here/config.v2.py') == 'config.v2'


def test_installing_again_changes_nothing():
    before = Config._get_cfg_path, BaseInferencer._load_model_from_metafile
    on_import.install()
    assert (Config._get_cfg_path, BaseInferencer._load_model_from_metafile) == before


def test_the_index_lists_every_config_but_the_examples(models):
    assert set(models) == {name for name in CONFIGS if not name.endswith(('_sample', '_nuclei'))}
    for name, model in models.items():
        assert model.config == f'configs/{name}.py'


def test_the_index_claims_only_what_the_paper_and_the_authors_published(models):
    for name, model in models.items():
        described = (ROOT / 'configs' / f'{name}.py').read_text().partition('\n')[0]
        metadata = model.metadata.data
        figures = [value for result in model.results or [] for value in result.metrics.values()]
        assert all(f'{value} ' in described for value in figures), name
        published = 's4' in name or name.endswith('_imagenet')
        assert bool(figures) == bool(model.weights) == published, name
        if published:
            assert metadata['Results From'].startswith('the paper (') and 'not measured' in metadata['Results From']
            assert metadata['Weights From'].startswith("the authors' release")
            kind = name.removesuffix('_imagenet').replace('mask_rcnn', 'maskrcnn').replace('_coco', '_1x_coco')
            assert model.weights == f'{RELEASE}/{kind}.pth' == model_zoo.weights_url(name)
        else:
            assert model_zoo.weights_url(name) is None


def test_an_inferencer_by_name_loads_the_authors_weights(scope, monkeypatch, tmp_path):
    written = official_detector('s1', 'mask_rcnn')
    torch.save(mmdet2(written), tmp_path / 'official.pth')
    monkeypatch.setattr(names_for_mmengine, 'weights_url', lambda name: str(tmp_path / 'official.pth'))
    inferencer = DetInferencer('shvit_det::mask_rcnn_shvit_s1_coco', device='cpu', show_progress=False)
    loaded = inferencer.model.state_dict()
    assert inferencer.model.dataset_meta['classes'] == ('person', 'bicycle')
    for ours, theirs in {
        'backbone.patch_embed.0.c.weight': 'backbone.patch_embed.0.c.weight',
        'backbone.stages.2.blocks.0.mixer.m.qkv.c.weight': 'backbone.blocks3.3.mixer.m.qkv.c.weight',
        'neck.fpn_convs.0.conv.weight': 'neck.fpn_convs.0.conv.weight',
    }.items():
        torch.testing.assert_close(loaded[ours], written[theirs].float(), rtol=0, atol=0)


def test_an_inferencer_by_name_without_published_weights_is_as_by_path(scope):
    with pytest.warns(UserWarning, match='Checkpoint is not loaded'):
        inferencer = DetInferencer('retinanet_shvit_s1_sample', device='cpu', show_progress=False)
    assert inferencer.model.backbone.arch.embed_dims == (128, 224, 320)
    with pytest.raises(ValueError, match='Cannot find model: nothing in mmdet'):
        DetInferencer('nothing', device='cpu')
    assert 'mask_rcnn_shvit_s4_coco' in DetInferencer.list_models('shvit_det')


def test_every_command_is_a_module_and_a_tool():
    modules = {path.stem for path in (ROOT / 'shvit_det' / 'commands').glob('*.py')} - {'__init__', 'cli'}
    assert modules == {name.replace('-', '_') for name in commands.COMMANDS}
    for name in commands.COMMANDS:
        module = name.replace('-', '_')
        assert callable(importlib.import_module(f'shvit_det.commands.{module}').main)
        if name != 'doctor':
            tool = (ROOT / 'tools' / f'{module}.py').read_text()
            assert tool.endswith(f"\nif __name__ == '__main__':\n    run({name!r})\n")
            assert f'python tools/{module}.py' in tool.splitlines()[0]


def test_a_command_is_written_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/tools/benchmark.py', 'a b.py', '--runs', '3'])
    assert commands.command_line() == "python tools/benchmark.py 'a b.py' --runs 3"
    monkeypatch.setattr(sys, 'argv', ['shvit-det benchmark', 'config.py'])
    assert commands.command_line() == 'shvit-det benchmark config.py'
