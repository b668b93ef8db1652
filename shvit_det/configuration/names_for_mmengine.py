"""``_base_ = 'shvit_det::NAME.py'`` and ``DetInferencer('shvit_det::NAME')``: our configs by name in mmengine.

mmengine itself would refuse both: the first needs a folder for it, and the second searches the models of mmdet only and
wants weights for each. Names that are not ours are left to mmengine.

This module imports nothing of mmengine at its top: :mod:`..on_import` calls it when mmengine has been imported.
"""

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_zoo import PREFIX, config_file, is_config, weights_url

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.infer import BaseInferencer

SCHEME = 'shvit_det:'


def add_to_configs() -> None:
    """Make our configs available as bases of other configs.

    Bases in another project's ``_base_`` are found at once: mmengine would first look for them in all metafiles of that
    project, which list only whole configs. That takes a second for each of our configs.
    """
    from mmengine.config import Config
    from mmengine.utils import get_installed_path

    original: Any = Config._get_cfg_path

    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return config_file(cfg_path), None  # no scope of its own: its bases bring mmdet's or mmpretrain's
        project, _, name = cfg_path.partition('::')
        if name.startswith('_base_/') and find_spec(project) is not None:
            base = Path(get_installed_path(project), '.mim', 'configs', name)
            if base.is_file():
                return str(base), project
        return original(cfg_path, filename)

    Config._get_cfg_path = staticmethod(get_cfg_path)


def add_to_inferencers() -> None:
    """Make inferencers accept our configs by name, with their published weights."""
    from mmengine.infer import BaseInferencer

    original: Any = BaseInferencer._load_model_from_metafile

    @functools.wraps(original)
    def load_model_from_metafile(self: 'BaseInferencer', model: str) -> tuple['Config', str | None]:
        if not model.startswith(PREFIX) and not is_config(model):
            return original(self, model)
        from mmengine.config import Config

        url = weights_url(model)
        return Config.fromfile(config_file(model)), url and f'{SCHEME}{url}'

    BaseInferencer._load_model_from_metafile = load_model_from_metafile


def add_to_checkpoint_loader() -> None:
    """Make everything that loads checkpoints through mmengine accept any SHViT checkpoint after ``shvit_det:``."""
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.register_scheme(SCHEME, load_from_shvit_checkpoint, force=True)


def load_from_shvit_checkpoint(filename: str, map_location: object = None) -> dict[str, Any]:
    """Read any SHViT checkpoint, ``shvit_det:`` and a path or URL, for mmengine's own loading.

    mmengine loads only tensors whose names agree, which of the authors' files would be none of the backbone's.
    """
    from ..checkpoint.fetch import find_checkpoint
    from ..checkpoint.loading import weights_of
    from ..checkpoint.reading import read_content
    from ..checkpoint.stored_config import meta_of

    path = filename.removeprefix(SCHEME)
    content = read_content(find_checkpoint(path))
    return {'state_dict': weights_of(content, path).tensors, 'meta': meta_of(content)}
