"""Lines in the log of a run, which mmengine writes to the terminal and into a file."""

import logging

from mmengine.logging import print_log


def warn(text: str) -> None:
    """Log a warning."""
    print_log(text, 'current', logging.WARNING)
