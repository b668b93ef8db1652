"""From a checkpoint, a file or a URL, to the weights of a model: all of them, or a sentence that says why not."""

from pathlib import Path
from typing import Any, cast

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..common.errors import UsageError
from .fetch import find_checkpoint
from .fitting import Fit, check_values, fit, why_not
from .names import BACKBONE, count_by_part, part_of
from .reading import read_content
from .sources import Weights, recognise


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
        path: A file, or an http(s) URL, which is downloaded once into torch's hub cache.
        map_location: Where the values are put before they are copied into the model.
        strict: False loads what fits by name and shape and logs the rest, at least one tensor.
        new_classes: Leave the tensors of the heads that have another shape in the file, those of another number of
            classes, at their present values. Backbone and neck have to fit all the same.
        sha256: The hash that the file must have, in full or its first digits.

    Raises:
        UsageError: If the file cannot be had, is damaged, wants to run code, holds values that are no weights, or does
            not fit the model; the sentence says which.
    """
    content = read_content(find_checkpoint(path, sha256))
    load_content(model, content, str(path), map_location, strict, new_classes)


def check_checkpoint(model: nn.Module, path: str | Path, new_classes: bool = False, sha256: str | None = None) -> Any:
    """Do all that :func:`load_checkpoint` does except changing the model and logging; return what the file holds.

    Raises:
        UsageError: As there.
    """
    content = read_content(find_checkpoint(path, sha256))
    match(model, content, str(path), True, new_classes)
    return content


def load_content(
    model: nn.Module,
    content: object,
    source: str,
    map_location: str | torch.device = 'cpu',
    strict: bool = True,
    new_classes: bool = False,
) -> None:
    """Load what a file held into a model; ``source`` is its name in sentences. See :func:`load_checkpoint`."""
    result, weights = match(model, content, source, strict, new_classes)
    place = unwrapped(model)
    own_names = place.state_dict()
    state = {name if name in own_names else name.removeprefix(BACKBONE): value for name, value in result.used.items()}
    place.load_state_dict({name: value.to(map_location) for name, value in state.items()}, strict=False)
    print_log(f'{source}: {report(result, weights, strict)}', 'current')


def match(
    model: nn.Module, content: object, source: str, strict: bool = True, new_classes: bool = False
) -> tuple[Fit, Weights]:
    """Return which tensors would be loaded, and from what.

    Raises:
        UsageError: As :func:`load_checkpoint`.
    """
    wanted = wanted_of(unwrapped(model))
    weights = weights_of(content, source)
    result = fit(weights.tensors, wanted)
    refused = Fit(wanted, {}, result.missing, result.reshaped, result.left_over)
    if new_classes:
        refused.reshaped = [name for name in result.reshaped if part_of(name) in ('backbone', 'neck')]
    if strict and not refused.complete:
        raise UsageError(f'{source} belongs to another model: {why_not(refused, weights.tensors)}')
    if not result.used:
        raise UsageError(f'{source} belongs to another model: not one of its tensors fits this one')
    result.used = check_values(result.used, wanted, source)
    return result, weights


def unwrapped(model: nn.Module) -> nn.Module:
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def weights_of(content: object, source: str) -> Weights:
    """Return the weights in what a file holds, under our names.

    Raises:
        UsageError: If there are none; it names the file.
    """
    try:
        return recognise(content)
    except UsageError as error:
        raise UsageError(f'{source} cannot be loaded: {error}') from error


def wanted_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model by our names; those of a backbone alone get ``backbone.`` before them."""
    state = model.state_dict()
    alone = any(name.startswith('patch_embed.') for name in state)
    return {BACKBONE + name: value for name, value in state.items()} if alone else dict(state)


def report(result: Fit, weights: Weights, strict: bool) -> str:
    """Return the line that says what was loaded: ``official classification, 628 of 628 backbone tensors``."""
    used = count_by_part(result.used)
    counts = [f'{used.get(part, 0)} of {count} {part}' for part, count in count_by_part(result.wanted).items()]
    line = f'{weights.form}, {", ".join(counts)} tensors'
    averaged = [name for name in weights.beside if name in ('model_ema', 'state_dict_ema', 'ema_state_dict')]
    if averaged:
        line += f', from {weights.container} and not {averaged[0]}'
    left_out: dict[str, int] = {}
    for part in result.left_out.values():
        left_out[part] = left_out.get(part, 0) + 1
    if left_out:
        line += '; left out: ' + ', '.join(f'{part} ({count})' for part, count in left_out.items())
    if result.reshaped and strict:
        line += '; of another shape and left at their initial values: ' + ', '.join(result.reshaped)
    elif not result.complete:
        line += (
            f'; with strict=False {len(result.missing)} missing in the file, {len(result.reshaped)} of another shape, '
            f'{len(result.left_over)} left over: ' + ', '.join(result.missing + result.reshaped + result.left_over)
        )
    return line
