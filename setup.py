"""What setup.cfg cannot say: a wheel carries files in ``shvit_det/.mim`` that stand beside the package in a checkout.

mim looks there for configs, tools and the index of models, ``_base_ = 'shvit_det::...'`` for configs, the doctor for
the tested releases.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
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


setup(cmdclass={'build_py': BuildWithConfigs})
