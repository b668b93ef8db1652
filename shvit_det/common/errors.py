"""The exceptions whose message is one sentence for the user."""


class UsageError(ValueError):
    """A mistake that the user can correct: one sentence that names the value, the choices and the way out.

    The tools print it without a traceback and exit with status 2; Python callers see a ``ValueError``.
    """


class RunError(RuntimeError):
    """A run that cannot go on for a reason in its data or numbers: one sentence that says where to look.

    The tools print it without a traceback and exit with status 1.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
