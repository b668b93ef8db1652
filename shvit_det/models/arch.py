"""The published variants of SHViT as data, and the check of a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..common.errors import UsageError

BLOCK_KINDS = ('conv', 'attention')
NUMBERS = ('embed_dims', 'depths', 'attn_dims')  # fields without a default, of positive integers


@dataclass(frozen=True)
class Arch:
    """The widths and depths that make one variant; every tuple has one entry per stage.

    Args:
        embed_dims: Channels of each stage.
        depths: Blocks in each stage, those of the downsampling before it not counted.
        attn_dims: Channels that attend, out of ``embed_dims``; the others pass the attention unchanged.
        block_kinds: ``'conv'`` for stages without attention, ``'attention'`` for those with.
        query_key_dim: Channels of queries and keys, the same in every stage.

    Raises:
        UsageError: If the tuples differ in length or a number is out of range.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    attn_dims: tuple[int, ...]
    block_kinds: tuple[str, ...] = ('conv', 'attention', 'attention')
    query_key_dim: int = 16

    def __post_init__(self) -> None:
        per_stage = {name: getattr(self, name) for name in (*NUMBERS, 'block_kinds')}
        for name, values in per_stage.items():
            if not isinstance(values, list | tuple):
                raise UsageError(f'{name} of an arch must be a list, an entry a stage, but got {values!r}')
            object.__setattr__(self, name, tuple(values))
        lengths = {name: len(values) for name, values in per_stage.items()}
        if len(set(lengths.values())) != 1 or not self.embed_dims:
            raise UsageError(f'an arch needs one entry per stage in each of its tuples, but got the lengths {lengths}')
        for name in NUMBERS:
            values = getattr(self, name)
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise UsageError(f'{name} of an arch must be positive integers, but got {values}')
        if self.embed_dims[0] % 8:
            raise UsageError(
                f'embed_dims[0] of an arch must be divisible by 8, because the stem starts with an eighth of it, '
                f'but got {self.embed_dims[0]}'
            )
        for kind in self.block_kinds:
            if kind not in BLOCK_KINDS:
                raise UsageError(f'block_kinds of an arch must be of {BLOCK_KINDS}, but got {kind!r}')
        for embed_dim, attn_dim, kind in zip(self.embed_dims, self.attn_dims, self.block_kinds, strict=True):
            if kind == 'attention' and attn_dim > embed_dim:
                raise UsageError(f'attn_dims of an arch must not exceed embed_dims, but got {attn_dim} > {embed_dim}')
        if not isinstance(self.query_key_dim, int) or self.query_key_dim < 1:
            raise UsageError(f'query_key_dim of an arch must be a positive integer, but got {self.query_key_dim}')

    @property
    def num_stages(self) -> int:
        return len(self.embed_dims)


# Table 2 of the paper (arXiv 2401.16456); attending channels as in the published checkpoints.
ARCHS: dict[str, Arch] = {
    's1': Arch(embed_dims=(128, 224, 320), depths=(2, 4, 5), attn_dims=(32, 48, 68)),
    's2': Arch(embed_dims=(128, 308, 448), depths=(2, 4, 5), attn_dims=(32, 66, 96)),
    's3': Arch(embed_dims=(192, 352, 448), depths=(3, 5, 5), attn_dims=(48, 75, 96)),
    's4': Arch(embed_dims=(224, 336, 448), depths=(4, 7, 6), attn_dims=(48, 72, 96)),
}


def make_arch(arch: str | Mapping | Arch) -> Arch:
    """Return the arch that a config names, in upper or lower case, or spells out as a mapping or an ``Arch``."""
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, Mapping):
        known = [field.name for field in fields(Arch)]
        unknown = sorted(set(arch) - set(known))
        missing = sorted(set(NUMBERS) - set(arch))
        if unknown or missing:
            raise UsageError(f'an arch as a dict has the keys {known}, but {unknown} are unknown, {missing} missing')
        return Arch(**arch)
    if not isinstance(arch, str) or arch.lower() not in ARCHS:
        raise UsageError(f'unknown arch {arch!r}: choose one of {", ".join(ARCHS)} or give a dict of widths and depths')
    return ARCHS[arch.lower()]
