"""The configs of this package by name, where mmengine takes the names of its own projects only.

``_base_ = 'shvit_det::NAME.py'`` and ``DetInferencer('shvit_det::NAME')`` both end in errors otherwise: mmengine wants
a folder in the first, and in the second looks among the models of the scope, mmdet, and wants weights for each. What is
ours is answered here, all else left to mmengine.

This module imports nothing of mmengine at its top: :mod:`..on_import` calls it when mmengine has been imported.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .model_zoo import PREFIX, config_file, is_config, weights_url

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.infer import BaseInferencer

SCHEME = 'shvit_det:'


def add_to_configs() -> None:
    """Let configs name ours as their bases. A second call changes nothing."""
    from mmengine.config import Config

    original: Any = Config._get_cfg_path
    if hasattr(original, 'knows_shvit_det'):
        return

    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return config_file(cfg_path), None  # no scope of its own: its bases bring mmdet's or mmpretrain's
        return original(cfg_path, filename)

    get_cfg_path.knows_shvit_det = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)


def add_to_inferencers() -> None:
    """Let inferencers take our configs by name, with their published weights. A second call changes nothing."""
    from mmengine.infer import BaseInferencer

    original: Any = BaseInferencer._load_model_from_metafile
    if hasattr(original, 'knows_shvit_det'):
        return

    @functools.wraps(original)
    def load_model_from_metafile(self: 'BaseInferencer', model: str) -> tuple['Config', str | None]:
        if not model.startswith(PREFIX) and not is_config(model):
            return original(self, model)
        from mmengine.config import Config

        url = weights_url(model)
        return Config.fromfile(config_file(model)), url and f'{SCHEME}{url}'

    load_model_from_metafile.knows_shvit_det = True  # type: ignore[attr-defined]
    BaseInferencer._load_model_from_metafile = load_model_from_metafile


def add_to_checkpoint_loader() -> None:
    """Let everything that loads checkpoints through mmengine take any SHViT checkpoint after ``shvit_det:``."""
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.register_scheme(SCHEME, load_from_shvit_checkpoint, force=True)


def load_from_shvit_checkpoint(filename: str, map_location: object = None) -> dict[str, Any]:
    """Read any SHViT checkpoint, a file or a URL after ``shvit_det:``, for what loads checkpoints through mmengine.

    mmengine would load of the authors' files what fits by name, which is nothing of the backbone, and go on.

    Raises:
        UsageError: If it cannot be had or read; see :func:`.checkpoint.load_checkpoint`.
    """
    from ..checkpoint.fetch import find_checkpoint
    from ..checkpoint.loading import weights_of
    from ..checkpoint.reading import read_content

    path = filename.removeprefix(SCHEME)
    content = read_content(find_checkpoint(path))
    weights = weights_of(content, path)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return {'state_dict': weights.tensors, 'meta': meta or {}}
