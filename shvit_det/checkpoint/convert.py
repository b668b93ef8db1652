"""From any form of a SHViT checkpoint to ours, timm's or the authors': names change, no bit of a value does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..common.atomic_files import partial_file, publish
from ..common.errors import UsageError
from ..common.output_paths import check_output_file
from .fetch import find_checkpoint, hash_of
from .loading import weights_of
from .names import BACKBONE, count_by_part, ours_to_bare, part_of, timm_to_official
from .reading import read_content

TARGETS = ('ours', 'timm', 'official')
SUFFIXES = ('.safetensors', '.pth', '.bin')
CLASSIFIER_PARTS = ('backbone', 'head', 'distillation head')


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        path: The file that was written.
        form: What the source was.
        count: The number of tensors written.
        left_out: What the source held and the new file does not: parts of the model, and other entries.
    """

    path: Path
    form: str
    count: int
    left_out: tuple[str, ...]


def convert_checkpoint(source: str | Path, target: str | Path, to: str, publish: bool = False) -> Conversion:
    """Write a checkpoint again under other names, as ``.safetensors`` or as torch's ``.pth``, by the suffix.

    ``'ours'`` is what mmdet and mmpretrain load with our classes, ``'official'`` what the authors' code loads, and
    ``'timm'`` the backbone and the classifier for timm, which has no detectors.

    Args:
        source: Any file or URL that :func:`shvit_det.load_checkpoint` takes.
        target: The new file; its folder has to exist.
        to: One of ``'ours'``, ``'timm'``, ``'official'``.
        publish: Keep nothing but the weights and ``meta``, and put the first eight digits of the file's sha256 into
            its name. Otherwise a ``.pth`` in our form or the authors' keeps optimizer, log and arguments as they are.

    Raises:
        UsageError: If the source cannot be read or is no SHViT, or the target cannot be written.
    """
    target = Path(target)
    if to not in TARGETS:
        raise UsageError(f'unknown target {to!r}: choose from {", ".join(TARGETS)}')
    if target.suffix not in SUFFIXES:
        raise UsageError(f'the new file has to end in one of {", ".join(SUFFIXES)}, but got {target}')
    check_output_file(target)

    content = read_content(find_checkpoint(source))
    weights = weights_of(content, str(source))
    if not any(name.startswith('backbone.patch_embed.') for name in weights.tensors):
        raise UsageError(f'{source} holds no SHViT: its first tensor is {next(iter(weights.tensors))!r}')
    new_names = names_for(to, weights.tensors)
    tensors = {new: weights.tensors[name].detach().clone().contiguous() for name, new in new_names.items()}
    others: dict[str, Any] = {}
    if target.suffix != '.safetensors' and to != 'timm':
        others = {key: content[key] for key in weights.beside if key in content and not is_average(key)}
    if publish:
        others = {key: value for key, value in others.items() if key == 'meta'}
    path = write(target, tensors, container_for(to, new_names), others, publish)

    parts = count_by_part(name for name in weights.tensors if name not in new_names)
    left_out = [f'{part} ({count})' for part, count in parts.items()]
    left_out += [key for key in weights.beside if key not in others]
    return Conversion(path, weights.form, len(tensors), tuple(left_out))


def is_average(key: str) -> bool:
    """Tell whether an entry of a file holds averaged weights, whose names would no longer be those beside them."""
    return key.split('.')[0] in ('model_ema', 'state_dict_ema', 'ema_state_dict')


def names_for(to: str, tensors: Iterable[str]) -> dict[str, str]:
    """Return the new name of each of our names that the target form has a place for."""
    if to == 'ours':
        return {name: name for name in tensors}
    if to == 'timm':
        return {name: ours_to_bare(name) for name in tensors if part_of(name) in ('backbone', 'head')}
    prefix = BACKBONE if is_detector(tensors) else ''
    new_names = {}
    for name in tensors:
        inner = name.removeprefix(BACKBONE)
        new_names[name] = ours_to_bare(name) if inner == name else prefix + timm_to_official(inner)
    return new_names


def is_detector(tensors: Iterable[str]) -> bool:
    return any(part_of(name) not in CLASSIFIER_PARTS for name in tensors)


def container_for(to: str, tensors: Iterable[str]) -> str:
    """Return the entry of a ``.pth`` under which the target form keeps its weights; empty for none."""
    if to == 'timm':
        return ''
    return 'state_dict' if to == 'ours' or is_detector(tensors) else 'model'


def write(
    target: Path, tensors: dict[str, Tensor], container: str, others: Mapping[str, Any], hash_in_name: bool
) -> Path:
    """Write a file that is whole as soon as it has its name, and return its path.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        with partial_file(target, unique=True) as part:
            if target.suffix == '.safetensors':
                save_file(tensors, part, metadata={'format': 'pt'})
            else:
                torch.save({container: tensors, **others} if container else tensors, part)
            if hash_in_name:
                target = target.with_name(f'{target.stem}-{hash_of(part)[:8]}{target.suffix}')
            publish(part, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has three names
        raise UsageError(f'cannot write {target}: {str(error).splitlines()[0]}') from error
    return target
