"""Clocks: a mark is taken now and turned into a time later, since a GPU must not be stopped to ask for the time."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """What the measuring code asks of a clock."""

    def mark(self) -> Any:
        """Return a mark of this moment in the order of the device's work."""

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Wait until the device has passed the last mark; return the time of each after the first, in seconds."""

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""


class CPUClock:
    """The monotonic clock of the system."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, marks: Sequence[float]) -> list[float]:
        return [mark - marks[0] for mark in marks]

    def synchronize(self) -> None:
        pass


class CUDAClock:
    """Events on the current stream; the device is waited for once, when the times are asked for."""

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


def clock_for(device: torch.device) -> Clock:
    """Return the clock that measures work on a device."""
    return CUDAClock(device) if device.type == 'cuda' else CPUClock()
