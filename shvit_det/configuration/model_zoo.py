"""The configs of this package, in a checkout and in an installed wheel, and their published weights."""

import os
from pathlib import Path

from ..common.errors import UsageError

PREFIX = 'shvit_det::'
PACKAGE = Path(__file__).parents[1]
CARRIED = PACKAGE / '.mim'  # where a wheel has configs/, tools/ and model-index.yml, as mim wants it
FOLDER = (CARRIED if CARRIED.is_dir() else PACKAGE.parent) / 'configs'


def config_names() -> list[str]:
    """Return the names of all configs, sorted: ``'mask_rcnn_shvit_s1_coco'`` ..."""
    return sorted(path.stem for path in FOLDER.glob('*.py'))


def is_config(name: str) -> bool:
    """Tell whether a config or a base of ours has this name, with or without ``shvit_det::`` and ``.py``."""
    return os.path.isfile(path_of(name))  # noqa: PTH113  (Path raises for a name that is too long)


def config_file(name: str) -> str:
    """Return the path of a config of this package.

    Args:
        name: ``'mask_rcnn_shvit_s4_coco'``, with or without ``shvit_det::`` and ``.py``.

    Raises:
        UsageError: If there is no such config.
    """
    if not is_config(name):
        raise UsageError(f'shvit_det has no config {name!r}: choose from {", ".join(config_names())}')
    return str(path_of(name))


def weights_url(name: str) -> str | None:
    """Return the URL of the published weights of a config, from the metafile, or None if there are none."""
    from mmengine.fileio import load  # here, because mmengine's import ends with an import of this module

    stem = path_of(name).stem
    models = load(FOLDER / 'metafile.yml')['Models']
    return next((model.get('Weights') for model in models if model['Name'] == stem), None)


def path_of(name: str) -> Path:
    return FOLDER / f'{name.removeprefix(PREFIX).removesuffix(".py")}.py'
