"""Two symptoms of how mmengine finds packages.

mmengine keeps a list of the packages that it knows, and finds the configs and models only of those. And every
``mmdet::`` base prints warnings about ``pkg_resources``, which mmengine imports and setup.cfg keeps available.
"""

import warnings


def add_to_mmengine() -> None:
    """Enter ``shvit_det`` in mmengine's list of packages, under its module and its distribution name."""
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE['shvit_det'] = 'shvit_det'


def silence_pkg_resources() -> None:
    """Hide the deprecation of ``pkg_resources``: users can do nothing about it."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
