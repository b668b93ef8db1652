"""Threads that read the next pictures and draw the last ones while the model predicts; few, and with few pictures."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.processors import usable_processors

Keep = Callable[[Callable[[], Any]], Any]
MOST_THREADS = 4
MOST_BYTES = 256 << 20  # of predictions that wait for their drawing


def spare_threads() -> int:
    """Return how many threads may work beside the one that predicts: none where there is one processor."""
    return min(MOST_THREADS, usable_processors() - 1)


def read_ahead(
    items: Iterable[tuple[Any, Any]], read: Callable[[Any, int], Any], threads: int
) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Read the files among some pictures before their turn, as many as there are threads.

    What is no file is read when it is asked for: its pixels may change, and of a live stream the latest are wanted.

    Args:
        items: Pairs of a key and a picture; they are asked for by the caller's thread.
        read: Reads a picture with its number; if there are several threads, by several of them at a time.
        threads: How many; 0 reads all when they are asked for.

    Yields:
        Each key, and a function that returns what ``read`` returns for the picture, or raises what it raises.
    """
    pending: deque[tuple[Any, Callable[[], Any]]] = deque()
    pool = ThreadPoolExecutor(max(1, threads), 'reading')
    try:
        for number, (key, image) in enumerate(items):
            most = threads if isinstance(image, str | Path) else 0
            result = pool.submit(read, image, number).result if most else partial(read, image, number)
            pending.append((key, result))
            while len(pending) > most:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a file that hangs keeps no results from being saved


class Finishing:
    """A ``with`` block whose predictions are drawn and kept by threads, while it goes on with the next ones.

    Several are drawn at a time; without threads each is drawn and kept at once. They are kept one after another, in
    their order, and none after one that could not be. The end of the block waits for all, also after an error.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.has_failed = threads, False
        self.drawing, self.keeping = ThreadPoolExecutor(max(1, threads), 'drawing'), ThreadPoolExecutor(1, 'keeping')
        self.pending: deque[tuple[Future[Any], Callable[[Any], None], int]] = deque()

    def add(self, draw: Callable[[], Any], keep: Keep, count: Callable[[Any], None], size: int) -> None:
        """Draw and keep a prediction, as soon as those before it leave room for it.

        Args:
            draw: Returns the drawing.
            keep: Keeps it; it gets a function that returns what ``draw`` returned, or raises what it raised.
            count: Gets what ``keep`` returned, in the thread of the block.
            size: How many bytes the prediction holds.

        Raises:
            Exception: What ``keep`` raised, for this prediction or one before it.
        """
        if not self.threads:
            count(keep(draw))
            return
        while self.pending and (
            len(self.pending) > self.threads or size + sum(held for *_, held in self.pending) > MOST_BYTES
        ):
            self._count_first()
        drawn = self.drawing.submit(draw)
        self.pending.append((self.keeping.submit(self._keep, keep, drawn), count, size))
        while self.pending and self.pending[0][0].done():
            self._count_first()

    def _keep(self, keep: Keep, drawn: Future[Any]) -> Any:
        if self.has_failed:
            return None
        try:
            return keep(drawn.result)
        except BaseException:
            self.has_failed = True
            raise

    def _count_first(self) -> None:
        kept, count, _ = self.pending[0]
        result = kept.result()  # it stays the first one if a signal ends the waiting
        self.pending.popleft()
        count(result)

    def __enter__(self) -> 'Finishing':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while self.pending:
                self._count_first()
        finally:
            for pool in (self.drawing, self.keeping):
                pool.shutdown(cancel_futures=True)
