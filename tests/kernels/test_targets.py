"""The kernels, built for each instruction set, agree with plain loops; without torch, natively or in an emulator."""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

from shvit_det.kernels.building import CannotBuildError, find_compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.system() != 'Linux', reason='the programs are for Linux'),
]

HERE = Path(__file__).parent
KERNELS = ROOT / 'shvit_det' / 'kernels'
FLAGS = ('-std=c++17', '-fopenmp', '-ffp-contract=off', '-Wall', f'-I{KERNELS}')
SANITIZERS = ('-O1', '-g1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')
CASES, EMULATED_CASES, SANITIZED_CASES = 200, 20, 50  # of each kind and data type
KINDS = 12
TIMEOUT = 600  # seconds


class InstructionSet(NamedTuple):
    architecture: str
    flags: tuple[str, ...]


SETS = {
    'avx2': InstructionSet('x86_64', ('-march=x86-64-v3',)),
    'avx512': InstructionSet('x86_64', ('-march=x86-64-v4',)),
    'avx512_bf16': InstructionSet('x86_64', ('-march=x86-64-v4', '-mavx512bf16')),
    'aarch64': InstructionSet('aarch64', ('-march=armv8-a',)),
    'aarch64_bf16': InstructionSet('aarch64', ('-march=armv8.2-a+bf16',)),
}
NOT_YET = {'avx2', 'aarch64', 'aarch64_bf16'}


def run(*command: object) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, f'status {done.returncode}\n{done.stdout}{done.stderr}'[-3000:]
    return done.stdout


def compiler_for(architecture: str) -> str:
    """Return a compiler for a kind of processor, or skip the test."""
    if architecture == platform.machine():
        try:
            return find_compiler()
        except CannotBuildError as error:
            pytest.skip(str(error))
    cross = f'{architecture}-linux-gnu-g++'
    return shutil.which(cross) or pytest.skip(f'there is no {cross}')


class Programs:
    """Builds programs in a folder, each object file once, and knows how to run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runners: dict[str, dict[str, tuple[str, ...]]] = {}

    def build(self, name: str, *options: str) -> Path:
        """Return the program that checks the kernels of an instruction set."""
        architecture, flags = SETS[name]
        check = self._object(HERE / 'check_kernels.cpp', architecture, *options)  # runs on any such processor
        kernels = self._object(KERNELS / 'kernels.cpp', architecture, *flags, *options)
        return self._linked(architecture, check, kernels, *options)

    def runners(self, architecture: str) -> dict[str, tuple[str, ...]]:
        """Return the instruction sets whose programs run here, each with the command that a program is given to."""
        if architecture not in self._runners:
            program = self._linked(architecture, self._object(HERE / 'list_sets.cpp', architecture))
            emulator = shutil.which(f'qemu-{architecture}')
            ways: list[tuple[str, ...]] = [()] if architecture == platform.machine() else []
            ways += [(emulator, '-cpu', 'max')] if emulator else []
            found = self._runners[architecture] = {}
            for way in ways:
                for name in run(*way, program).split():
                    found.setdefault(name, way)
        return self._runners[architecture]

    def _object(self, source: Path, architecture: str, *options: str) -> Path:
        made = self.folder / f'{"".join((source.stem, architecture, *options)).translate({ord("/"): None})}.o'
        if not made.exists():
            run(compiler_for(architecture), *FLAGS, *options, '-c', source, '-o', made)
        return made

    def _linked(self, architecture: str, *parts: object) -> Path:
        """Return a program; one for another kind of processor needs no libraries from the emulator."""
        program = self.folder / f'program{len(list(self.folder.iterdir()))}'
        static = () if architecture == platform.machine() else ('-static',)
        run(compiler_for(architecture), '-fopenmp', *static, *parts, '-o', program)
        return program


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    return Programs(tmp_path_factory.mktemp('programs'))


def check(program: Path, runner: tuple[str, ...], cases: int) -> None:
    printed = run(*runner, program, '--cases', cases)
    print(printed)
    assert len(printed.splitlines()) == 1 + KINDS


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.xfail(name in NOT_YET, reason='the kernels need AVX-512', strict=True))
        for name in SETS
    ],
)
def test_every_kind_of_step(programs, name):
    runners = programs.runners(SETS[name].architecture)
    if name not in runners:
        pytest.skip(f'neither this processor nor an emulator here has {name}')
    check(programs.build(name, '-O2'), runners[name], EMULATED_CASES if runners[name] else CASES)


def test_memory_and_arithmetic_are_sound(programs):
    """Under sanitizers, for the largest instruction set of this processor."""
    native = [name for name in SETS if programs.runners(platform.machine()).get(name) == () and name not in NOT_YET]
    if not native:
        pytest.skip('the kernels are for other processors')
    check(programs.build(native[-1], *SANITIZERS), (), SANITIZED_CASES)
