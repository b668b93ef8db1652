"""Which tensors of a checkpoint go where in a model, and why they do not: decided before anything is changed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.errors import UsageError
from ..models.arch import ARCHS, Arch
from .names import BACKBONE, count_by_part, part_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Parts that a model need not have, though the file does; whoever loads is told.
OPTIONAL_PARTS = ('distillation head',)


@dataclass
class Fit:
    """How the weights of a file meet the tensors of a model, all by our names.

    Args:
        wanted: Every tensor of the model.
        used: The values to copy, in the dtypes of the model.
        missing: Tensors of the model that the file lacks.
        reshaped: Tensors that have another shape in the file.
        left_over: Tensors of the file that the model lacks and should have.
        left_out: Tensors of the file that the model needs not have, with the part they belong to.
    """

    wanted: Mapping[str, Tensor]
    used: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.reshaped or self.left_over)


def fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Fit:
    """Compare a file's weights with a model's by names and shapes.

    Where the model is a backbone alone, the other parts of the file are left out, and so are the stages above those
    that were built.
    """
    result = Fit(wanted)
    backbone_only = all(name.startswith(BACKBONE) for name in wanted)
    num_stages = len(stages_of(wanted))
    for name, value in weights.items():
        stage = re.match(r'backbone\.stages\.(\d+)\.', name)
        if name in wanted:
            if (shaped := with_shape(value, wanted[name].shape)) is None:
                result.reshaped.append(name)
            else:
                result.used[name] = shaped
        elif part_of(name) in OPTIONAL_PARTS or (backbone_only and part_of(name).endswith(('neck', 'head'))):
            result.left_out[name] = part_of(name)
        elif stage and num_stages and int(stage[1]) >= num_stages:
            result.left_out[name] = f'stage {stage[1]}'
        else:
            result.left_over.append(name)
    result.missing = [name for name in wanted if name not in weights]
    return result


def with_shape(value: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the value if it has the shape, or if it is the matrix of a 1x1 convolution; None otherwise."""
    if value.shape == shape:
        return value
    return value[:, :, None, None] if value.dim() == 2 and shape == (*value.shape, 1, 1) else None


def check_values(values: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the values in the dtypes of the model.

    Raises:
        UsageError: If one cannot be cast without a loss of meaning, or is not finite.
    """
    cast = {}
    for name, value in values.items():
        kinds = FLOATS if wanted[name].is_floating_point() else INTEGERS
        if value.dtype not in kinds:
            raise UsageError(f'{source} cannot be loaded: {name} holds {value.dtype}, wanted is {wanted[name].dtype}')
        cast[name] = value.to(wanted[name].dtype)
        if not torch.isfinite(cast[name]).all():
            raise UsageError(f'{source} cannot be loaded: {name} holds NaN or infinity, the weights are spoilt')
    return cast


def stages_of(tensors: Iterable[str]) -> list[int]:
    """Return the numbers of the stages that a SHViT backbone has among tensors by our names."""
    found = (re.match(r'backbone\.stages\.(\d+)\.blocks\.', name) for name in tensors)
    return sorted({int(match[1]) for match in found if match})


def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return which SHViT the shapes belong to, ``'SHViT-S2'`` or its widths and depths; None if it is none."""
    widths, depths, attn_dims, query_key_dim = [], [], [], None
    for index in stages_of(tensors):
        prefix = f'backbone.stages.{index}.blocks.'
        blocks = {re.match(rf'{re.escape(prefix)}(\d+)\.', name) for name in tensors if name.startswith(prefix)}
        depths.append(len({block[1] for block in blocks if block}))
        width = tensors.get(f'{prefix}0.conv.m.c.weight')
        norm = tensors.get(f'{prefix}0.mixer.m.pre_norm.weight')
        query_key_value = tensors.get(f'{prefix}0.mixer.m.qkv.c.weight')
        if width is None or width.dim() != 4:
            return None
        widths.append(width.shape[0])
        attn_dims.append(norm.shape[0] if norm is not None and norm.dim() else None)
        if norm is not None and norm.dim() and query_key_value is not None and query_key_value.dim():
            query_key_dim = (query_key_value.shape[0] - norm.shape[0]) // 2
    if not widths:
        return None
    for name, arch in ARCHS.items():
        if matches(arch, widths, depths, attn_dims) and query_key_dim in (None, arch.query_key_dim):
            return f'SHViT-{name.upper()}'
    return f'SHViT of embed_dims {widths}, depths {depths}, attn_dims {attn_dims}'


def matches(arch: Arch, widths: list[int], depths: list[int], attn_dims: list[int | None]) -> bool:
    """Tell whether the first stages of an arch have these numbers; None stands for a stage without attention."""
    attending = [
        dim if kind == 'attention' else None for dim, kind in zip(arch.attn_dims, arch.block_kinds, strict=True)
    ]
    count = len(widths)
    return (tuple(widths), tuple(depths), attn_dims) == (
        arch.embed_dims[:count],
        arch.depths[:count],
        attending[:count],
    )


def why_not(result: Fit, weights: Mapping[str, Tensor]) -> str:
    """Return the one sentence, without its beginning, that says why weights do not fit and what would."""
    theirs, ours = describe(weights), describe(result.wanted)
    if theirs and ours and describe(first_stages(weights, len(stages_of(result.wanted)))) != ours:
        variant = theirs.removeprefix('SHViT-').lower()
        way_out = f", or set model.backbone.arch='{variant}'" if variant in ARCHS else ''
        return f'it holds a {theirs}, and this is a {ours}: take the file of that one{way_out}'
    lacking = count_by_part(result.missing)
    if theirs and lacking and not (lacking.keys() & count_by_part(weights).keys() or result.reshaped):
        return (
            f'it holds {", ".join(count_by_part(weights))} and nothing for {", ".join(lacking)}: '
            f'for the backbone alone, name it as model.backbone.init_cfg.checkpoint'
        )
    first = (result.missing + result.reshaped + result.left_over)[0]
    return (
        f'of the {len(result.wanted)} tensors of this one, {len(result.missing)} are missing in the file and '
        f'{len(result.reshaped)} have another shape, and {len(result.left_over)} of the file are left over '
        f'(the first: {first!r})'
    )


def first_stages(tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the tensors without those of the stages from ``count`` on."""
    found = {name: re.match(r'backbone\.stages\.(\d+)\.', name) for name in tensors}
    return {name: tensors[name] for name, match in found.items() if not match or int(match[1]) < count}
