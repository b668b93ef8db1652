"""How far it is and how long it will take: one line of a terminal, or a line now and then in a log file."""

import time
from collections.abc import Callable
from typing import TextIO

LOG_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.1


class Progress:
    """Counts what is done.

    Args:
        total: How many there are; None if that is not known.
        noun: What they are, in the plural.
        stream: Where it is shown.
        clock: Gives the seconds that have passed.
    """

    def __init__(
        self, total: int | None, noun: str, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.noun, self.stream, self.clock = total, noun, stream, clock
        self.done = 0
        self.start = self.shown = clock()
        self.in_place = stream.isatty()

    def advance(self) -> None:
        """Count one more."""
        self.done += 1
        interval = TERMINAL_INTERVAL_S if self.in_place else LOG_INTERVAL_S
        if self.clock() - self.shown >= interval:
            self.shown = self.clock()
            self.stream.write(f'\r\033[K{self.line()}' if self.in_place else f'{self.line()}\n')
            self.stream.flush()

    def line(self) -> str:
        """Return how many are done, how fast, and the time that the others will take at that rate."""
        elapsed = max(self.clock() - self.start, 1e-9)
        rate = self.done / elapsed
        speed = f'{rate:.1f} a second' if rate >= 1 else f'{1 / rate:.1f} s each'
        if self.total is None or self.total <= self.done:
            return f'{self.done} {self.noun}, {speed}'
        return f'{self.done} of {self.total} {self.noun}, {speed}, {duration((self.total - self.done) / rate)} left'

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        self.stream.write(f'{text}\n')
        self.stream.flush()

    def clear(self) -> None:
        """Take the line off a terminal."""
        if self.in_place:
            self.stream.write('\r\033[K')
            self.stream.flush()


def duration(seconds: float) -> str:
    """Return a duration as it is said: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 90 * 60 else f'{seconds / 3600:.1f} h'
