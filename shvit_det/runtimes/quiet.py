"""Conversion without the noise of the libraries that do it."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and whatever is written to the error stream from the terminal, unless an exception ends it.

    The converters warn of torch's deprecated functions that they call themselves and of releases that they were not
    tried with, and their C++ parts report files of the system that this processor does not have. Results are compared
    with PyTorch's in any case, so none of it tells the user something.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            said.seek(0)
            os.write(before, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
