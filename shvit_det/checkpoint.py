"""From a checkpoint, a file or a URL, to the weights of a model: all of them or a sentence that says why not."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import Tensor, nn

from .errors import UsageError
from .registry import WEIGHT_INITIALIZERS, register

StateDict = Mapping[str, Tensor]


def find_checkpoint(source: str) -> Path:
    """Return the local file of a path or URL; a URL is downloaded once, into torch's hub cache.

    Raises:
        UsageError: If there is no such file, or the URL cannot be had.
    """
    if urlparse(source).scheme not in ('http', 'https'):
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError(f'no such checkpoint: {source}')
        return path
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(source).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(path))
        except (URLError, OSError) as error:
            reason = getattr(error, 'reason', error)
            raise UsageError(
                f'cannot download the weights {source} ({reason}): put the file at {path}, name a local one with '
                f'model.backbone.init_cfg.checkpoint=FILE, or train from random weights with --no-pretrained'
            ) from error
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file by name, without running code from it.

    A ``state_dict`` (mmengine) or ``model`` (the official classifiers) inside is unwrapped, ``module.`` is taken off.

    Raises:
        UsageError: If the file is not a checkpoint or holds more than weights and plain data.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official files carry their arguments
            content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        raise UsageError(
            f'{path} cannot be read as a checkpoint ({str(error).strip().splitlines()[0] if str(error) else "empty"})'
        ) from error
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(
            f'{path} holds no state dict: a mapping of names to tensors, alone or under state_dict or model'
        )
    return {name.removeprefix('module.'): value for name, value in content.items()}


def official_to_timm(name: str) -> str:
    """Rename ``blocks2.3.conv.m.c.weight`` of the official code to our (timm's) ``stages.1.blocks.0.conv.m.c.weight``.

    In the stages after the first the official modules 0.0, 0.1, 1, 2.0 and 2.1 are the downsampling. Other names are
    returned as they are.
    """
    match = re.match(r'blocks([123])\.(\d+)\.(.*)', name)
    if not match:
        return name
    stage, block, rest = int(match[1]) - 1, int(match[2]), match[3]
    if stage == 0:
        return f'stages.0.blocks.{block}.{rest}'
    if block >= 3:
        return f'stages.{stage}.blocks.{block - 3}.{rest}'
    if block == 1:
        return f'stages.{stage}.downsample.2.{rest}'
    part, rest = rest.split('.', 1)
    return f'stages.{stage}.downsample.{int(part) + (0 if block == 0 else 3)}.{rest}'


def load_exactly(model: nn.Module, weights: StateDict, source: str) -> None:
    """Copy ``weights`` into ``model`` if they give every tensor of it, and nothing more.

    Raises:
        UsageError: If one is missing, left over or of another shape; the model is unchanged then.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights and not name.endswith('num_batches_tracked')]
    left_over = [name for name in weights if name not in wanted]
    reshaped = [name for name in wanted if name in weights and wanted[name].shape != weights[name].shape]
    if missing or left_over or reshaped:
        first = (missing + left_over + reshaped)[0]
        raise UsageError(
            f'{source} belongs to another model: of the {len(wanted)} tensors of this one, {len(missing)} are missing '
            f'in the file and {len(reshaped)} have another shape, and {len(left_over)} of the file are left over '
            f'(the first: {first})'
        )
    model.load_state_dict(weights, strict=False)  # only counters of batches may be missing, as just checked


def load_backbone(backbone: Any, source: str) -> None:
    """Load pretrained weights, of the official release or under timm's names, into a SHViT backbone.

    The classifier of the file and the stages above those that were built are left out; everything else has to fit.

    Raises:
        UsageError: If the file cannot be had, read, or does not fit.
    """
    weights = {
        official_to_timm(name.removeprefix('backbone.')): value
        for name, value in read_state_dict(find_checkpoint(source)).items()
    }
    num_stages = len(backbone.stages)
    used = {
        name: value
        for name, value in weights.items()
        if not name.startswith('head.') and not re.match(rf'stages\.[{num_stages}-9]', name)
    }
    load_exactly(backbone, used, source)
    print_log(f'{source}: loaded {len(used)} tensors into the backbone, left {len(weights) - len(used)}', 'current')


def load_detector(detector: nn.Module, source: str) -> None:
    """Load a checkpoint that ``tools/train.py`` wrote into the detector of its config.

    Raises:
        UsageError: If the file cannot be had, read, or belongs to another model.
    """
    load_exactly(detector, read_state_dict(find_checkpoint(source)), source)


@register(WEIGHT_INITIALIZERS)
class SHViTPretrained:
    """``init_cfg=dict(type='SHViTPretrained', checkpoint=PATH_OR_URL)`` of the backbone: ImageNet weights, all or none.

    Args:
        checkpoint: A file or URL of the official release or of timm's port.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        load_backbone(module, self.checkpoint)
        if hasattr(module, '_params_init_info'):  # absent where the initialiser is called by itself
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')
