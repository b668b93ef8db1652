"""What a checkpoint is, seen from its content and not from its name: pure functions from dict to dict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..common.errors import UsageError
from . import names

# Where a file keeps its weights, the first that is there. The averaged weights (EMA) beside them are not taken: the
# authors test `model`, and mmengine's hook has already put the averages into `state_dict` when it writes a file.
CONTAINERS = ('state_dict', 'model', 'model_ema', 'state_dict_ema', 'ema_state_dict')


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint under our names.

    Args:
        form: What the file is: ``'official classification'``, ``'timm features'``...
        tensors: Every tensor of the file that is a weight.
        container: The entry that held the weights; empty where the file is nothing but weights.
        beside: The other entries of the file, none of which was used.
    """

    form: str
    tensors: dict[str, Tensor]
    container: str = ''
    beside: tuple[str, ...] = ()


def recognise(content: object) -> Weights:
    """Return the weights in what a file holds, renamed to ours.

    Raises:
        UsageError: If there is no state dict in it, or two of its tensors stand for the same one.
    """
    container, state_dict, beside = unpack(content)
    unwrapped = names.without_wrappers(state_dict)
    if 'steps' in unwrapped and container == 'ema_state_dict':
        beside += (f'{container}.steps',)  # how often mmengine averaged: no weight of the model
        del unwrapped['steps']
    form, rename = form_of(unwrapped)
    return Weights(form, names.renamed(unwrapped, rename), container, beside)


def unpack(content: object) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Return the entry that holds the state dict, the state dict, and the names of the other entries.

    Raises:
        UsageError: If nothing in the content is a mapping of names to tensors.
    """
    if isinstance(content, Mapping):
        if is_state_dict(content):
            return '', dict(content), ()
        for key in CONTAINERS:
            if key in content and is_state_dict(content[key]):
                return key, dict(content[key]), tuple(str(other) for other in content if other != key)
    raise UsageError('it holds no state dict: a mapping of names to tensors, alone or under ' + ', '.join(CONTAINERS))


def is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def form_of(weights: Mapping[str, object]) -> tuple[str, Callable[[str], str]]:
    """Return what a state dict is, and the function that renames its tensors to ours."""

    def some(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in weights)

    if some('backbone.'):
        detector = some('neck.', 'rpn_head.', 'roi_head.', 'bbox_head.')
        if some('backbone.blocks1.'):
            return 'official detection' if detector else 'official backbone', official_part_to_ours
        if not some('backbone.stages.'):
            return 'state dict', str
        kind = 'mmdet detector' if detector else 'mmpretrain classifier' if some('head.') else 'backbone'
        return kind, str
    if some('blocks1.'):
        return 'official classification' if some('head.') else 'official backbone', official_to_ours
    if some('stages_0.'):
        return 'timm features', features_to_ours
    if some('stages.') and some('patch_embed.'):
        return 'timm classification' if some('head.') else 'backbone', names.bare_to_ours
    return 'state dict', str


def official_to_ours(name: str) -> str:
    return names.bare_to_ours(names.official_to_timm(name))


def features_to_ours(name: str) -> str:
    return names.bare_to_ours(names.features_to_timm(name))


def official_part_to_ours(name: str) -> str:
    """Rename the backbone inside the authors' detectors; the neck and the heads have our names already."""
    inner = name.removeprefix(names.BACKBONE)
    return name if inner == name else names.BACKBONE + names.official_to_timm(inner)
