"""Convolutions in C++ for processors with AVX-512, compiled at first use where there is a compiler.

This folder knows tensors and packed weights; which layers use the kernels is decided in ``deployment``. oneDNN, as
torch calls it, stays 10 percent and more below what the processor can do on SHViT's layers, and has no Winograd
convolution. Where these kernels cannot be built, oneDNN is used.
"""

import functools
import logging
import os

from mmengine.logging import print_log

from .building import CannotBuildError, build
from .functions import Kernels

__all__ = ['SWITCH', 'load']
SWITCH = 'SHVIT_DET_NATIVE'  # 0 turns the kernels off


@functools.cache
def load() -> Kernels | None:
    """Return the kernels, compiled now if they were not before; None where that fails, which the log says."""
    if os.environ.get(SWITCH, '1') == '0':
        return None
    try:
        library = build()
    except CannotBuildError as error:
        print_log(f'without kernels of our own, oneDNN is used instead: {error}', 'current', logging.INFO)
        return None
    try:
        return Kernels(library)
    except (OSError, AttributeError) as error:  # another machine's, or damaged
        print_log(f'{library} cannot be loaded, oneDNN is used instead: {error}', 'current', logging.WARNING)
        return None
