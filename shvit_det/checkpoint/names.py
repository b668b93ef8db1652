"""Names of tensors in the files of others, and ours; pure functions from name to name and from dict to dict.

Ours are those of a whole model in mmdet or mmpretrain: ``backbone.`` and the names of timm's port, ``neck.`` and the
heads as mmdet calls them, ``head.`` for the classifier. mmdet 2.25, which the authors used, and mmdet 3.x name the
tensors of a Mask R-CNN and a RetinaNet alike, so that only the backbone has to be renamed in their detectors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ..common.errors import UsageError

BACKBONE = 'backbone.'
WRAPPERS = ('module.', '_orig_mod.')  # put before every name by DistributedDataParallel or EMA, and by torch.compile
CLASSIFIER_HEADS = {'head_dist.bn.': 'head.distillation_bn.', 'head_dist.l.': 'head.distillation_l.'}

Value = TypeVar('Value')


def without_wrappers(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Take ``module.`` off, as often as every name has it; ``steps`` of an average of weights has none and is kept."""
    unwrapped = dict(weights)
    for wrapper in WRAPPERS:
        while (named := unwrapped.keys() - {'steps'}) and all(name.startswith(wrapper) for name in named):
            unwrapped = {name.removeprefix(wrapper): value for name, value in unwrapped.items()}
    return unwrapped


def official_to_timm(name: str) -> str:
    """Rename ``blocks2.3.conv.m.c.weight`` of the official code to timm's ``stages.1.blocks.0.conv.m.c.weight``.

    In the stages after the first the official modules 0.0, 0.1, 1, 2.0 and 2.1 are the downsampling. Other names are
    returned as they are.
    """
    match = re.fullmatch(r'blocks([123])\.(0|[1-9]\d*)\.(.+)', name, re.ASCII)
    if not match:
        return name
    stage, block, rest = int(match[1]) - 1, int(match[2]), match[3]
    if stage == 0:
        return f'stages.0.blocks.{block}.{rest}'
    if block >= 3:
        return f'stages.{stage}.blocks.{block - 3}.{rest}'
    if block == 1:
        return f'stages.{stage}.downsample.2.{rest}'
    part = re.fullmatch(r'([01])\.(.+)', rest)
    return f'stages.{stage}.downsample.{int(part[1]) + (0 if block == 0 else 3)}.{part[2]}' if part else name


def timm_to_official(name: str) -> str:
    """Undo :func:`official_to_timm`; other names are returned as they are."""
    match = re.fullmatch(r'stages\.([012])\.(blocks|downsample)\.(0|[1-9]\d*)\.(.+)', name, re.ASCII)
    if not match:
        return name
    stage, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
    if kind == 'blocks':
        return f'blocks{stage + 1}.{index if stage == 0 else index + 3}.{rest}'
    modules = ('0.0', '0.1', '1', '2.0', '2.1')
    return f'blocks{stage + 1}.{modules[index]}.{rest}' if stage > 0 and index < len(modules) else name


def features_to_timm(name: str) -> str:
    """Rename ``stages_0.blocks...`` of a timm model made with ``features_only=True`` to ``stages.0.blocks...``."""
    return re.sub(r'^(stages|patch_embed)_(\d+)\.', r'\1.\2.', name)


def bare_to_ours(name: str) -> str:
    """Rename a tensor of a classifier, under timm's names, to that of the whole model: ``backbone.`` or ``head.``."""
    for bare, ours in CLASSIFIER_HEADS.items():
        if name.startswith(bare):
            return ours + name.removeprefix(bare)
    return BACKBONE + name if name.startswith(('patch_embed.', 'stages.')) else name


def ours_to_bare(name: str) -> str:
    """Undo :func:`bare_to_ours`; other names are returned as they are."""
    for bare, ours in CLASSIFIER_HEADS.items():
        if name.startswith(ours):
            return bare + name.removeprefix(ours)
    return name.removeprefix(BACKBONE)


def part_of(name: str) -> str:
    """Return the part of the model that one of our names belongs to: ``backbone``, ``neck``, ``roi_head``..."""
    return 'distillation head' if name.startswith(tuple(CLASSIFIER_HEADS.values())) else name.split('.', 1)[0]


def count_by_part(names: Iterable[str]) -> dict[str, int]:
    """Return how many of our names belong to each part, in order of appearance."""
    counts: dict[str, int] = {}
    for name in names:
        counts[part_of(name)] = counts.get(part_of(name), 0) + 1
    return counts


def renamed(weights: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    """Return ``weights`` under new names, in the same order.

    Raises:
        UsageError: If two tensors would get the same name.
    """
    result: dict[str, Value] = {}
    for name, value in weights.items():
        new_name = rename(name)
        if new_name in result:
            raise UsageError(f'two tensors of the file stand for {new_name!r}, one of them {name!r}')
        result[new_name] = value
    return result
