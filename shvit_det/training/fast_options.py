"""``--amp`` and ``--fast``: what they change in a config, depending on the hardware."""

import inspect
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from ..common.errors import UsageError
from ..configuration.reading import type_of

FLOAT16 = ('AmpOptimWrapper', 'LossScaleOptimWrapper')
FLOAT16_ARGUMENTS = ('loss_scale', 'dtype', 'use_fsdp')


def native_bfloat16() -> tuple[bool, str]:
    """Return whether the GPU, or else the CPU, has bfloat16 instructions, and the reason for the log.

    Without them bfloat16 is emulated, slower than float32.
    """
    if torch.cuda.is_available():
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return has, f'this {torch.cuda.get_device_name()} {"has" if has else "lacks"} bfloat16'
    # functions private to torch: there is no public way to ask
    for feature, name in (('_is_amx_tile_supported', 'AMX'), ('_is_avx512_bf16_supported', 'AVX512-BF16')):
        if getattr(torch.cpu, feature, bool)():
            return True, f'this CPU has {name}'
    return False, 'this CPU is not known to have AVX512-BF16 or AMX'


def enable_amp(config: Config) -> str:
    """Set mixed precision: bfloat16, or float16 on a GPU that lacks it. Return which and why, for the log.

    An optimizer wrapper of another kind must not be replaced.
    """
    wrapper = config.optim_wrapper
    kind = type_of(wrapper, 'OptimWrapper')
    if kind not in ('OptimWrapper', 'BFloat16OptimWrapper', *FLOAT16):
        raise UsageError(f'--amp works with optim_wrapper.type OptimWrapper, but this config has {kind!r}')
    on_gpu = torch.cuda.is_available()
    if kind in FLOAT16 and on_gpu:
        return 'mixed precision as in the config'
    native, reason = native_bfloat16()
    if on_gpu and not native:
        wrapper.type = 'LossScaleOptimWrapper'
        return f'float16 with scaled losses, since {reason}'
    wrapper.type = 'BFloat16OptimWrapper'
    for name in FLOAT16_ARGUMENTS:
        wrapper.pop(name, None)
    return f'bfloat16 autocast, since {reason}' if native else f'bfloat16 autocast, though slowly: {reason}'


def enable_fast(config: Config) -> str:
    """Set what trains fastest on this hardware, and return what was chosen, for the log.

    That is channels-last and a fused optimizer, which change results by rounding only, and mixed precision where
    bfloat16 is native. Settings that the config makes itself stay.
    """
    native, reason = native_bfloat16()
    if type_of(config.optim_wrapper, 'OptimWrapper') != 'OptimWrapper':
        precision = 'precision as it is set'
    else:
        precision = enable_amp(config) if native else f'float32, since {reason}'
    config.channels_last = True
    chosen = ['channels-last', precision]
    optimizer: Any = config.optim_wrapper.get('optimizer') or {}
    if _can_be_fused(optimizer.get('type')) and not optimizer.keys() & {'fused', 'foreach'}:
        optimizer.fused = True
        chosen.append(f'fused {type_of(optimizer)}')
    if torch.cuda.is_available():
        config.train_dataloader.setdefault('pin_memory', True)
        chosen.append('pinned memory')
    return ', '.join(chosen)


def _can_be_fused(kind: Any) -> bool:
    optimizer = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    return inspect.isclass(optimizer) and 'fused' in inspect.signature(optimizer).parameters
