"""``_base_ = 'shvit_det::NAME.py'`` and ``DetInferencer('shvit_det::NAME')``: our configs by name in mmengine.

mmengine itself would refuse both: the first needs a folder for it, and the second searches the models of mmdet only and
wants weights for each. Names that are not ours are left to mmengine.
"""

import functools
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.runner.checkpoint import CheckpointLoader

from ..checkpoint.fetch import find_checkpoint
from ..checkpoint.loading import weights_of
from ..checkpoint.reading import read_content
from .model_zoo import PREFIX, config_file, is_config, weights_url

SCHEME = 'shvit_det:'


def install() -> None:
    """Teach mmengine's configs, inferencers and checkpoints our names; a second call changes nothing."""
    if hasattr(Config._get_cfg_path, 'knows_shvit_det'):
        return
    Config._get_cfg_path = staticmethod(_bases_of(Config._get_cfg_path))
    BaseInferencer._load_model_from_metafile = _models_of(BaseInferencer._load_model_from_metafile)
    CheckpointLoader.register_scheme(SCHEME, load_from_shvit_checkpoint)


def _bases_of(original: Any) -> Any:
    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return config_file(cfg_path), None  # no scope of its own: its bases bring mmdet's or mmpretrain's
        found: tuple[str, str | None] = original(cfg_path, filename)
        return found

    get_cfg_path.knows_shvit_det = True  # type: ignore[attr-defined]
    return get_cfg_path


def _models_of(original: Any) -> Any:
    @functools.wraps(original)
    def load_model_from_metafile(self: BaseInferencer, model: str) -> tuple[Config, str | None]:
        if not model.startswith(PREFIX) and not is_config(model):
            found: tuple[Config, str | None] = original(self, model)
            return found
        url = weights_url(model)
        return Config.fromfile(config_file(model)), url and f'{SCHEME}{url}'

    return load_model_from_metafile


def load_from_shvit_checkpoint(filename: str, map_location: object = None) -> dict[str, Any]:
    """Read any SHViT checkpoint, ``shvit_det:`` and a path or URL, for mmengine's own loading.

    mmengine loads only tensors whose names agree, which of the authors' files would be none of the backbone's.

    Raises:
        UsageError: If it cannot be fetched or read; see :func:`.checkpoint.load_checkpoint`.
    """
    path = filename.removeprefix(SCHEME)
    content = read_content(find_checkpoint(path))
    weights = weights_of(content, path)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return {'state_dict': weights.tensors, 'meta': meta or {}}
