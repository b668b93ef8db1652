"""Checks of the machine: GPU and driver, threads, shared memory, disk, the folder for downloads."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.dependencies import release, version_of
from ..common.output_paths import may_write, nearest_folder
from ..common.processors import usable_processors
from .finding import Finding, Status, replace
from .probe_process import Outcome

DRIVER = Path('/proc/driver/nvidia/version')
DEVICES = Path('/dev')
# The oldest driver that runs programs of each major version of CUDA, by NVIDIA's notes on minor-version compatibility.
OLDEST_DRIVER = {11: '450.80.02', 12: '525.60.13', 13: '580.65.06'}
SHARED_MEMORY = Path('/dev/shm')
# Container runtimes give 64 MiB. A batch of 256 ImageNet images is 50 MB, and each loader keeps several of them there.
SHARED_MEMORY_WANTED = 2**30
# A checkpoint of Mask R-CNN SHViT-S4 with its optimizer has some 0.4 GB, and a run of 12 epochs keeps one of each.
DISK_NEEDED, DISK_WANTED = 2**30, 10 * 2**30
IN_CONTAINER = (Path('/.dockerenv'), Path('/run/.containerenv'))


def check_gpu(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that torch can use the GPUs that are there."""
    driver, torch, gpu = installed_driver(), outcomes['torch'], outcomes['gpu']
    if torch.error:
        yield Finding(Status.OK, f'{f"NVIDIA driver {driver}; " if driver else ""}torch cannot be asked')
    elif gpu.error:
        yield Finding(Status.FAIL, f'cannot be asked: {gpu.error}', install_torch('cu126'))
    elif gpu.facts['available']:
        yield _seen(torch.facts, gpu.facts, driver)
    elif driver:
        yield _unseen(torch.facts, gpu.facts, driver)
    else:
        yield Finding(Status.OK, 'no NVIDIA driver: runs on the CPU')


def installed_driver() -> str | None:
    """Return the version of NVIDIA's driver as the kernel tells it."""
    try:
        text = DRIVER.read_text(encoding='utf-8')
    except OSError:
        return None
    found = re.search(r'^NVRM version:.*?\s(\d+\.\d+[.\d]*)\s', text, re.MULTILINE)
    return found[1] if found else None


def install_torch(build: str) -> str:
    """Return the command that replaces torch and torchvision by another build of the same torch."""
    version = version_of('torch')
    torch = f'torch=={version.partition("+")[0]}' if version else 'torch'
    index = f'https://download.pytorch.org/whl/{build}'
    return replace(('torch', 'torchvision'), torch, 'torchvision', '--index-url', index)


def _seen(torch: Mapping[str, Any], gpu: Mapping[str, Any], driver: str | None) -> Finding:
    """Judge GPUs that torch sees: does a computation work?"""
    build = f'ROCm {torch["hip"]}' if torch['hip'] else f'CUDA {torch["cuda"]}, driver {driver or "?"}'
    names = f'{len(gpu["devices"])} x {gpu["devices"][0]}' if gpu['devices'] else 'no device'
    if not gpu['error']:
        return Finding(Status.OK, f'{names}, {build}')
    # Builds for newer CUDA leave out old GPUs; cu126 is the one that has them.
    capability = ''.join(map(str, gpu.get('capability', ())))
    known = [int(name[3:]) for name in gpu.get('built_for', ()) if re.fullmatch(r'sm_\d+', name)]
    too_old = capability and known and int(capability) < min(known)
    return Finding(Status.FAIL, f'{names}, {build}: {gpu["error"]}', install_torch('cu126' if too_old else 'cu130'))


