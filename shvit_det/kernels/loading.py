"""Finds the library for this processor among those that came with the package or were compiled beside it."""

import ctypes
import functools
import logging
import os
import platform
from pathlib import Path

from mmengine.logging import print_log

from .building import INSTRUCTION_SETS, digest_of_sources, library_path
from .kernel_functions import Kernels

SWITCH = 'SHVIT_DET_NATIVE'  # 0 turns the kernels off; the name of an instruction set, avx2 for instance, chooses it
ON, OFF = '1', '0'
MACHINES = {'AMD64': 'x86_64', 'arm64': 'aarch64'}  # other names of the same
OPENMP = ('libgomp', 'libiomp5', 'libomp')  # what torch's OpenMP may be called


class CannotLoadError(Exception):
    """Says in one line why there are no kernels here."""


@functools.cache
def load() -> Kernels | None:
    """Return the kernels for this processor, the fastest that it runs; None where there are none, as the log says."""
    wanted = os.environ.get(SWITCH, ON)
    if wanted == OFF:
        return None
    try:
        return find_kernels(wanted)
    except CannotLoadError as error:
        print_log(f'without kernels of our own, oneDNN is used instead: {error}', 'current', logging.INFO)
        return None


def find_kernels(wanted: str = ON) -> Kernels:
    """Return the kernels of the fastest instruction set that this processor has, or of the one that is named."""
    machine = platform.machine()
    sets = tuple(INSTRUCTION_SETS.get(MACHINES.get(machine, machine), ()))
    if wanted not in (ON, *sets):
        raise CannotLoadError(f'{SWITCH}={wanted}: choose one of {", ".join((OFF, ON, *sets))}')
    compiled = [name for name in ((wanted,) if wanted != ON else sets) if library_path(name).is_file()]
    if not compiled:
        raise CannotLoadError('none were compiled when the package was installed, which takes Linux and a C++ compiler')
    _share_openmp()
    for name in compiled:
        path = library_path(name)
        try:
            library = ctypes.CDLL(str(path))
            if not library.shvit_runs_here():
                continue
            kernels = Kernels(library, name)
        except (OSError, AttributeError) as error:  # of another machine, damaged, or without an OpenMP
            raise CannotLoadError(f'{path} cannot be loaded: {error}') from error
        if digest_of_sources() not in (None, kernels.sources):
            raise CannotLoadError(f'{path} was compiled from other sources than those beside it: run make setup')
        return kernels
    raise CannotLoadError(f'this processor does not have {" or ".join(compiled)}')


def _share_openmp() -> None:
    """Let the kernels find the OpenMP that torch has loaded, so that one process has one pool of threads."""
    try:
        lines = Path('/proc/self/maps').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return
    loaded = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if '/' in line)
    for path in loaded:
        if Path(path).name.startswith(OPENMP):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return
