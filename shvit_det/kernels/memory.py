"""Memory of large maps that is used again.

Memory beyond some size goes back to the system as soon as a tensor is gone, and comes from it page by page the next
time, each zeroed. For the finest maps of a detector that took as long as a sixth to a quarter of the layer that writes
them.
"""

import threading
import weakref
from collections import deque

import torch
from torch import Tensor

LARGE = 1 << 22  # bytes; the C library keeps smaller pieces by itself
MOST = 1 << 29  # bytes that are kept while nobody uses them


class Pool:
    """Pieces of memory that nobody uses at the moment, those given back last at the end."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._returned: deque[Tensor] = deque()  # not yet among the others
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """Return a flat tensor of at least ``size`` bytes whose memory comes back when no tensor has it any more."""
        rounded = round_up(size)
        with self._lock:
            self._sort_in()
            fitting = [index for index, piece in enumerate(self._free) if len(piece) == rounded]
            piece = self._free.pop(fitting[-1]) if fitting else None
        self._settle()
        if piece is None:
            piece = torch.empty(rounded, dtype=torch.uint8, device='cpu')
        lent = piece.numpy()[:]
        weakref.finalize(lent, self._put, piece).atexit = False
        return torch.from_numpy(lent)

    def _put(self, piece: Tensor) -> None:
        self._returned.append(piece)
        self._settle()

    def _settle(self) -> None:
        """Sort in what has come back, but if the lock is held: who holds it does that after letting go.

        The garbage collector may give a piece back at any moment, in the middle of :meth:`take` for instance, where
        waiting for the lock would never end.
        """
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self._lock.release()

    def _sort_in(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        excess = sum(map(len, self._free)) - MOST
        while excess > 0:
            excess -= len(self._free.pop(0))

    def kept(self) -> int:
        return sum(map(len, (*self._free, *self._returned)))


def round_up(size: int) -> int:
    """Return a size not much above the given one, of few, so that maps of about the same size share memory."""
    unit = 1 << max(0, size.bit_length() - 4)
    return -(-size // unit) * unit


POOL = Pool()


def take(size: int) -> Tensor:
    """Return a flat tensor of at least ``size`` bytes, not filled."""
    return torch.empty(size, dtype=torch.uint8, device='cpu') if size < LARGE else POOL.take(size)


def new_map(like: Tensor, *shape: int) -> Tensor:
    """Return maps (B, C, H, W) in NHWC, not filled, of the data type of ``like``."""
    size = like.element_size() * torch.Size(shape).numel()
    if size < LARGE:
        return torch.empty(shape, dtype=like.dtype, device='cpu', memory_format=torch.channels_last)
    flat = POOL.take(size)[:size].view(like.dtype)
    batch, channels, height, width = shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
