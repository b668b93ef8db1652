"""What ``import shvit_det`` imports and registers, and what works without the libraries that not every user has."""

import subprocess
import sys

import pytest
from paths import ROOT

import shvit_det
from shvit_det import registry

WITHOUT = """
import importlib.util, sys
ABSENT = ('mmdet', 'mmpretrain', 'matplotlib')

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ABSENT:
            raise ModuleNotFoundError(name)

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else find_spec(name, package)
sys.meta_path.insert(0, Absent())
import shvit_det, torch
features = shvit_det.SHViT('s1', out_indices=(0, 1, 2)).eval()(torch.zeros(1, 3, 64, 64))
print([tuple(each.shape) for each in features])
try:
    shvit_det.Predictor
except ModuleNotFoundError as error:
    print('needs', error)
"""
REGISTERED = [
    (attribute, name)
    for attribute, value in vars(registry).items()
    if isinstance(value, registry.Registry)
    for name in value.module_dict
]
LATER = """
import importlib, sys
import shvit_det
assert not {'torch', 'mmengine'} & set(sys.modules)
from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope
assert 'torch' not in sys.modules
shvit_det.SHViTFPN, shvit_det.deploy, shvit_det.load_checkpoint
assert not {'mmdet', 'matplotlib', 'scipy'} & set(sys.modules)
DefaultScope.get_instance('test', scope_name='mmdet')
print(registry.MODELS.build(dict(type='SHViT', arch='s1')).out_strides)
assert registry.MODELS.get('SHViT') is registry.MODELS.get('shvit_det.SHViT') is shvit_det.SHViT
assert registry.OPTIM_WRAPPERS.get('BFloat16OptimWrapper').__name__ == 'BFloat16OptimWrapper'
print(Config.fromstring("_base_ = 'shvit_det::mask_rcnn_shvit_s1_sample.py'", '.py').model.backbone.type)
"""
# A module that imports mmengine, or mmdet, is complete only after what we do to these libraries has been done.
FIRST = ('registry', 'models.rpn', 'compat.mmcv_ops', 'configuration.names_for_mmengine')
AFTER_FIRST = """
import importlib, sys
importlib.import_module(f'shvit_det.{sys.argv[1]}')
from mmdet.models import RetinaNet
from mmengine.config import Config
from mmengine.registry import MODELS
from shvit_det import UsageError, config_file
model = Config.fromfile(config_file('retinanet_shvit_s1_sample')).model
model.backbone.pop('init_cfg', None)
model.neck.in_channels = [1, 2, 3]
try:
    MODELS.build(model)
except UsageError as error:
    print(error)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_backbone_works_without_the_detection_libraries():
    shapes, needs = run(WITHOUT).splitlines()
    assert shapes == '[(1, 128, 4, 4), (1, 224, 2, 2), (1, 320, 1, 1)]'
    assert needs.startswith('needs ')


@pytest.mark.slow
def test_the_import_brings_nothing_in_and_registers_once_mmengine_is_there():
    assert run(LATER).splitlines() == ['(16, 32, 64)', 'SHViT']


@pytest.mark.slow
@pytest.mark.parametrize('module', FIRST)
def test_any_module_may_be_imported_first(module):
    assert 'in_channels' in run(AFTER_FIRST, module)


@pytest.mark.parametrize(('attribute', 'name'), REGISTERED)
def test_a_registered_name_is_a_class_of_its_module(attribute, name):
    """From the root, where configs look without our scope, from ours, and before and after the import."""
    if name == 'SHViTHead':
        pytest.importorskip('mmpretrain')
    ours = getattr(registry, attribute)
    real = getattr(registry.importlib.import_module(ours.get(name).__module__), name)
    assert isinstance(real, type) and not isinstance(real, registry._Unimported)
    for found in (ours.parent.get(name), ours.parent.get(f'shvit_det.{name}')):
        assert found is real or found.real() is real


def test_the_public_names_are_there():
    for name in shvit_det.__all__:
        assert getattr(shvit_det, name) is not None and name in dir(shvit_det)
    with pytest.raises(AttributeError, match='nothing'):
        shvit_det.nothing  # noqa: B018
