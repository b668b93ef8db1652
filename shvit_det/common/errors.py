"""The exceptions whose message is one sentence for the user."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A mistake that the user can correct: one sentence that names the value, the choices and the way out.

    The tools print it without a traceback and exit with status 2, which promises that nothing was written; Python
    callers see a ``ValueError``.
    """


class RunError(RuntimeError):
    """A run that cannot go on for a reason in its data or numbers: one sentence that says where to look.

    The tools print it without a traceback and exit with status 1.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def keeping(files: Callable[[], list[str]]) -> Iterator[None]:
    """Turn a ``UsageError`` into a ``RunError`` that names what is kept, if it comes after a file was written.

    Args:
        files: Returns the files that have been written by then.
    """
    try:
        yield
    except UsageError as error:
        if not (kept := files()):
            raise
        raise RunError(f'{error}; written before: {", ".join(kept)}') from error
