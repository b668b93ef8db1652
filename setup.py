"""What setup.cfg cannot say: a wheel carries configs, tools and the index of models in ``shvit_det/.mim``, for mim."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """The modules, and beside them what ``mim train`` and ``_base_ = 'shvit_det::...'`` look for."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout is the package then, and its configs are found beside it
            return
        carried = Path(self.build_lib) / 'shvit_det' / '.mim'
        if carried.exists():
            shutil.rmtree(carried)  # of an earlier build
        shutil.copytree(ROOT / 'configs', carried / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', carried)
        (carried / 'tools').mkdir()
        for tool in sorted((ROOT / 'tools').glob('*.py')):
            if (ROOT / 'shvit_det' / 'commands' / tool.name).is_file():  # the others are for work on the package
                shutil.copy(tool, carried / 'tools')


setup(cmdclass={'build_py': BuildWithConfigs})
