"""The packages that this one depends on: names, releases that it works with, releases that it was tested with.

Standard library only, since the doctor reads it where nothing else can be imported.
"""

import configparser
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
# Other names under which a package can be installed, the last being OneDL's.
OTHER_NAMES = {
    'opencv-python': ('opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless'),
    'mmengine': ('onedl-mmengine',),
    'mmcv': ('mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('onedl-mmdetection',),
    'mmpretrain': ('onedl-mmpretrain',),
}
MODULES = {'opencv-python': 'cv2', 'pillow': 'PIL', 'setuptools': 'pkg_resources'}  # the part that mmengine imports
OPENCV = 'opencv-python>=4.9'  # not in the metadata: it comes with mmengine, in whichever of its builds


@dataclass(frozen=True)
class Package:
    """A package that has to be there."""

    name: str
    wanted: str  # the range of releases that work, such as '>=2.0.0,<2.2'
    tested: str  # what to install where it is missing, as pip takes it

    @property
    def module(self) -> str:
        return MODULES.get(self.name, self.name)

    @property
    def distributions(self) -> tuple[str, ...]:
        """The names under which it can be installed."""
        return (self.name, *OTHER_NAMES.get(self.name, ()))


def requirements() -> tuple[str, list[str]]:
    """Return the range of Pythons and the requirements with the extra ``lite``, of the checkout or the installation."""
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / 'setup.cfg', encoding='utf-8')
    if setup.get('metadata', 'name', fallback='') == 'shvit_det':
        lines = f'{setup["options"]["install_requires"]}\n{setup["options.extras_require"]["lite"]}'.splitlines()
        return setup['options']['python_requires'], [line for line in lines if line and not line.startswith('#')]
    try:
        distribution = metadata.distribution('shvit_det')
    except metadata.PackageNotFoundError:  # a copy of the files
        return '', []
    entries = (entry.partition(';') for entry in distribution.requires or ())
    required = [line.strip() for line, _, marker in entries if 'extra' not in marker or re.search(r'\blite\b', marker)]
    return distribution.metadata['Requires-Python'] or '', required


def tested_releases() -> dict[str, str]:
    """Return the lines of constraints.txt that are for this Python, by the names of the distributions."""
    files = (CHECKOUT / 'constraints.txt', PACKAGE / '.mim' / 'constraints.txt')
    text = next((file.read_text(encoding='utf-8') for file in files if file.is_file()), '')
    found = {}
    for line in text.splitlines():
        pin, _, marker = line.partition(';')
        bound = re.search(r"(<|>=) '3\.(\d+)'", marker)
        if bound is None or (sys.version_info[1] < int(bound[2])) == (bound[1] == '<'):
            found[split(pin)[0]] = pin.strip()
    return found


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution) or ''
    except metadata.PackageNotFoundError:
        return None


def split(requirement: str) -> tuple[str, str]:
    """Return the name and the range of a requirement, as metadata of any age write it."""
    match = re.match(r'\s*([\w.-]*)\s*\(?([^)]*)', requirement)
    assert match is not None  # it matches anything
    return match[1], match[2].strip()


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what marks pre-releases and builds; nothing where it has none.

    So ``2.7.0a0+nv25.2``, which comes with a vendor's image, counts as 2.7.
    """
    found = re.search(r'\d+(\.\d+)*', version)
    numbers = [int(part) for part in found[0].split('.')] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def fits(version: str, wanted: str) -> bool:
    """Tell whether a version lies in a range such as ``>=2.0.0,<2.2``."""
    for bound in filter(None, wanted.split(',')):
        if not bound.startswith(('>=', '<')):
            raise ValueError(f'a range is made of >= and <, but got {wanted!r}')
        if (release(version) >= release(bound)) != bound.startswith('>='):
            return False
    return True


PYTHON, _REQUIRED = requirements()
_TESTED = tested_releases()
PACKAGES = tuple(
    Package(name.removesuffix('-lite'), wanted, _TESTED.get(name, f'{name}{wanted}'))
    for name, wanted in map(split, [*_REQUIRED, OPENCV])
)
