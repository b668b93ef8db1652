"""The keys of anybody's SHViT checkpoint, renamed to ours; whose they are is seen from the keys themselves.

Our keys are those of a complete model in mmdet or mmpretrain: ``backbone.`` and the names of timm's port, ``neck.`` and
the heads as mmdet calls them, ``head.`` for the classifier. The authors' detectors come from mmdet 2.25, which names a
Mask R-CNN and a RetinaNet as mmdet 3.x does, so that only their backbone has to be renamed. All functions here are
pure, from key to key or from dict to dict.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..common.errors import UsageError

BACKBONE = 'backbone.'
WRAPPERS = ('module.', '_orig_mod.')  # before every key, by DistributedDataParallel or EMA, and by torch.compile
# Where a file keeps its weights, the first that is there. The averaged weights (EMA) beside them are not taken: the
# authors test `model`, and mmengine's hook has already put the averages into `state_dict` when it writes a file.
AVERAGES = ('model_ema', 'state_dict_ema', 'ema_state_dict')
CONTAINERS = ('state_dict', 'model', *AVERAGES)
# In the official code, a later stage begins with its downsampling: these modules, in the order of timm's.
DOWNSAMPLING = ('0.0', '0.1', '1', '2.0', '2.1')
FIRST_BLOCKS = (0, 3, 3)  # the numbers of the first block of each stage in the official code
UNKNOWN = 'state dict'  # what is no SHViT, and whose keys stay as they are

Value = TypeVar('Value')


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint under our keys."""

    form: str  # what the file is: 'official classification', 'timm features', ...
    tensors: dict[str, Tensor]  # every tensor of the file that is a weight
    container: str = ''  # the entry that held the weights; empty where the file is nothing but weights
    other_entries: tuple[str, ...] = ()  # the other entries of the file, none of which was used


def renamed_weights(content: object) -> Weights:
    """Return the weights in the content of a checkpoint file, under our keys.

    Raises:
        UsageError: If there is no state dict in it, or two of its tensors would get the same key.
    """
    container, state_dict, other_entries = _unpack(content)
    unwrapped = without_wrappers(state_dict)
    if 'steps' in unwrapped and container == 'ema_state_dict':
        other_entries += (f'{container}.steps',)  # how often mmengine averaged: no weight of the model
        del unwrapped['steps']
    form = _recognise(unwrapped)
    tensors = unwrapped if form == UNKNOWN else with_keys(unwrapped, to_ours)
    return Weights(form, tensors, container, other_entries)


def _unpack(content: object) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return the entry that holds the state dict, the state dict, and the names of the other entries."""
    if isinstance(content, Mapping):
        if _is_state_dict(content):
            return '', dict(content), ()
        for key in CONTAINERS:
            if key in content and _is_state_dict(content[key]):
                return key, dict(content[key]), tuple(str(other) for other in content if other != key)
    raise UsageError('it holds no state dict: a mapping of names to tensors, alone or under ' + ', '.join(CONTAINERS))


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


def without_wrappers(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Take ``module.`` off, as often as every key has it; ``steps`` of averaged weights has none and is kept."""
    unwrapped = dict(weights)
    for wrapper in WRAPPERS:
        while (wrapped := unwrapped.keys() - {'steps'}) and all(key.startswith(wrapper) for key in wrapped):
            unwrapped = {key.removeprefix(wrapper): value for key, value in unwrapped.items()}
    return unwrapped


def _recognise(keys: Iterable[str]) -> str:
    """Return what a state dict with these keys is."""
    keys = list(keys)

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in keys)

    if has('backbone.'):
        is_detector = has('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.')
        if has('backbone.blocks1.'):
            return 'official detection' if is_detector else 'official backbone'
        if not has('backbone.stages.'):
            return UNKNOWN
        return 'mmdet detector' if is_detector else 'mmpretrain classifier' if has('head.') else 'backbone'
    if has('blocks1.'):
        return 'official classification' if has('head.') else 'official backbone'
    if has('stages_0.'):
        return 'timm features'
    if has('stages.') and has('patch_embed.'):
        return 'timm classification' if has('head.') else 'backbone'
    return UNKNOWN


def official_to_timm(key: str) -> str:
    """Rename ``blocks2.3.conv.m.c.weight`` of the official code to timm's ``stages.1.blocks.0.conv.m.c.weight``.

    In a detector ``backbone.`` is before both. Other keys are returned as they are.
    """
    if match := re.fullmatch(r'(backbone\.|)blocks([23])\.(0\.0|0\.1|1|2\.0|2\.1)\.(.+)', key):
        return f'{match[1]}stages.{int(match[2]) - 1}.downsample.{DOWNSAMPLING.index(match[3])}.{match[4]}'
    match = re.fullmatch(r'(backbone\.|)blocks([123])\.(0|[1-9]\d*)\.(.+)', key, re.ASCII)
    if not match:
        return key
    stage = int(match[2]) - 1
    block = int(match[3]) - FIRST_BLOCKS[stage]
    return f'{match[1]}stages.{stage}.blocks.{block}.{match[4]}' if block >= 0 else key


def timm_to_official(key: str) -> str:
    """Undo :func:`official_to_timm`; other keys are returned as they are."""
    if match := re.fullmatch(r'(backbone\.|)stages\.([12])\.downsample\.([0-4])\.(.+)', key):
        return f'{match[1]}blocks{int(match[2]) + 1}.{DOWNSAMPLING[int(match[3])]}.{match[4]}'
    match = re.fullmatch(r'(backbone\.|)stages\.([012])\.blocks\.(0|[1-9]\d*)\.(.+)', key, re.ASCII)
    if not match:
        return key
    stage = int(match[2])
    return f'{match[1]}blocks{stage + 1}.{int(match[3]) + FIRST_BLOCKS[stage]}.{match[4]}'


def to_ours(key: str) -> str:
    """Rename a key of the official code or of timm's; ours are returned as they are."""
    key = re.sub(r'^(stages|patch_embed)_(\d+)\.', r'\1.\2.', key)  # timm writes so with features_only=True
    key = re.sub(r'^head_dist\.', 'head.distillation_', official_to_timm(key))
    return BACKBONE + key if key.startswith(('patch_embed.', 'stages.')) else key


def ours_to_timm(key: str) -> str:
    """Rename one of our keys to that of timm's classifier; other keys are returned as they are."""
    return re.sub(r'^head\.distillation_', 'head_dist.', key).removeprefix(BACKBONE)


def with_keys(weights: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    """Return ``weights`` under new keys, in the same order; two tensors with the same key are refused."""
    result: dict[str, Value] = {}
    for key, value in weights.items():
        new_key = rename(key)
        if new_key in result:
            raise UsageError(f'two tensors of the file would be named {new_key!r}, one of them {key!r}')
        result[new_key] = value
    return result


def part_of(key: str) -> str:
    """Return the part of the model that one of our keys belongs to: ``backbone``, ``neck``, ``roi_head``..."""
    return 'distillation head' if key.startswith('head.distillation_') else key.split('.', 1)[0]


def count_by_part(keys: Iterable[str]) -> dict[str, int]:
    """Return how many of our keys belong to each part, in order of appearance."""
    return dict(Counter(map(part_of, keys)))
