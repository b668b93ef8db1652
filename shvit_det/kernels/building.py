"""Compiles the kernels for this processor, once for each version of them, of the compiler and of the processor."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import torch
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
TIMEOUT = 300  # seconds for compiling
MACROS_TIMEOUT = 30  # and for telling what is defined


class CannotBuildError(Exception):
    """Says in one line why there are no kernels here."""


def find_compiler() -> str:
    """Return the C++ compiler that ``CXX`` names, or the first of the usual ones."""
    named = os.environ.get('CXX')
    for name in (named,) if named else COMPILERS:
        if found := shutil.which(name):
            return found
    raise CannotBuildError(f'no C++ compiler ({named or ", ".join(COMPILERS)})')


def cache_folder() -> Path:
    """Return where built kernels are kept: ``shvit_det`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    try:
        return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'shvit_det'
    except RuntimeError as error:
        raise CannotBuildError('there is no home folder: name one for the kernels in XDG_CACHE_HOME') from error


def sources() -> list[Path]:
    """Return the files that the kernels are compiled from."""
    return sorted(path for path in SOURCE.parent.iterdir() if path.suffix in ('.cpp', '.hpp'))


def build() -> Path:
    """Return the shared library of the kernels, compiled now if it was not before.

    Raises:
        CannotBuildError: If there is no compiler or no AVX-512, or the library cannot be compiled or kept.
    """
    if os.name != 'posix':
        raise CannotBuildError('they are compiled on Linux and macOS only')
    if not getattr(torch.cpu, '_is_avx512_supported', lambda: True)():  # private to torch; the compiler knows it too
        raise CannotBuildError('the processor has no AVX-512')
    folder, compiler = cache_folder(), find_compiler()
    # What the compiler defines tells its version and what the processor can do.
    macros = _output([compiler, '-march=native', '-dM', '-E', '-x', 'c++', os.devnull], timeout=MACROS_TIMEOUT)
    if '__AVX512F__' not in macros:
        raise CannotBuildError('the processor has no AVX-512')
    try:
        text = '\0'.join((compiler, macros, *FLAGS)).encode() + b''.join(path.read_bytes() for path in sources())
        library = folder / f'kernels-{hashlib.sha256(text).hexdigest()[:16]}.so'
        if library.is_file():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            print_log(f'compiling kernels for this processor into {library}: this takes some seconds, once', 'current')
            built = Path(beside, library.name)
            _output([compiler, *FLAGS, '-o', str(built), str(SOURCE)], timeout=TIMEOUT)
            built.replace(library)  # in one step, since other processes may build it too
    except OSError as error:
        raise CannotBuildError(f'{error.strerror or error}: {folder}') from error
    return library


def _output(command: list[str], timeout: float) -> str:
    """Return what a command prints.

    Raises:
        CannotBuildError: If it fails, with the first line of what it complains of.
    """
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            errors='replace',
            start_new_session=True,  # so that its children are ended with it
        ) as process:
            try:
                printed, complaints = process.communicate(timeout=timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    except subprocess.TimeoutExpired as error:
        raise CannotBuildError(f'{command[0]} has not ended after {timeout:g} seconds') from error
    except OSError as error:
        raise CannotBuildError(f'{command[0]}: {error.strerror or error}') from error
    if process.returncode:
        first = next((line for line in complaints.splitlines() if 'error' in line), f'status {process.returncode}')
        raise CannotBuildError(f'{command[0]}: {first}')
    return printed
