"""From a checkpoint, a file or a URL, to the weights of a model: all of them, or a sentence that says why not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper, update_init_info
from torch import Tensor, nn

from ..common.errors import UsageError
from ..registry import WEIGHT_INITIALIZERS, register
from .fetch import find_checkpoint
from .key_renaming import AVERAGES, BACKBONE, Weights, count_by_part, part_of, renamed_weights
from .matching import Matching, cast_values, match_keys, mismatch_reason
from .reading import read_content

BRANCHES = ('student', 'teacher')  # of mmdet's semi-supervised detectors


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    map_location: str | torch.device = 'cpu',
    strict: bool = True,
    new_classes: bool = False,
    sha256: str | None = None,
) -> None:
    """Load any SHViT checkpoint into a backbone, a detector or a classifier, in full, and log what was loaded.

    The authors' classification and detection files, timm's, mmdet's, mmpretrain's and plain state dicts are told apart
    by their content. Everything is checked before the first tensor is copied, so that a refused file changes nothing.

    Args:
        model: A ``SHViT``, an mmdet detector or an mmpretrain classifier with one; also inside a wrapper such as
            ``DistributedDataParallel``.
        path: A file, an http(s) URL, or ``hf-hub:ORGANISATION/NAME``; what is elsewhere is downloaded once.
        map_location: Where the values are put before they are copied into the model.
        strict: False loads what fits by name and shape and logs the rest, at least one tensor.
        new_classes: Leave the tensors of the heads that have another shape in the file, those of another number of
            classes, at their present values. Backbone and neck have to fit all the same.
        sha256: The hash that the file must have, in full or its first digits.

    Raises:
        UsageError: If the file is not there, cannot be downloaded, is damaged, wants to run code, holds values that are
            no weights, or does not fit the model; the sentence says which.
    """
    content = read_content(find_checkpoint(path, sha256))
    load_content(model, content, str(path), map_location, strict, new_classes)


def check_checkpoint(model: nn.Module, path: str | Path, new_classes: bool = False, sha256: str | None = None) -> Any:
    """Do all that :func:`load_checkpoint` does except changing the model and logging; return what the file holds."""
    content = read_content(find_checkpoint(path, sha256))
    match_content(model, content, str(path), True, new_classes)
    return content


def load_content(
    model: nn.Module,
    content: object,
    source: str,
    map_location: str | torch.device = 'cpu',
    strict: bool = True,
    new_classes: bool = False,
) -> None:
    """Load what a file held into a model; ``source`` is its name in messages. See :func:`load_checkpoint`."""
    result, weights = match_content(model, content, source, strict, new_classes)
    module = without_wrapper(model)
    own_keys = module.state_dict()
    state = {key if key in own_keys else key.removeprefix(BACKBONE): value for key, value in result.values.items()}
    module.load_state_dict({key: value.to(map_location) for key, value in state.items()}, strict=False)
    print_log(f'{source}: {_summary(result, weights, strict)}', 'current')


def match_content(
    model: nn.Module, content: object, source: str, strict: bool = True, new_classes: bool = False
) -> tuple[Matching, Weights]:
    """Return which tensors would be loaded, and from what; it refuses what :func:`load_checkpoint` refuses."""
    own = tensors_of(without_wrapper(model))
    weights = for_branches(weights_of(content, source), own)
    result = match_keys(weights.tensors, own)
    if strict:
        refused = result
        if new_classes:
            mismatched = [key for key in result.mismatched if part_of(without_branch(key)) in ('backbone', 'neck')]
            refused = replace(result, mismatched=mismatched)
        if not refused.complete:
            raise UsageError(f'{source} belongs to another model: {mismatch_reason(refused, weights.tensors)}')
    if not result.values:
        raise UsageError(f'{source} belongs to another model: not one of its tensors fits this one')
    result.values = cast_values(result.values, result.model_tensors, source)
    return result, weights


def for_branches(weights: Weights, own: Iterable[str]) -> Weights:
    """Return weights for the branches that a model has.

    A file of a detector without any is for student and teacher alike, as in mmdet; for a model without any, the teacher
    is taken from a file that has both.
    """
    if not has_branches(own):
        return of_teacher(weights)
    if has_branches(weights.tensors):
        return weights
    both = {f'{branch}.{key}': value for branch in BRANCHES for key, value in weights.tensors.items()}
    return replace(weights, tensors=both)


def of_teacher(weights: Weights) -> Weights:
    """Return the weights of the teacher, which predicts; of a file without branches, all weights."""
    if not has_branches(weights.tensors):
        return weights
    prefix = 'teacher.'
    tensors = {key.removeprefix(prefix): value for key, value in weights.tensors.items() if key.startswith(prefix)}
    return replace(weights, form=f'{weights.form} of a student and its teacher, of which the teacher', tensors=tensors)


def has_branches(keys: Iterable[str]) -> bool:
    """Tell whether the keys are those of a semi-supervised detector."""
    return {part_of(key) for key in keys} == set(BRANCHES)


def without_branch(key: str) -> str:
    return key.partition('.')[2] if key.startswith(BRANCHES) else key


def without_wrapper(model: nn.Module) -> nn.Module:
    """Return the model in what mmengine wraps it for several processes."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def weights_of(content: object, source: str) -> Weights:
    """Return the weights in what a file holds, under our keys; if there are none, ``UsageError`` names the file."""
    try:
        return renamed_weights(content)
    except UsageError as error:
        raise UsageError(f'{source} cannot be loaded: {error}') from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model by our keys, which begin with ``backbone.`` also where it is only a backbone."""
    state = model.state_dict()
    is_backbone = any(key.startswith('patch_embed.') for key in state)
    return {BACKBONE + key: value for key, value in state.items()} if is_backbone else dict(state)


def _summary(result: Matching, weights: Weights, strict: bool) -> str:
    """Return the line that says what was loaded: ``official classification, 628 of 628 backbone tensors``."""
    loaded = count_by_part(result.values)
    counts = [f'{loaded.get(part, 0)} of {count} {part}' for part, count in count_by_part(result.model_tensors).items()]
    line = f'{weights.form}, {", ".join(counts)} tensors'
    averages = [name for name in weights.other_entries if name in AVERAGES]
    if averages:
        line += f', from {weights.container} and not {averages[0]}'
    if left_out := Counter(result.left_out.values()):
        line += '; left out: ' + ', '.join(f'{part} ({count})' for part, count in left_out.items())
    if result.mismatched and strict:
        line += '; of another shape and left at their initial values: ' + ', '.join(result.mismatched)
    elif not result.complete:
        line += f'; with strict=False {len(result.missing)} missing in the file, '
        line += f'{len(result.mismatched)} of another shape, {len(result.unexpected)} left over: '
        line += ', '.join(result.missing + result.mismatched + result.unexpected)
    return line


@register(WEIGHT_INITIALIZERS)
class SHViTPretrained:
    """``init_cfg=dict(type='SHViTPretrained', checkpoint=PATH_OR_URL)`` of the backbone: all its weights or an error.

    Args:
        checkpoint: Any file or URL that :func:`shvit_det.load_checkpoint` takes; of a detector or a classifier, the
            backbone is used.
        sha256: The hash that the file must have, in full or its first digits.
        strict: False loads what fits and logs the rest.
    """

    def __init__(self, checkpoint: str, sha256: str | None = None, strict: bool = True) -> None:
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.strict = strict

    def __call__(self, module: nn.Module) -> None:
        load_checkpoint(module, self.checkpoint, strict=self.strict, sha256=self.sha256)
        if hasattr(module, '_params_init_info'):  # absent where the initialiser is called by itself
            update_init_info(module, init_info=f'loaded from {self.checkpoint}')
