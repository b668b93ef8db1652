"""How far a run is, and how long it will take.

tqdm would write a log file with carriage returns in one endless line, and rich would write nothing into it.
"""

import time
from collections.abc import Callable
from typing import TextIO

from ..common.durations import duration

LOG_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.1
CLEAR_LINE = '\r\033[K'


class Progress:
    """Shows progress as one line that changes on a terminal, and as a line every ten seconds in a log file.

    ``total`` is None if it is not known, and ``noun`` says in the plural what is counted.
    """

    def __init__(
        self, total: int | None, noun: str, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.noun, self.stream, self.clock = total, noun, stream, clock
        self.done = 0
        self.start = self.shown = clock()
        self.on_terminal = stream.isatty()

    def advance(self) -> None:
        """Count one more."""
        self.done += 1
        if self.clock() - self.shown >= (TERMINAL_INTERVAL_S if self.on_terminal else LOG_INTERVAL_S):
            self.shown = self.clock()
            self._write(f'{CLEAR_LINE}{self.line()}' if self.on_terminal else f'{self.line()}\n')

    def line(self) -> str:
        """Return how many are done, how fast, and the time that the others take at that rate."""
        rate = self.done / max(self.clock() - self.start, 1e-9)
        speed = f'{rate:.1f} a second' if rate >= 1 else f'{1 / rate:.1f} s each'
        if self.total is None or self.total <= self.done:
            return f'{self.done} {self.noun}, {speed}'
        return f'{self.done} of {self.total} {self.noun}, {speed}, {duration((self.total - self.done) / rate)} left'

    def print(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        self._write(f'{text}\n')

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self.on_terminal:
            self._write(CLEAR_LINE)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
