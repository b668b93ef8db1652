"""A part by itself: its calls are kept while the whole runs, with what they were given, and then made again."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .inputs import fresh
from .spans import Span, instrumented


class Calls:
    """The calls that make up one part of a run, in their order."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], tuple, dict[str, Any]]] = []

    def add(self, method: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        self._calls.append((method, fresh(args), fresh(kwargs)))

    def prepare(self) -> Callable[[], list[Any]]:
        """Return a function that makes the calls, once; the copies that protect the arguments are made here."""
        calls = [(method, fresh(args), fresh(kwargs)) for method, args, kwargs in self._calls]
        return lambda: [method(*args, **kwargs) for method, args, kwargs in calls]


def capture(detector: nn.Module, spans: Sequence[Span], run: Callable[[], Any]) -> dict[str, Calls]:
    """Run a detector once and return the calls of each part that can run alone.

    Args:
        detector: The detector whose methods the spans name.
        spans: What divides the run; only spans with ``alone`` are kept.
        run: The run, which calls the detector.
    """
    parts: dict[str, Calls] = {}
    active: list[str] = []

    def keep(span: Span, method: Callable[..., Any]) -> Callable[..., Any]:
        def kept(*args: Any, **kwargs: Any) -> Any:
            if not active:  # a call inside another part's call is made again with that one
                parts.setdefault(span.part, Calls()).add(method, args, kwargs)
            active.append(span.part)
            try:
                return method(*args, **kwargs)
            finally:
                active.pop()

        return kept

    with instrumented(detector, [span for span in spans if span.alone], keep):
        run()
    return parts
