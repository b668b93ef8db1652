"""Compiles the kernels for this processor, once for each version of them, of the compiler and of the processor."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from mmengine.logging import print_log

SOURCE = Path(__file__).with_name('kernels.cpp')  # which includes the headers beside it
COMPILERS = ('c++', 'g++', 'clang++')
FLAGS = (
    '-O3',
    '-march=native',
    '-std=c++17',
    '-fopenmp',
    '-ffp-contract=off',  # products are fused with sums where the code says so: rounding decides what a region sees
    '-fvisibility=hidden',
    '-shared',
    '-fPIC',
    '-w',
)
TIMEOUT = 300  # seconds


class CannotBuildError(Exception):
    """Says in one line why there are no kernels here."""


def find_compiler() -> str:
    """Return the C++ compiler that ``CXX`` names, or the first of the usual ones.

    Raises:
        CannotBuildError: If there is none.
    """
    named = os.environ.get('CXX')
    for name in (named,) if named else COMPILERS:
        if found := shutil.which(name):
            return found
    raise CannotBuildError(f'no C++ compiler ({named or ", ".join(COMPILERS)})')


def cache_folder() -> Path:
    """Return where built kernels are kept: ``shvit_det`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'shvit_det'


def sources() -> list[Path]:
    """Return the files that the kernels are compiled from."""
    return sorted(path for path in SOURCE.parent.iterdir() if path.suffix in ('.cpp', '.hpp'))


def build() -> Path:
    """Return the shared library of the kernels, compiled now if it was not before.

    Raises:
        CannotBuildError: If there is no compiler or no AVX-512, or the library cannot be compiled or kept.
    """
    compiler = find_compiler()
    # What the compiler defines tells its version and what the processor can do.
    macros = _output([compiler, '-march=native', '-dM', '-E', '-x', 'c++', os.devnull])
    if '__AVX512F__' not in macros:
        raise CannotBuildError('the processor has no AVX-512')
    text = '\0'.join((compiler, macros, *FLAGS)).encode() + b''.join(path.read_bytes() for path in sources())
    library = cache_folder() / f'kernels-{hashlib.sha256(text).hexdigest()[:16]}.so'
    if library.is_file():
        return library
    print_log(f'compiling kernels for this processor into {library}: this takes some seconds, once', 'current')
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder, library.name)
            _output([compiler, *FLAGS, '-o', str(made), str(SOURCE)])
            made.replace(library)  # whole or not at all, whoever else is building it
    except OSError as error:
        raise CannotBuildError(f'{error.strerror or error}: {library.parent}') from error
    return library


def _output(command: list[str]) -> str:
    """Return what a command prints.

    Raises:
        CannotBuildError: If it fails, with the first line of what it complains of.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        complaint = next((line for line in error.stderr.splitlines() if 'error' in line), f'status {error.returncode}')
        raise CannotBuildError(f'{command[0]}: {complaint}') from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f'{command[0]}: {error}') from error
    return done.stdout
