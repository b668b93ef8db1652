"""Two symptoms of how mmengine finds packages.

``_base_ = 'shvit_det::...'`` fails an assertion, because mmengine keeps a closed list of its projects; and every
``mmdet::`` base prints warnings about ``pkg_resources``, which mmengine imports and setup.cfg keeps available.
"""

import warnings

from mmengine.config import utils as config_utils


def add_to_mmengine() -> None:
    """Enter ``shvit_det`` in mmengine's list of projects, under its module and its distribution name."""
    config_utils.MODULE2PACKAGE['shvit_det'] = 'shvit_det'


def silence_pkg_resources() -> None:
    """Hide the deprecation of ``pkg_resources``: the user can do nothing about it."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
