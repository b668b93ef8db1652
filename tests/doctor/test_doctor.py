"""The doctor as users run it, where few packages or none work, and what the probe finds in the real installation."""

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
from broken_packages import ROOT, Environment, distribution, healthy, module, overlay, write_metadata
from packaging.requirements import Requirement

from shvit_det.common import dependencies
from shvit_det.common.dependencies import PACKAGES, fits
from shvit_det.doctor import __main__ as doctor
from shvit_det.doctor import packages, use
from shvit_det.doctor.finding import Status
from shvit_det.doctor.probe_process import STEPS, probe

pytestmark = pytest.mark.slow

TORCH_WITHOUT_TENSORS = """
import os
from types import SimpleNamespace

class hub:
    def get_dir():
        return os.path.expanduser('~/.cache/torch/hub')

class ones(int):
    __new__ = lambda cls, *shape: int.__new__(cls)
    __matmul__ = int.__mul__

version = SimpleNamespace(cuda=None, hip=None)
cuda = SimpleNamespace(is_available=lambda: False)
get_num_threads = lambda: 1
"""


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / 'environment')


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A folder that is searched for packages before the installed ones, here and by the probe."""
    folder = tmp_path / 'before'
    folder.mkdir()
    monkeypatch.setenv('PYTHONPATH', f'{folder}{os.pathsep}{ROOT}')
    monkeypatch.syspath_prepend(str(folder))
    return folder


def entries(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    assert 'Traceback' not in result.stderr + result.stdout
    return {entry['name']: entry for entry in json.loads(result.stdout)['findings']}


def test_the_real_installation_is_fine(tmp_path):
    command = [sys.executable, '-m', 'shvit_det.doctor']
    variables = {**os.environ, 'PYTHONPATH': str(ROOT), 'TORCH_HOME': str(tmp_path)}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert result.stderr == '' and not any(line.startswith('FAIL') for line in lines)
    for name in ('mmcv ops', 'mmdet:: bases', 'resuming', 'shvit_det', 'torchvision for torch'):
        assert any(re.match(rf'OK +{name} ', line) for line in lines), (name, result.stdout)


def test_nothing_is_installed(environment, tmp_path):
    result = environment.doctor(cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, '')
    for package in PACKAGES:
        assert re.search(rf'^(FAIL|OK)  +{package.name} +not installed', result.stdout, re.MULTILINE), package.name
    installs = [line for line in result.stdout.splitlines() if ' install ' in line and line.lstrip().startswith('$')]
    assert len(installs) == len(PACKAGES) + 1  # the last is for all at once
    assert 'constraints.txt' in result.stdout.splitlines()[-1]

    found = entries(environment.doctor('--json', cwd=tmp_path))
    assert found['shvit_det']['found'].endswith("No module named 'torch'")
    assert found['mmpretrain']['status'] == 'OK' and found['disk']['status'] != 'FAIL'


def test_a_torch_that_crashes_hides_nothing(environment, tmp_path):
    write_metadata(environment.packages)
    module(environment.packages, 'torch', 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)')
    module(environment.packages, 'torchvision', "raise RuntimeError('operator torchvision::nms does not exist')")
    module(environment.packages, 'numpy', "import sys\nprint('noise')\nprint('{', file=sys.stderr)")
    module(environment.packages, 'mmengine', 'import addict')
    module(environment.packages, 'mmcv', 'import mmengine.missing, torch')
    (environment.packages / 'mmdet').mkdir()
    module(environment.packages, 'cv2', "raise ImportError('libGL.so.1: cannot open shared object file')")
    result = environment.doctor('--json', cwd=tmp_path)
    found = entries(result)
    assert result.returncode == 1
    assert 'SIGSEGV' in found['torch']['found'] and '--force-reinstall --no-deps' in found['torch']['command']
    assert 'torchvision::nms' in found['torchvision']['found']
    assert 'install torch==2.11.0 torchvision' in found['torchvision']['command']
    assert found['numpy']['status'] == 'OK'
    assert found['mmengine']['command'].endswith('pip install mmengine==0.10.7')  # it brings what it misses
    assert 'has its name and no code' in found['mmdet']['found']
    assert 'opencv-python-headless' in found['opencv-python']['command']
    assert found['shvit_det']['status'] == 'FAIL' and found['shvit_det']['command'] == ''


def test_onedl_distributions_are_recognised(environment, tmp_path):
    write_metadata(environment.packages, leave_out=('mmengine', 'mmcv', 'mmdet', 'mmpretrain'))
    for name, version in (('mmengine', '1.0'), ('mmcv', '2.4.1'), ('mmdetection', '4.0')):
        distribution(environment.packages, f'onedl-{name}', version)
    for name in ('mmengine', 'mmcv', 'mmdet'):
        module(environment.packages, name)
    found = entries(environment.doctor('--json', cwd=tmp_path))
    assert (found['mmcv']['status'], found['mmcv']['found']) == ('OK', 'onedl-mmcv 2.4.1 (tested: 2.1.0)')
    assert found['mmdet']['found'].startswith('onedl-mmdetection 4.0')
    assert found['OpenMMLab or OneDL']['found'] == "OneDL's forks"
    assert 'onedl-mmpretrain' in found['mmpretrain']['command']


def test_without_a_home(environment, tmp_path):
    module(environment.packages, 'torch', TORCH_WITHOUT_TENSORS)
    write_metadata(environment.packages)
    found = entries(environment.doctor('--json', cwd=tmp_path, HOME=None))
    assert found['torch']['status'] == 'OK' and found['cache']['found'] != 'not known without torch'


def test_help_needs_nothing(environment, tmp_path):
    result = environment.doctor('--help', cwd=tmp_path)
    assert result.returncode == 0 and '--json' in result.stdout


def test_a_python_that_cannot_be_started_again(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.executable', str(tmp_path / 'python'))
    outcomes = probe()
    assert set(outcomes) == set(STEPS)
    (finding,) = packages.check_package(packages.BY_NAME['numpy'], outcomes)
    assert finding.status is Status.FAIL and 'cannot be started' in finding.found and not finding.command


def test_a_step_that_hangs_ends(before):
    module(before, 'matplotlib', 'import time\ntime.sleep(60)')
    assert probe(['matplotlib'], timeout_s=1)['matplotlib'].error == 'it did not end in 1 s'


def test_setuptools_without_pkg_resources(before):
    distribution(before, 'setuptools', '82.0.0')
    module(
        before, 'pkg_resources', "raise ModuleNotFoundError(\"No module named 'pkg_resources'\", name='pkg_resources')"
    )
    outcomes = healthy(**probe(['pkg_resources', 'bases']))
    assert 'pkg_resources' in outcomes['bases'].error  # what users see of it
    found = dict(doctor.findings(outcomes))
    assert found['setuptools'].status is Status.FAIL and "'setuptools<82'" in found['setuptools'].command
    assert found['mmdet:: bases'].status is Status.FAIL and found['mmdet:: bases'].command == ''


def test_a_new_transformers_and_compiled_ops_of_another_torch(before):
    pytest.importorskip('mmpretrain')
    distribution(before, 'transformers', '5.0.0')
    module(before, 'transformers')
    overlay(before, Path(mmcv.__file__).parent, _ext="raise ImportError('undefined symbol: _ZNK3c106Tensor')")
    outcomes = {**healthy(), **probe(['shvit_det', 'ops', 'mmpretrain.models'])}

    (clash,) = packages.check_transformers(outcomes)
    assert clash.status is Status.FAIL and '5.0.0' in clash.found and 'detectors do not need it' in clash.found
    assert clash.command.endswith('pip uninstall -y transformers')

    (ops,) = use.check_ops(outcomes)
    assert ops.status is Status.WARN and 'undefined symbol' in ops.found
    assert ops.command.endswith('pip install mmcv-lite==2.1.0')


def test_mmcv_that_mmdet_refuses(before):
    version = "__version__ = '2.2.0'\nversion_info = (2, 2, 0)\n__all__ = ['__version__', 'version_info']"
    overlay(before, Path(mmcv.__file__).parent, version=version)
    distribution(before, 'mmcv-lite', '2.2.0')
    outcomes = healthy(**probe(['mmdet']))
    assert 'MMCV==2.2.0 is used but incompatible' in outcomes['mmdet'].error
    (mmcv_finding,) = packages.check_package(packages.BY_NAME['mmcv'], outcomes)
    assert mmcv_finding.status is Status.FAIL and mmcv_finding.found == 'mmcv-lite 2.2.0, wanted >=2.0.0,<2.2'
    assert mmcv_finding.command.endswith('pip install mmcv-lite==2.1.0')


def test_the_tested_releases_are_in_the_ranges_and_every_variant_is_known():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    options, extras = setup['options'], setup['options.extras_require']
    lines = '\n'.join([options['install_requires'], *(extras[name] for name in ('lite', 'full', 'onedl'))]).splitlines()
    required = {line for line in lines if line and not line.startswith('#')}
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith('#')]
    constraints = {f'{pin.name}{pin.specifier}' for pin in pins if pin.marker is None or pin.marker.evaluate()}
    ours = set()
    for package in PACKAGES:
        assert package.tested in constraints and package.wanted
        assert fits(package.tested.partition('==')[2] or '81.0', package.wanted)
        for name in package.distributions:
            ours.add(name if name.startswith('onedl-') else f'{name}{package.wanted}')
    assert required <= ours


def test_an_installation_says_the_same_as_the_checkout(tmp_path, monkeypatch):
    python, required = dependencies.requirements()
    lines = [f'Requires-Dist: {line}' for line in required[:8]]
    lines += [f'Requires-Dist: {line}; extra == "lite"' for line in required[8:]]
    lines += [f'Requires-Python: {python}', 'Requires-Dist: mmcv<2.2,>=2.0.0; extra == "full"']
    distribution(tmp_path, 'shvit_det', '1.0', lines=lines)
    monkeypatch.setattr(dependencies, 'CHECKOUT', tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert dependencies.requirements() == (python, required)
    monkeypatch.setattr('sys.path', [])
    assert dependencies.requirements() == ('', [])  # a copy of the files: no range is known, and none is claimed


def test_the_probe_knows_every_step():
    assert len(set(STEPS)) == len(STEPS) and {package.module for package in PACKAGES} <= set(STEPS)
