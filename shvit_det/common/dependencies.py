"""The releases below us: what each is called, which serve, which are tested. It imports nothing of them.

setup.cfg has the ranges and constraints.txt the tested releases too; a test holds that they agree.
"""

import re
import sys
from dataclasses import dataclass

PYTHON = '>=3.10,<3.15'
LAST_FOR_PYTHON_310 = sys.version_info < (3, 11)  # several packages have no newer releases for it


@dataclass(frozen=True)
class Package:
    """A package that has to be there.

    Args:
        module: What is imported.
        distributions: Under which names it can be installed; the first is the import name where there is such a one.
        wanted: The releases that serve, for the distributions that setup.cfg gives a range for.
        tested: What to install where there is none, as pip takes it.
        name: What it is called.
        needed_for: Where it is needed, if not everywhere.
    """

    module: str
    distributions: tuple[str, ...]
    wanted: str
    tested: str
    name: str
    needed_for: str = ''


def _package(name: str, wanted: str, tested: str, *others: str, module: str = '', needed_for: str = '') -> Package:
    return Package(module or name, (name, *others), wanted, tested, name, needed_for)


PACKAGES = (
    _package('torch', '>=2.6', 'torch==2.11.0'),
    _package('torchvision', '>=0.21', 'torchvision==0.26.0'),
    _package('numpy', '>=2.0', 'numpy==2.2.6' if LAST_FOR_PYTHON_310 else 'numpy==2.4.6'),
    _package(
        'opencv-python',
        '>=4.9',
        'opencv-python==5.0.0.93',
        'opencv-python-headless',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
        module='cv2',
    ),
    _package('matplotlib', '>=3.8', 'matplotlib==3.10.9' if LAST_FOR_PYTHON_310 else 'matplotlib==3.11.2'),
    _package('pillow', '>=10', 'pillow==12.3.0' if LAST_FOR_PYTHON_310 else 'pillow==13.0.0', module='PIL'),
    _package('safetensors', '>=0.4', 'safetensors==0.8.0'),
    _package('pycocotools', '>=2.0.7', 'pycocotools==2.0.11'),
    _package('setuptools', '>=68,<82', 'setuptools<82', module='pkg_resources'),  # the part of it that mmengine imports
    _package('mmengine', '>=0.10.4,<0.11', 'mmengine==0.10.7', 'onedl-mmengine'),
    _package('mmcv', '>=2.0.0,<2.2', 'mmcv-lite==2.1.0', 'mmcv-lite', 'onedl-mmcv'),
    _package('mmdet', '>=3.3,<3.4', 'mmdet==3.3.0', 'onedl-mmdetection'),
    _package(
        'mmpretrain', '>=1.2,<1.3', 'mmpretrain==1.2.0', 'onedl-mmpretrain', needed_for='only ImageNet classification'
    ),
)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what marks pre-releases and builds; nothing where it has none.

    So the ``2.7.0a0+nv25.2`` of a vendor's image counts as 2.7, which it is.
    """
    found = re.search(r'\d+(\.\d+)*', version)
    numbers = [int(part) for part in found[0].split('.')] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def fits(version: str, wanted: str) -> bool:
    """Tell whether a version lies in a range such as ``>=2.0.0,<2.2``."""
    found = release(version)
    for bound in wanted.split(','):
        if bound.startswith('>='):
            if found < release(bound):
                return False
        elif bound.startswith('<'):
            if found >= release(bound):
                return False
        else:
            raise ValueError(f'a range is made of >= and <, but got {wanted!r}')
    return True
