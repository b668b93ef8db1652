"""Layers in C++ for CPUs: AVX2 and AVX-512 on x86-64, NEON on 64-bit Arm. Compiled when the package is installed.

This folder knows tensors and packed weights; which layers use the kernels is decided in ``deployment``. oneDNN, as
torch calls it, stays 10 percent and more below what the processor can do on SHViT's layers, and has no Winograd
convolution. Where there are no kernels for a processor, oneDNN is used.
"""

from .loading import SWITCH, load

__all__ = ['SWITCH', 'load']
