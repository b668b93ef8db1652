"""The packages of other runtimes: are they installed, and what they print while they convert a network."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..common.errors import UsageError


def require(package: str, purpose: str, extra: str = 'runtimes', where: str = '') -> Any:
    """Import a package that belongs to an extra and return it.

    Raises:
        UsageError: If it is not installed. The sentence names ``purpose``, the command to install it, and ``where``.
    """
    name = package.partition('.')[0]
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition('.')[0] != name:
            raise
        raise UsageError(
            f"{purpose}: needs {name}, which is not installed: pip install 'shvit_det[{extra}]'{where}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and the error stream from the terminal; after an exception the error stream is shown.

    Converters warn of deprecated functions of torch that they call themselves and of releases that they were not tried
    with, and their C++ code reports missing system files. The result is compared with PyTorch's in any case, so that a
    user learns nothing from it.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as printed, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            printed.seek(0)
            os.write(terminal, printed.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
