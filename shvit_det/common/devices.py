"""Which device a user means by a name."""

import torch

from .errors import UsageError

CHOICES = 'use cpu, cuda or cuda:N'


def find_device(name: str | None = None) -> torch.device:
    """Return the device of a name such as ``'cuda:1'``; without a name a GPU if there is one, else the CPU.

    Raises:
        UsageError: If torch has no such device, this package does not run on it, or it is not in this machine.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ('cuda' if num_gpus else 'cpu'))
    except RuntimeError as error:
        raise UsageError(f'unknown device {name!r}: {CHOICES}') from error
    if device.type not in ('cpu', 'cuda'):
        raise UsageError(f'{name} is not supported: {CHOICES}')
    if device.type == 'cuda' and (device.index or 0) >= num_gpus:
        raise UsageError(f'there is no device {name} here: torch sees {num_gpus} GPUs')
    return device
