"""What setup.cfg cannot say: kernels are compiled, and a wheel carries files that a checkout has beside the package.

mim looks for configs, tools and the index of models in ``shvit_det/.mim``, ``_base_ = 'shvit_det::...'`` for configs,
the doctor for the tested releases. Without a C++ compiler the package is installed without kernels.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KERNELS = Path('shvit_det', 'kernels')

# By its path, since the package itself needs torch, which is not there when it is built.
spec = importlib.util.spec_from_file_location('building', ROOT / KERNELS / 'building.py')
building = importlib.util.module_from_spec(spec)
spec.loader.exec_module(building)


def machine_of_kernels() -> str | None:
    """Return the kind of machine that kernels will be compiled for; None if they cannot be compiled."""
    try:
        return building.machine_of_libraries()
    except building.CannotBuildError as error:
        print(f'no kernels are compiled, deployed models will be slower: {error}', file=sys.stderr)
        return None


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if MACHINE:
            folder = ROOT / KERNELS if self.editable_mode else Path(self.build_lib) / KERNELS
            try:
                if not self.editable_mode:
                    building.copy_libraries(folder)
                building.build_libraries(folder)
            except building.CannotBuildError as error:
                print(f'no kernels were compiled, deployed models will be slower: {error}', file=sys.stderr)
        if self.editable_mode:  # the checkout is the package then, and these files are found beside it
            return
        carried = Path(self.build_lib) / 'shvit_det' / '.mim'
        if carried.exists():
            shutil.rmtree(carried)  # of an earlier build
        shutil.copytree(ROOT / 'configs', carried / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
        for name in ('model-index.yml', 'constraints.txt'):
            shutil.copy(ROOT / name, carried)
        (carried / 'tools').mkdir()
        for tool in (ROOT / 'tools').glob('*.py'):
            shutil.copy(tool, carried / 'tools')


class WheelForAnyPython(bdist_wheel):
    """The libraries have a C interface: a wheel with them is for one kind of machine, and for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ('py3', 'none', f'linux_{MACHINE}' if MACHINE else 'any')


class WithKernels(Distribution):
    def has_ext_modules(self) -> bool:
        return MACHINE is not None


MACHINE = machine_of_kernels()
setup(cmdclass={'build_py': BuildPackage, 'bdist_wheel': WheelForAnyPython}, distclass=WithKernels)
