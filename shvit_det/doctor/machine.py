"""What the machine gives: threads, shared memory, disk, the folder for downloads."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..common.processors import usable_processors
from .finding import Finding, Status
from .imports import Outcome

SHARED_MEMORY = Path('/dev/shm')
# Container runtimes give 64 MiB. A batch of 256 ImageNet images is 50 MB, and each loader keeps several of them there.
SHARED_MEMORY_WANTED = 2**30
# A checkpoint of Mask R-CNN SHViT-S4 with its optimizer has some 0.4 GB, and a run of 12 epochs keeps one of each.
DISK_NEEDED, DISK_WANTED = 2**30, 10 * 2**30
IN_CONTAINER = (Path('/.dockerenv'), Path('/run/.containerenv'))


def check_threads(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Does torch use as many threads as there are cores for it?"""
    name, wanted = 'OpenMP threads', os.environ.get('OMP_NUM_THREADS')
    cores = usable_processors()
    command = f'export OMP_NUM_THREADS={cores}'
    threads = outcomes['torch'].facts.get('threads')
    if wanted is not None and not re.fullmatch(r'\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*', wanted):
        yield Finding(name, Status.WARN, f'OMP_NUM_THREADS={wanted!r} is no number of threads', command)
    elif threads is None:
        yield Finding(name, Status.OK, f'{cores} usable cores; torch was not asked')
    elif threads > cores:
        yield Finding(name, Status.WARN, f'{threads} threads on {cores} usable cores slow each other down', command)
    else:
        chosen = f' (OMP_NUM_THREADS={wanted})' if wanted is not None else ''
        yield Finding(name, Status.OK, f'{threads} on {cores} usable cores{chosen}')


def check_shared_memory() -> Iterator[Finding]:
    """Is there room for the batches that loaders hand over?"""
    name = 'shared memory'
    if not SHARED_MEMORY.is_dir():
        yield Finding(name, Status.OK, f'no {SHARED_MEMORY} on this system')
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f'{size(usage.free)} free of {size(usage.total)} in {SHARED_MEMORY}'
    if usage.free >= SHARED_MEMORY_WANTED:
        yield Finding(name, Status.OK, found)
        return
    if usage.total >= SHARED_MEMORY_WANTED:
        command = f'ls -lS {SHARED_MEMORY}  # remove what ended processes left'
    elif any(path.exists() for path in IN_CONTAINER):
        command = 'docker run --shm-size=8g ...  # or --ipc=host'
    else:
        command = f'sudo mount -o remount,size=8G {SHARED_MEMORY}'
    yield Finding(name, Status.WARN, f'{found}: loaders may end with a bus error', command)


def check_disk() -> Iterator[Finding]:
    """Is there room for the checkpoints of a run, which go below the working folder?"""
    yield _space('disk', Path.cwd(), '--work-dir /a/larger/disk  # an option of shvit-det train')


def check_cache(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Can weights be downloaded to where torch wants them?"""
    command = 'export TORCH_HOME=/a/folder/of/yours'
    folder = outcomes['torch'].facts.get('cache')
    if folder is None:
        yield Finding('cache', Status.OK, 'not known without torch')
    elif str(folder).startswith('~'):
        found = f'no home folder, so that downloads would go into a folder named ~ in {Path.cwd()}'
        yield Finding('cache', Status.WARN, found, command)
    else:
        yield _space('cache', Path(folder), command)


def _space(name: str, folder: Path, command: str) -> Finding:
    """Report whether a folder, which need not exist yet, can be written to, and what room there is."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, Status.WARN, f'{existing} cannot be written to', command)
    free = shutil.disk_usage(existing).free
    status = Status.FAIL if free < DISK_NEEDED else Status.WARN if free < DISK_WANTED else Status.OK
    return Finding(name, status, f'{size(free)} free in {folder}', command if status != Status.OK else '')


def size(number: int) -> str:
    """Write a number of bytes in MiB or GiB."""
    return f'{number / 2**30:.1f} GiB' if number >= 2**30 else f'{number / 2**20:.0f} MiB'
