"""The data types of our kernels."""

import pytest
import torch

from shvit_det import kernels

BFLOAT16 = kernels.load() is not None and torch.bfloat16 in kernels.load().dtypes

DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16, marks=pytest.mark.skipif(not BFLOAT16, reason='our own kernels compute no bfloat16 here')
    ),
]
