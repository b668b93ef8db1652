"""Which tensors of a checkpoint go where in a model, and why they do not: decided before anything is changed."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.errors import UsageError
from ..models.arch import ARCHS
from .key_renaming import BACKBONE, count_by_part, part_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Stage = tuple[int, int, int | None, int | None]  # embed_dim, depth, and of attention attn_dim and query_key_dim


@dataclass
class Matching:
    """How the weights of a file match the tensors of a model, all by our keys."""

    model_tensors: Mapping[str, Tensor]  # every tensor of the model
    values: dict[str, Tensor] = field(default_factory=dict)  # the values to copy into the model
    missing: list[str] = field(default_factory=list)  # tensors of the model that the file lacks
    mismatched: list[str] = field(default_factory=list)  # tensors that have another shape in the file
    unexpected: list[str] = field(default_factory=list)  # tensors of the file that the model lacks and should have
    left_out: dict[str, str] = field(default_factory=dict)  # those it need not have, with the part they belong to

    @property
    def complete(self) -> bool:
        return not (self.missing or self.mismatched or self.unexpected)


def match_keys(weights: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor]) -> Matching:
    """Compare the keys and shapes of a file's weights with those of a model.

    A second head of distillation is left out, and so are stages that were not built, and where the model is only a
    backbone the other parts.
    """
    result = Matching(model_tensors, missing=[key for key in model_tensors if key not in weights])
    is_backbone = all(key.startswith(BACKBONE) for key in model_tensors)
    num_stages = 1 + max((_stage_of(key) for key in model_tensors), default=-1)
    for key, value in weights.items():
        if key in model_tensors:
            if (fitted := _with_shape(value, model_tensors[key].shape)) is None:
                result.mismatched.append(key)
            else:
                result.values[key] = fitted
        elif part_of(key) == 'distillation head' or (is_backbone and part_of(key).endswith(('neck', 'head'))):
            result.left_out[key] = part_of(key)
        elif num_stages and _stage_of(key) >= num_stages:
            result.left_out[key] = f'stage {_stage_of(key)}'
        else:
            result.unexpected.append(key)
    return result


def _stage_of(key: str) -> int:
    """Return the number of the stage that a tensor belongs to, -1 for none."""
    match = re.match(r'backbone\.stages\.(\d+)\.', key)
    return int(match[1]) if match else -1


def _with_shape(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the value if it has the shape, or if it is the matrix of a 1x1 convolution; None otherwise."""
    if value.shape == shape:
        return value
    return value[:, :, None, None] if value.dim() == 2 and shape == (*value.shape, 1, 1) else None


def cast_values(values: Mapping[str, Tensor], model_tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the values in the dtypes of the model; refuse one that would lose its meaning or is not finite."""
    cast = {}
    for key, value in values.items():
        dtype = model_tensors[key].dtype
        if value.dtype not in (FLOATS if dtype.is_floating_point else INTEGERS):
            raise UsageError(f'{source} cannot be loaded: {key} holds {value.dtype}, wanted is {dtype}')
        cast[key] = value.to(dtype)
        if not torch.isfinite(cast[key]).all():
            raise UsageError(f'{source} cannot be loaded: {key} holds NaN or infinity, the weights are spoilt')
    return cast


def mismatch_reason(result: Matching, weights: Mapping[str, Tensor]) -> str:
    """Return the sentence, without its beginning, that says why weights do not match a model and which would."""
    built, stored = _stages(result.model_tensors), _stages(weights)
    if built and stored and _describe(stored[: len(built)]) != (ours := _describe(built)):
        theirs = _describe(stored)
        variant = theirs.removeprefix('SHViT-').lower()
        way_out = f", or set model.backbone.arch='{variant}'" if variant in ARCHS else ''
        return f'it holds a {theirs}, and this is a {ours}: take the file of that one{way_out}'
    lacking = count_by_part(result.missing)
    if stored and lacking and not (lacking.keys() & count_by_part(weights).keys() or result.mismatched):
        return (
            f'it holds {", ".join(count_by_part(weights))} and nothing for {", ".join(lacking)}: '
            f'for the backbone alone, name it as model.backbone.init_cfg.checkpoint'
        )
    first = (result.missing + result.mismatched + result.unexpected)[0]
    if not (result.missing or result.unexpected) and all(
        part_of(key) not in ('backbone', 'neck') and weights[key].shape[1:] == result.model_tensors[key].shape[1:]
        for key in result.mismatched
    ):
        lengths = len(weights[first]), len(result.model_tensors[first])
        return (
            f'{len(result.mismatched)} tensors have another length, as with another number of classes: '
            f'{first} has {lengths[0]} in the file and {lengths[1]} in this one; set num_classes as it was there, or '
            'start a new run from all that fits, with --cfg-options load_from=FILE'
        )
    return (
        f'of the {len(result.model_tensors)} tensors of this one, {len(result.missing)} are missing in the file and '
        f'{len(result.mismatched)} have another shape, and {len(result.unexpected)} of the file are left over '
        f'(the first: {first!r})'
    )


def _stages(tensors: Mapping[str, Tensor]) -> list[Stage]:
    """Return the stages of the SHViT whose tensors these are; none if it is not a SHViT."""
    matches = (re.match(r'backbone\.stages\.(\d+)\.blocks\.(\d+)\.', key) for key in tensors)
    depths = Counter(stage for stage, _ in {match.groups() for match in matches if match})
    stages: list[Stage] = []
    while depth := depths[str(len(stages))]:
        prefix = f'backbone.stages.{len(stages)}.blocks.0.'
        width, norm, query_key_value = (
            tensors[prefix + name].shape if prefix + name in tensors else torch.Size()
            for name in ('conv.m.c.weight', 'mixer.m.pre_norm.weight', 'mixer.m.qkv.c.weight')
        )
        if len(width) != 4:
            return []
        attn_dim = norm[0] if norm else None
        query_key_dim = (query_key_value[0] - norm[0]) // 2 if norm and query_key_value else None
        stages.append((width[0], depth, attn_dim, query_key_dim))
    return stages


def _describe(stages: list[Stage]) -> str:
    """Return the name of the variant with these first stages, ``'SHViT-S2'``, or their numbers."""
    for name, arch in ARCHS.items():
        own: list[Stage] = [
            (width, depth, attn_dim, arch.query_key_dim) if kind == 'attention' else (width, depth, None, None)
            for width, depth, attn_dim, kind in zip(
                arch.embed_dims, arch.depths, arch.attn_dims, arch.block_kinds, strict=True
            )
        ]
        if own[: len(stages)] == stages:
            return f'SHViT-{name.upper()}'
    embed_dims, depths, attn_dims, _ = (list(numbers) for numbers in zip(*stages, strict=True))
    return f'SHViT of embed_dims {embed_dims}, depths {depths}, attn_dims {attn_dims}'
