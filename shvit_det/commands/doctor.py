"""Check the installation and the machine: shvit-det doctor"""

from ..doctor.__main__ import main

__all__ = ['main']
