"""How models are run in a benchmark: the settings of all, and the prefixes that change them for one model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UsageError
from .other_runtimes import RUNTIMES

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune')
DEFAULT_SECONDS = 20.0
DEPLOYED, COMPILED, CHANNELS_LAST, PLAIN = 'deployed', 'compiled', 'channels_last', 'plain'
# What each prefix changes in the settings; a runtime folds, compiles and lays out by itself.
CHANGES: dict[str, dict[str, Any]] = {
    DEPLOYED: dict(deploy=True),
    COMPILED: dict(compile='default'),
    CHANNELS_LAST: dict(channels_last=True),
    PLAIN: dict(plain=True),
    **{name: dict(dtype=dtype) for name, dtype in DTYPES.items()},
    **{name: dict(runtime=name, fold=True, deploy=False, compile=None, channels_last=False) for name in RUNTIMES},
}
BACKBONE_SOURCES = ('timm', 'shvit')
PREFIX = re.compile(r'(\w[\w-]+):(?!:)')  # mmdet::a/config.py has two colons


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a data type without ``torch.``."""
    return str(dtype).removeprefix('torch.')


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark, or of one model in it, with the changes of its prefixes."""

    device: torch.device
    threads: int  # of the CPU's kernels
    shape: tuple[int, int] | None = None  # height and width of the images; None as the first config's test pipeline
    batch: int = 1  # images per run
    dtype: torch.dtype = torch.float32  # detectors run under autocast, backbones alone are converted
    channels_last: bool = False  # weights and images as NHWC
    compile: str | None = None  # a mode of torch.compile
    detections: int | None = None  # per image; None means 100 with random weights, else what the weights find
    train: bool = False  # a training step instead of a prediction
    fold: bool = False  # BatchNorms of the backbone
    deploy: bool = False  # models with a SHViT
    convert: bool = False  # the weights of a deployed detector, instead of autocast
    runtime: str | None = None  # runs a backbone instead of PyTorch
    plain: bool = False  # a SHViT and its neck are computed layer by layer as they are written
    only: str | None = None  # the only part to be measured
    images: str | None = None  # a folder of photographs; None means synthetic images
    protocol: str | None = None  # 'paper'
    runs: int | None = None  # rounds; None fills the seconds
    seconds: float = DEFAULT_SECONDS  # per model
    flush: bool = False  # a GPU's L2 cache is overwritten before each run
    tf32: bool | None = None  # a GPU's products and convolutions of float32; None means torch's own settings

    def __post_init__(self) -> None:
        for name in ('threads', 'batch', 'detections', 'runs'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f'--{name} must be at least 1, but got {value}')
        if self.seconds <= 0:
            raise UsageError(f'--seconds must be above 0, but got {self.seconds:g}')
        if self.shape is not None and min(self.shape) < 32:
            raise UsageError(f'--shape must be at least 32 32, but got {self.shape[0]} {self.shape[1]}')
        for option, is_given in (('--flush-l2', self.flush), ('--tf32', self.tf32 is not None)):
            if is_given and self.device.type != 'cuda':
                raise UsageError(f'{option} is for a GPU, and this runs on the CPU')
        if self.images is not None and self.train:
            raise UsageError('--train draws its own images with objects: leave out --images')
        if self.images is not None and self.shape is not None:
            raise UsageError("--images go through the config's own pipeline, which sets their size: leave out --shape")
        if self.train and self.only is not None:
            raise UsageError('--train times whole steps by part: leave out --only')
        if self.train and (self.fold or self.deploy):
            raise UsageError('--train excludes --fold-bn and --deploy: a folded model is not trained')

    def as_record(self) -> dict[str, Any]:
        """Return the settings as they stand in a record, without the images."""
        same = ('batch', 'channels_last', 'compile', 'threads', 'detections', 'fold', 'deploy', 'protocol', 'tf32')
        return dict(
            {name: getattr(self, name) for name in same},
            mode='train' if self.train else 'predict',
            device=str(self.device),
            dtype=dtype_name(self.dtype),
            only=None if self.only is None else [self.only],
            flush_l2=self.flush,
        )


def paper_conditions(device: torch.device) -> dict[str, Any]:
    """Return the settings with which the paper measured detection backbones (Table 5) on a kind of device."""
    size = dict(batch=32) if device.type == 'cuda' else dict(batch=16, threads=1)
    return dict(shape=(512, 512), fold=True, only='backbone', **size)


def split_prefixes(named: str) -> tuple[list[str], str]:
    """Return the prefixes of a model that the user named, without colons, and the source after them.

    Raises:
        UsageError: If a prefix is unknown, stands twice, or excludes another one or the source.
    """
    prefixes: list[str] = []
    source = named
    while (match := PREFIX.match(source)) and match[1] not in BACKBONE_SOURCES and not Path(source).is_file():
        if match[1] not in CHANGES:
            choices = ', '.join(f'{prefix}:' for prefix in (*CHANGES, *BACKBONE_SOURCES))
            raise UsageError(f'no prefix {match[1]}: as in {named}, choose from {choices}')
        if match[1] in prefixes:
            raise UsageError(f'{named} has the prefix {match[1]}: twice')
        prefixes.append(match[1])
        source = source[match.end() :]
    _check_combination(prefixes, source, named)
    return prefixes, source


def _check_combination(prefixes: Sequence[str], source: str, named: str) -> None:
    for alternatives in (DTYPES, RUNTIMES, (DEPLOYED, PLAIN)):
        several = [prefix for prefix in prefixes if prefix in alternatives]
        if len(several) > 1:
            raise UsageError(f'{named} has both {several[0]}: and {several[1]}:, leave out one')
    if runtime := next((prefix for prefix in prefixes if prefix in RUNTIMES), None):
        if others := [prefix for prefix in prefixes if prefix not in (runtime, *DTYPES)]:
            raise UsageError(f'{named}: {runtime}: compiles and lays out by itself, leave out {others[0]}:')
        if source.partition(':')[0] not in BACKBONE_SOURCES:
            raise UsageError(f'{named}: {runtime}: is for a backbone alone, timm:NAME or shvit:ARCH')


def settings_with(prefixes: Sequence[str], settings: Settings) -> Settings:
    """Return the settings of one model: those of all, with the changes of its prefixes.

    Options for PyTorch (deployed form, compilation, layout) do not apply to a model in another runtime.

    Raises:
        UsageError: If the settings exclude a prefix, or a runtime is not installed.
    """
    changes = {name: value for prefix in prefixes for name, value in CHANGES[prefix].items()}
    if DEPLOYED in prefixes:
        changes['convert'] = 'dtype' in changes
    if COMPILED in prefixes and settings.compile is not None:
        changes['compile'] = settings.compile
    own = replace(settings, **changes)
    if (runtime := own.runtime) is not None:
        dtypes = RUNTIMES[runtime].dtypes
        if own.device.type != 'cpu':
            raise UsageError(f'{runtime}: runs on the CPU, not on {own.device}')
        if own.dtype not in dtypes:
            names = ' or '.join(map(dtype_name, dtypes))
            raise UsageError(f'{runtime}: runs in {names}, not in {dtype_name(own.dtype)}')
        RUNTIMES[runtime].check_installed(runtime)
    return own
