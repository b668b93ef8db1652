"""Compiles the kernels: one library for each instruction set, when the package is installed or its wheel is built.

Standard library only, since setup.py uses it in an environment without torch. As a script it compiles the libraries
into its own folder, where they are missing or older than the sources.
"""

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / 'kernels.cpp'  # which includes the headers beside it
COMPILERS = ('g++', 'c++')
FLAGS = (
    '-O3',
    '-std=c++17',
    '-ffp-contract=off',  # products are fused with sums where the code says so: rounding decides what a region sees
    '-fvisibility=hidden',
    '-fPIC',
    '-w',
)
AVX2 = ('-mavx2', '-mfma', '-mbmi2')
AVX512 = ('-mavx2', '-mfma', '-mbmi2', '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl')
# The instruction sets of each kind of machine, the fastest first, with what makes the compiler use them.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    'x86_64': {'avx512_bf16': (*AVX512, '-mavx512bf16'), 'avx512': AVX512, 'avx2': AVX2},
    'aarch64': {'neon_bf16': ('-march=armv8.2-a+bf16',), 'neon': ('-march=armv8-a',)},
}
TIMEOUT = 600  # seconds for compiling


class CannotBuildError(Exception):
    """Says in one line why there are no kernels."""


def library_path(instruction_set: str, folder: Path = FOLDER) -> Path:
    """Return where the library for an instruction set is."""
    return folder / f'kernels.{instruction_set}.so'  # with a point, so that nobody takes it for a module


def digest_of_sources() -> str | None:
    """Return what tells one version of the sources from another; None in a wheel, which has libraries only."""
    if not SOURCE.is_file():
        return None
    paths = sorted(path for path in FOLDER.iterdir() if path.suffix in ('.cpp', '.hpp'))
    return hashlib.sha256(b''.join(path.read_bytes() for path in (*paths, Path(__file__)))).hexdigest()[:16]


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: what ``CXX`` names, or the first of the usual ones.

    Raises:
        CannotBuildError: If there is none.
    """
    named = shlex.split(os.environ.get('CXX', ''))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    raise CannotBuildError(f'there is no C++ compiler ({named[0] if named else ", ".join(COMPILERS)})')


@functools.cache
def target_machine(compiler: str) -> str:
    """Return which kind of machine a compiler compiles for, ``x86_64`` for instance."""
    machine = _output([compiler, '-dumpmachine']).split('-')[0]
    return {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine)


def machine_of_libraries() -> str:
    """Return the kind of machine that libraries are compiled for: that of the compiler.

    Raises:
        CannotBuildError: If there is no compiler, or no kernels for its machines, or this system is no Linux.
    """
    if not sys.platform.startswith('linux'):
        raise CannotBuildError('they are compiled on Linux only')
    machine = target_machine(find_compiler()[0])
    if machine not in INSTRUCTION_SETS:
        raise CannotBuildError(f'there are none for {machine}, only for {" and ".join(INSTRUCTION_SETS)}')
    return machine


def compile_commands(
    compiler: Sequence[str], name: str, digest: str, flags: Sequence[str], library: Path
) -> list[list[str]]:
    """Return the commands that compile and link the library of an instruction set.

    What asks the processor is compiled without the set's flags: it runs where the set may be missing. OpenMP is not
    linked: torch brings it, and one process is to have one pool of threads.
    """
    kernels, processor = (str(library.with_name(f'{part}.o')) for part in ('kernels', 'processor'))
    macros = f'-DSHVIT_SET_{name}', f'-DSHVIT_SOURCES="{digest}"'
    return [
        [*compiler, *FLAGS, *flags, '-fopenmp', '-c', str(SOURCE), '-o', kernels],
        [*compiler, *FLAGS, *macros, '-c', str(SOURCE.with_name('processor.cpp')), '-o', processor],
        [*compiler, '-shared', kernels, processor, '-lm', '-o', str(library)],
    ]


def build_libraries(folder: Path = FOLDER) -> list[Path]:
    """Compile the libraries for all instruction sets of a kind of machine, those that are not there yet.

    Raises:
        CannotBuildError: If there is no compiler, or it fails, or the machine is of another kind or no Linux.
    """
    sets, compiler = INSTRUCTION_SETS[machine_of_libraries()], find_compiler()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return list(pool.map(lambda name: _build(name, sets[name], compiler, folder), sets))
    except OSError as error:
        raise CannotBuildError(f'{error.strerror or error}: {folder}') from error


def copy_libraries(folder: Path) -> None:
    """Copy the libraries that have been compiled beside the sources, and are not older, for :func:`build_libraries`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in INSTRUCTION_SETS[machine_of_libraries()]:
        if _is_current(library_path(name)):
            shutil.copy(library_path(name), folder)


def _is_current(library: Path) -> bool:
    digest = digest_of_sources()
    assert digest is not None
    return library.is_file() and digest.encode() in library.read_bytes()


def _build(name: str, flags: tuple[str, ...], compiler: list[str], folder: Path) -> Path:
    library, digest = library_path(name, folder), digest_of_sources()
    assert digest is not None
    if _is_current(library):
        return library
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        objects = Path(beside)
        built = objects / library.name
        for command in compile_commands(compiler, name, digest, flags, built):
            _output(command)
        built.replace(library)
    return library


def _output(command: list[str]) -> str:
    """Return what a command prints.

    Raises:
        CannotBuildError: If it fails, with the first line of what it complains of.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, errors='replace', timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise CannotBuildError(f'{command[0]} has not ended after {TIMEOUT} seconds') from error
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if 'error' in line), f'status {done.returncode}')
        raise CannotBuildError(f'{command[0]}: {first}')
    return done.stdout


if __name__ == '__main__':
    try:
        print('kernels:', ', '.join(path.name for path in build_libraries()))
    except CannotBuildError as error:
        print(f'no kernels of our own were compiled, deployed models will be slower: {error}')
