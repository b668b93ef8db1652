"""Does torch's CUDA build fit the driver and the GPU?"""

import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from ..common.dependencies import release
from .finding import Finding, Status, pip
from .imports import Outcome

DRIVER = Path('/proc/driver/nvidia/version')
DEVICES = Path('/dev')
# The oldest driver that runs programs of each major version of CUDA, by NVIDIA's notes on minor-version compatibility.
OLDEST_DRIVER = {11: '450.80.02', 12: '525.60.13', 13: '580.65.06'}


def check_gpu(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Can torch use the GPUs that are there?"""
    driver = installed_driver()
    torch, gpu = outcomes['torch'], outcomes['gpu']
    found, status, command = 'no NVIDIA driver: runs on the CPU', Status.OK, ''
    if torch.error:
        found = f'NVIDIA driver {driver}; torch cannot be asked' if driver else 'torch cannot be asked'
    elif gpu.error:
        found, status, command = f'cannot be asked: {gpu.error}', Status.FAIL, torch_of('cu126')
    elif gpu.facts['available']:
        found, status, command = _usable(torch, gpu, driver)
    elif driver:
        found, status, command = _unusable(torch, gpu, driver)
    yield Finding('GPU', status, found, command)


def installed_driver() -> str | None:
    """Return the version of NVIDIA's driver as the kernel tells it."""
    try:
        text = DRIVER.read_text(encoding='utf-8')
    except OSError:
        return None
    found = re.search(r'^NVRM version:.*?\s(\d+\.\d+[.\d]*)\s', text, re.MULTILINE)
    return found[1] if found else None


def torch_of(build: str) -> str:
    """Return the command that replaces torch and torchvision by another build of the same torch."""
    try:
        torch = f'torch=={metadata.version("torch").partition("+")[0]}'
    except metadata.PackageNotFoundError:
        torch = 'torch'
    index = f'https://download.pytorch.org/whl/{build}'
    install = pip('install', torch, 'torchvision', '--index-url', index)
    return f'{pip("uninstall", "-y", "torch", "torchvision")} && {install}'


def _usable(torch: Outcome, gpu: Outcome, driver: str | None) -> tuple[str, Status, str]:
    """Judge GPUs that torch says it can use: does a computation work?"""
    facts = gpu.facts
    build = (
        f'ROCm {torch.facts["hip"]}' if torch.facts['hip'] else f'CUDA {torch.facts["cuda"]}, driver {driver or "?"}'
    )
    names = f'{len(facts["devices"])} x {facts["devices"][0]}' if facts['devices'] else 'no device'
    if not facts['error']:
        return f'{names}, {build}', Status.OK, ''
    # Builds for newer CUDA leave out old GPUs; cu126 is the one that has them.
    capability = ''.join(map(str, facts.get('capability', ())))
    known = [int(name[3:]) for name in facts.get('built_for', ()) if re.fullmatch(r'sm_\d+', name)]
    too_old = capability and known and int(capability) < min(known)
    return f'{names}, {build}: {facts["error"]}', Status.FAIL, torch_of('cu126' if too_old else 'cu130')


def _unusable(torch: Outcome, gpu: Outcome, driver: str) -> tuple[str, Status, str]:
    """Say why torch does not see a GPU though there is a driver."""
    cuda = torch.facts['cuda']
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return f'driver {driver}; hidden by CUDA_VISIBLE_DEVICES', Status.OK, ''
    if torch.facts['hip'] or not cuda:
        build = 'cu130' if release(driver) >= release(OLDEST_DRIVER[13]) else 'cu126'
        return f'driver {driver}, but torch {torch.facts["version"]} has no CUDA', Status.WARN, torch_of(build)
    if not any(DEVICES.glob('nvidia[0-9]*')):
        return f'driver {driver}, but no device here: runs on the CPU', Status.WARN, 'docker run --gpus all ...'
    oldest = OLDEST_DRIVER.get(int(cuda.partition('.')[0]), '')
    if release(driver) < release(oldest):
        found = f'driver {driver} is too old for CUDA {cuda}, which needs {oldest}'
        older = release(driver) >= release(OLDEST_DRIVER[12])
        return found, Status.FAIL, torch_of('cu126') if older else 'sudo apt-get install nvidia-driver-580'
    return f'driver {driver}, CUDA {cuda}, but: {gpu.facts["said"]}', Status.FAIL, 'sudo nvidia-modprobe -u -c=0'
