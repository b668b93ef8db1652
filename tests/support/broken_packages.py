"""What the doctor's tests share: an environment with nothing in it, and packages that are broken in a known way."""

import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from shvit_det.common.dependencies import PACKAGES
from shvit_det.doctor.probe_process import STEPS, Outcome

ROOT = Path(__file__).parents[2]
TORCH = {'version': '2.11.0', 'threads': 1, 'cuda': '13.0', 'hip': None, 'cache': '/'}
NO_GPU = {'available': False, 'said': '', 'devices': [], 'error': ''}
FACTS = {'torch': TORCH, 'gpu': NO_GPU, 'ops': {'stand_in': True, 'cuda': ''}, 'weights': {'folder': '/', 'files': {}},
         'kernels': {'instruction_set': 'avx2', 'reason': ''}}  # fmt: skip


def healthy(**others: Outcome) -> dict[str, Outcome]:
    """Return what the probe finds where all is well, except in some steps; ``_`` stands for a dot."""
    outcomes = {step: Outcome(facts=FACTS.get(step, {'version': '1'})) for step in STEPS}
    return {**outcomes, **{step.replace('_models', '.models'): outcome for step, outcome in others.items()}}


def distribution(folder: Path, name: str, version: str, *requirements: str, lines: Sequence[str] = ()) -> None:
    """Write what pip leaves of an installed distribution: its metadata."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    required = [f'Requires-Dist: {requirement}' for requirement in requirements]
    text = '\n'.join(['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', *required, *lines])
    (info / 'METADATA').write_text(f'{text}\n')


def write_metadata(folder: Path, leave_out: tuple[str, ...] = (), **versions: str) -> Path:
    """Write the metadata of all packages in the tested releases, except some."""
    folder.mkdir(exist_ok=True)
    for package in PACKAGES:
        name, _, version = package.tested.partition('==')
        if package.module not in leave_out:
            requirements = ['torch (==2.11.0)'] if name == 'torchvision' else []
            distribution(folder, name.partition('<')[0], versions.get(package.module, version or '81.0'), *requirements)
    return folder


def module(folder: Path, name: str, code: str = '') -> None:
    """Write a package of one file."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / '__init__.py').write_text(code)


def overlay(folder: Path, package: Path, **files: str) -> None:
    """Write a package of links to the files of another, except some."""
    (folder / package.name).mkdir(parents=True)
    for entry in package.iterdir():
        if entry.stem not in files and entry.name != '__pycache__':
            (folder / package.name / entry.name).symlink_to(entry)
    for name, code in files.items():
        (folder / package.name / f'{name}.py').write_text(code)


class Environment:
    """A Python with nothing but itself installed."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / 'bin' / 'python'
        self.packages = next((folder / 'lib').glob('python*')) / 'site-packages'

    def doctor(self, *arguments: str, cwd: Path, **variables: str | None) -> subprocess.CompletedProcess[str]:
        """Run the doctor in it; a variable that is None is not set."""
        environment: Mapping[str, str | None] = {**os.environ, 'PYTHONPATH': str(ROOT), **variables}
        return subprocess.run(
            [str(self.python), '-m', 'shvit_det.doctor', *arguments],
            cwd=cwd,
            env={name: value for name, value in environment.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=120,
        )
