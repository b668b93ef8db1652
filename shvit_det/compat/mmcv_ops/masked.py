"""Convolution at chosen places (guided anchoring): what ``mmcv.ops.masked_conv`` calls."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['masked_col2im_forward', 'masked_im2col_forward']


def masked_im2col_forward(
    features: Tensor,
    mask_rows: Tensor,
    mask_columns: Tensor,
    patches: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patch around each of M places, zero beyond the border, to ``patches``.

    Shapes: features (1, C, H, W), mask_rows and mask_columns (M,), patches
        (C * kernel_h * kernel_w, M).
    """
    padded = functional.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_rows + torch.arange(kernel_h, device=mask_rows.device)[:, None]
    columns = mask_columns + torch.arange(kernel_w, device=mask_columns.device)[:, None]
    patches.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    values: Tensor,
    mask_rows: Tensor,
    mask_columns: Tensor,
    output: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write the values (C, M), which autocast may have made narrower, to their places in ``output`` (1, C, H, W)."""
    output[0][:, mask_rows, mask_columns] = values.to(output.dtype)
