"""Convolution at chosen places, for guided anchoring: what ``mmcv.ops.masked_conv2d`` calls."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['masked_col2im_forward', 'masked_im2col_forward']


def masked_im2col_forward(features: Tensor, rows: Tensor, columns: Tensor, patches: Tensor, **sizes: int) -> None:
    """Write the patch around each of M places, zero beyond the border, to ``patches``.

    Shapes:
        features (1, C, H, W), rows and columns (M,), patches (C * kernel_h * kernel_w, M).
    """
    padded = functional.pad(features[0], (sizes['pad_w'],) * 2 + (sizes['pad_h'],) * 2)
    kernel_rows = rows + torch.arange(sizes['kernel_h'], device=rows.device)[:, None]
    kernel_columns = columns + torch.arange(sizes['kernel_w'], device=columns.device)[:, None]
    patches.copy_(padded[:, kernel_rows[:, None], kernel_columns[None]].flatten(0, 2))


def masked_col2im_forward(
    values: Tensor, rows: Tensor, columns: Tensor, output: Tensor, height: int, width: int, channels: int
) -> None:
    """Write the values (C, M), which autocast may have narrowed, to their places in ``output`` (1, C, H, W)."""
    output[0][:, rows, columns] = values.to(output.dtype)
