"""The exception that stands for a user's mistake."""


class UsageError(ValueError):
    """A mistake that the user can mend: one sentence that names the value, the choices and the way out.

    The tools print it without a traceback and exit with status 2; Python callers see a ``ValueError``.
    """
