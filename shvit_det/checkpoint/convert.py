"""Writing a checkpoint in our form, timm's or the authors': the keys change, no bit of a value does."""

from collections.abc import Mapping
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
from .key_renaming import AVERAGES, count_by_part, ours_to_timm, part_of, timm_to_official
from .loading import of_teacher, weights_of
from .reading import read_content

TARGETS = ('ours', 'timm', 'official')
SUFFIXES = ('.safetensors', '.pth', '.bin')
CLASSIFIER_PARTS = ('backbone', 'head', 'distillation head')


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    path: Path  # the file that was written
    form: str  # what the source was
    count: int  # the number of tensors written
    left_out: tuple[str, ...]  # what the source held and the new file does not: parts of the model, and other entries


def convert_checkpoint(source: str | Path, target: str | Path, to: str, publish: bool = False) -> Conversion:
    """Write a checkpoint again under other keys, as ``.safetensors`` or as torch's ``.pth``, by the suffix.

    ``'ours'`` is what mmdet and mmpretrain load with our classes, ``'official'`` what the authors' code loads, and
    ``'timm'`` the backbone and the classifier for timm, which has no detectors.

    Args:
        source: Any file or URL that :func:`shvit_det.load_checkpoint` takes.
        target: The new file; its folder has to exist.
        to: One of ``'ours'``, ``'timm'``, ``'official'``.
        publish: Keep nothing but the weights and ``meta``, and put the first eight digits of the file's sha256 into
            its name. Otherwise a ``.pth`` in our form or the authors' keeps optimizer, log and arguments as they are.

    Raises:
        UsageError: If the source cannot be read or is no SHViT, or the target cannot be written or is the source.
    """
    target = Path(target)
    if to not in TARGETS:
        raise UsageError(f'unknown target {to!r}: choose from {", ".join(TARGETS)}')
    if target.suffix not in SUFFIXES:
        raise UsageError(f'the new file has to end in one of {", ".join(SUFFIXES)}, but got {target}')
    path = find_checkpoint(source)
    check_output_file(target, inputs=[path])

    content = read_content(path)
    weights = of_teacher(weights_of(content, str(source)))
    if not any(name.startswith('backbone.patch_embed.') for name in weights.tensors):
        raise UsageError(f'{source} holds no SHViT: its first tensor is {next(iter(weights.tensors))!r}')
    is_detector = any(part_of(key) not in CLASSIFIER_PARTS for key in weights.tensors)
    new_keys = {key: new for key in weights.tensors if (new := _new_key(key, to, is_detector)) is not None}
    tensors = {new: weights.tensors[key].detach().clone().contiguous() for key, new in new_keys.items()}
    others: dict[str, Any] = {}
    if target.suffix != '.safetensors' and to != 'timm':
        # without averaged weights, whose keys would no longer be those of the weights
        names = [name for name in weights.other_entries if name in content and name not in AVERAGES]
        others = {name: content[name] for name in names if name == 'meta' or not publish}
    container = 'model' if to == 'official' and not is_detector else 'state_dict'
    path = _write(target, tensors, tensors if to == 'timm' else {container: tensors, **others}, publish)

    parts = count_by_part(key for key in weights.tensors if key not in new_keys)
    left_out = [f'{part} ({count})' for part, count in parts.items()]
    left_out += [entry for entry in weights.other_entries if entry not in others]
    return Conversion(path, weights.form, len(tensors), tuple(left_out))


def _new_key(key: str, to: str, is_detector: bool) -> str | None:
    """Return the key that the target form has for one of ours, None if it has no place for the tensor."""
    if to == 'ours':
        return key
    if to == 'timm':
        return ours_to_timm(key) if part_of(key) in ('backbone', 'head') else None
    return timm_to_official(key if is_detector else ours_to_timm(key))


def _write(target: Path, tensors: dict[str, Tensor], pth_content: Mapping[str, Any], hash_in_name: bool) -> Path:
    """Write a file, which gets its name once it is complete, and return its path."""
    try:
        with partial_file(target, unique=True) as part:
            if target.suffix == '.safetensors':
                save_file(tensors, part, metadata={'format': 'pt'})
            else:
                torch.save(pth_content, part)
            if hash_in_name:
                target = target.with_name(f'{target.stem}-{hash_of(part)[:8]}{target.suffix}')
            publish(part, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk has three names
        raise UsageError(f'cannot write {target}: {str(error).splitlines()[0]}') from error
    return target
