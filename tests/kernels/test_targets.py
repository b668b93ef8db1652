"""The kernels of each instruction set agree with plain loops: without torch, natively or in an emulator."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from shvit_det.kernels import building

pytestmark = [
    pytest.mark.slow(20),
    pytest.mark.skipif(platform.system() != 'Linux', reason='the kernels are for Linux'),
]

CHECK = Path(__file__).with_name('check_kernels.cpp')
OPTIMISED = ('-O2',)
SANITIZED = ('-O1', '-g1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')
CASES, EMULATED_CASES, SANITIZED_CASES = 400, 50, 100  # of each kind and data type
KINDS = 13
LACKS_IT = 77  # the status of a program on a processor without its instruction set
TIMEOUT = 600  # seconds
SETS = {name: (machine, flags) for machine, sets in building.INSTRUCTION_SETS.items() for name, flags in sets.items()}


def run(*command: object, accept: int = 0) -> subprocess.CompletedProcess:
    """Run a command, which must succeed or end with the status to accept."""
    environment = {**os.environ, 'OMP_WAIT_POLICY': 'passive'}  # threads that wait take no time from those that work
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode in (0, accept), f'status {done.returncode}\n{done.stdout}{done.stderr}'[-3000:]
    return done


def compiler_for(machine: str) -> str:
    """Return a compiler for a kind of machine, or skip the test."""
    if machine == platform.machine():
        try:
            return building.find_compiler()[0]
        except building.CannotBuildError as error:
            pytest.skip(str(error))
    cross = f'{machine}-linux-gnu-g++'
    return shutil.which(cross) or pytest.skip(f'there is no {cross}')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('programs')


def build(name: str, options: tuple[str, ...], folder: Path) -> Path:
    """Return the program that checks the kernels of an instruction set, if it can those of the installed library."""
    machine, flags = SETS[name]
    here = machine == platform.machine()
    common = compiler_for(machine), *building.FLAGS, *options, '-fopenmp'
    check, kernels, processor = (folder / f'{part}_{machine}{len(options)}.o' for part in ('check', name, 'processor'))
    if not check.exists():  # it runs on any processor of the kind
        run(*common, f'-I{building.FOLDER}', '-c', CHECK, '-o', check)
    if here and options == OPTIMISED:
        parts = [building.library_path(name)]
        if not parts[0].is_file():
            pytest.skip('the kernels were not compiled when the package was installed')
    else:
        macros = f'-DSHVIT_SET_{name}', '-DSHVIT_SOURCES=""'
        run(*common, *flags, '-c', building.SOURCE, '-o', kernels)
        run(*common, *macros, '-c', building.SOURCE.with_name('processor.cpp'), '-o', processor)
        parts = [kernels, processor]
    program = folder / f'{name}{len(options)}'
    run(*common, *(() if here else ('-static',)), check, *parts, '-o', program)  # an emulator finds no libraries
    return program


def printed_by(program: Path, machine: str, cases: int) -> str:
    """Return what a program prints here or, where the instruction set is missing, in an emulator."""
    if machine == platform.machine():
        done = run(program, '--cases', cases, accept=LACKS_IT)
        if done.returncode == 0:
            return done.stdout
    emulator = shutil.which(f'qemu-{machine}') or pytest.skip(
        f'this processor lacks it, and there is no qemu-{machine}'
    )
    done = run(emulator, '-cpu', 'max', program, '--cases', min(cases, EMULATED_CASES), accept=LACKS_IT)
    return done.stdout if done.returncode == 0 else pytest.skip('neither this processor nor the emulator has it')


@pytest.mark.parametrize('name', SETS)
def test_every_kind_of_step(name, folder):
    printed = printed_by(build(name, OPTIMISED, folder), SETS[name][0], CASES)
    print(printed)
    assert len(printed.splitlines()) == 1 + KINDS


def test_memory_and_arithmetic_are_sound(folder):
    """Under sanitizers, for the smallest instruction set of this kind of machine, whose border code is ours."""
    machine = platform.machine()
    names = [name for name in SETS if SETS[name][0] == machine] or pytest.skip(f'there are no kernels for {machine}')
    printed = printed_by(build(names[-1], SANITIZED, folder), machine, SANITIZED_CASES)
    assert len(printed.splitlines()) == 1 + KINDS
