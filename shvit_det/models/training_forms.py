"""Whether models that train compute with fused layers: the one switch for it.

The fused forms are those of :class:`.layers.ConvNorm` (a fixed norm folded into the kernel), of
:class:`shvit_det.SHViTFPN` (the neck's finer levels composed) and of ``SHViTRPNHead`` (its convolution composed with
the neck's layers). They compute the same up to rounding, and faster on a CPU, where they were measured. Nobody has
measured them on a GPU, so that the layers are computed one by one there.

The environment variable ``SHVIT_DET_TRAINING_FORMS``, read when the package is imported, decides for all devices:
``1`` computes the fused forms everywhere, ``0`` nowhere.
"""

import os

import torch

SWITCH = 'SHVIT_DET_TRAINING_FORMS'
setting = os.environ.get(SWITCH, '')  # '', '0' or '1'


def uses_fused_forms(device: torch.device) -> bool:
    """Return whether a model whose tensors are on this device computes with fused layers."""
    return setting == '1' or (setting != '0' and device.type in ('cpu', 'meta'))