def _unseen(torch: Mapping[str, Any], gpu: Mapping[str, Any], driver: str) -> Finding:
    """Say why torch sees no GPU though there is a driver."""
    cuda = torch['cuda']
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return Finding(Status.OK, f'driver {driver}; hidden by CUDA_VISIBLE_DEVICES')
    if torch['hip'] or not cuda:
        build = 'cu130' if release(driver) >= release(OLDEST_DRIVER[13]) else 'cu126'
        return Finding(Status.WARN, f'driver {driver}, but torch {torch["version"]} has no CUDA', install_torch(build))
    if not any(DEVICES.glob('nvidia[0-9]*')):
        return Finding(
            Status.WARN, f'driver {driver}, but no device here: runs on the CPU', 'docker run --gpus all ...'
        )
    oldest = OLDEST_DRIVER.get(int(cuda.partition('.')[0]), '')
    if release(driver) < release(oldest):
        found = f'driver {driver} is too old for CUDA {cuda}, which needs {oldest}'
        older = release(driver) >= release(OLDEST_DRIVER[12])
        return Finding(
            Status.FAIL, found, install_torch('cu126') if older else 'sudo apt-get install nvidia-driver-580'
        )
    return Finding(Status.FAIL, f'driver {driver}, CUDA {cuda}, but: {gpu["said"]}', 'sudo nvidia-modprobe -u -c=0')


def check_threads(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that torch uses no more threads than there are processors for them."""
    wanted = os.environ.get('OMP_NUM_THREADS')
    cores, threads = usable_processors(), outcomes['torch'].facts.get('threads')
    command = f'export OMP_NUM_THREADS={cores}'
    if wanted is not None and not re.fullmatch(r'\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*', wanted):
        yield Finding(Status.WARN, f'OMP_NUM_THREADS={wanted!r} is no number of threads', command)
    elif threads is None:
        yield Finding(Status.OK, f'{cores} usable cores; torch was not asked')
    elif threads > cores:
        yield Finding(Status.WARN, f'{threads} threads on {cores} usable cores slow each other down', command)
    else:
        chosen = f' (OMP_NUM_THREADS={wanted})' if wanted is not None else ''
        yield Finding(Status.OK, f'{threads} on {cores} usable cores{chosen}')


def check_shared_memory(_: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that there is room for the batches that loaders hand over."""
    if not SHARED_MEMORY.is_dir():
        yield Finding(Status.OK, f'no {SHARED_MEMORY} on this system')
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f'{size(usage.free)} free of {size(usage.total)} in {SHARED_MEMORY}'
    if usage.free >= SHARED_MEMORY_WANTED:
        yield Finding(Status.OK, found)
        return
    if usage.total >= SHARED_MEMORY_WANTED:
        command = f'ls -lS {SHARED_MEMORY}  # remove what ended processes left'
    elif any(path.exists() for path in IN_CONTAINER):
        command = 'docker run --shm-size=8g ...  # or --ipc=host'
    else:
        command = f'sudo mount -o remount,size=8G {SHARED_MEMORY}'
    yield Finding(Status.WARN, f'{found}: loaders may end with a bus error', command)


def check_disk(_: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that there is room for the checkpoints of a run, which are written below the working folder."""
    yield _free_space(Path.cwd(), '--work-dir /a/larger/disk  # an option of shvit-det train')


def check_cache(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that weights can be downloaded to where torch wants them."""
    command, folder = 'export TORCH_HOME=/a/folder/of/yours', outcomes['torch'].facts.get('cache')
    if folder is None:
        yield Finding(Status.OK, 'not known without torch')
    elif str(folder).startswith('~'):
        found = f'no home folder, so that downloads would go into a folder named ~ in {Path.cwd()}'
        yield Finding(Status.WARN, found, command)
    else:
        yield _free_space(Path(folder), command)


def _free_space(folder: Path, command: str) -> Finding:
    """Report whether a folder, which need not exist yet, can be written to, and what room there is."""
    existing = nearest_folder(folder)
    if not may_write(existing):
        return Finding(Status.WARN, f'{existing} cannot be written to', command)
    free = shutil.disk_usage(existing).free
    status = Status.FAIL if free < DISK_NEEDED else Status.WARN if free < DISK_WANTED else Status.OK
    return Finding(status, f'{size(free)} free in {folder}', command if status != Status.OK else '')


def size(number: int) -> str:
    """Write a number of bytes in MiB or GiB."""
    return f'{number / 2**30:.1f} GiB' if number >= 2**30 else f'{number / 2**20:.0f} MiB'
