"""Clocks for work on a CPU and on a GPU."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


class CPUClock:
    """The monotonic clock of the system.

    A mark is turned into seconds later, since asking a GPU for the time would stop it.
    """

    def mark(self) -> Any:
        """Return a mark of this moment in the order of the device's work."""
        return time.perf_counter()

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait until the device has passed the last mark; return the seconds of each mark after the first."""
        return [mark - marks[0] for mark in marks]

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""

    def time(self, call: Callable[[], Any]) -> float:
        """Return the seconds that a call takes."""
        start = self.mark()
        call()
        return self.seconds([start, self.mark()])[-1]


class CUDAClock(CPUClock):
    """Events on the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        marks[-1].synchronize()
        return [0.0] + [marks[0].elapsed_time(mark) / 1e3 for mark in marks[1:]]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device) -> CPUClock:
    """Return the clock that measures work on a device."""
    return CUDAClock(device) if device.type == 'cuda' else CPUClock()
