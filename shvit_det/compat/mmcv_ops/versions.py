"""What ``mmcv.utils.collect_env`` reports of the compiled ops."""

import torchvision

__all__ = ['get_compiler_version', 'get_compiling_cuda_version']


def get_compiler_version() -> str:
    """Says that nothing was compiled, and what serves instead."""
    return f'none (shvit_det on torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Says the same of CUDA, in the words of mmcv's own build for CPUs."""
    return 'not available'
