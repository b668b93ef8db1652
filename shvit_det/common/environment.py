"""The environment record of a measurement: processor, GPU, versions, settings of torch.

Records are published, so it holds no name of a host or user and no path.
"""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..version import __version__
from .dependencies import CHECKOUT, version_of
from .processors import usable_processors

CPUINFO = Path('/proc/cpuinfo')
CPUFREQ = Path('/sys/devices/system/cpu')
# As Linux names them; asimd is NEON's name on 64-bit Arm.
INSTRUCTION_SETS = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'avx512_vnni', 'amx_bf16', 'amx_int8')
ARM_INSTRUCTION_SETS = {'neon': 'neon', 'asimd': 'neon', 'sve': 'sve', 'sve2': 'sve2', 'bf16': 'bf16', 'i8mm': 'i8mm'}
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'timm', 'onnx', 'onnxruntime',
            'openvino', 'executorch')  # fmt: skip
GPU_CLOCKS = {
    'clocks.sm': 'sm_clock_mhz',
    'clocks.max.sm': 'sm_clock_max_mhz',
    'clocks.mem': 'memory_clock_mhz',
    'clocks.max.mem': 'memory_clock_max_mhz',
}


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the software that a measurement on ``device`` runs on, ready for JSON.

    A value that the system does not tell is None. Load average, clocks and threads are those of this moment.
    """
    return {
        'device': device.type,
        'cpu': _cpu(),
        'gpu': _gpu(device) if device.type == 'cuda' else None,
        'memory_gib': _memory_gib(),
        'load_average': [round(load, 2) for load in os.getloadavg()] if hasattr(os, 'getloadavg') else None,
        'os': f'{platform.system()} {_first(r"[0-9.]*[0-9]", platform.release())}',  # without what its builder added
        'python': platform.python_version(),
        'torch': _torch(),
        'versions': _versions(),
        # the mark of shvit_det.compat.mmcv_ops
        'mmcv_ops': 'stand-in' if hasattr(sys.modules.get('mmcv._ext'), '__stand_in__') else 'compiled',
        'source': _source(CHECKOUT),
    }


def _memory_gib() -> float | None:
    if not hasattr(os, 'sysconf'):  # Windows
        return None
    return round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1)


def _cpu() -> dict[str, Any]:
    """Describe the processor; Linux tells most of it, macOS only its name."""
    cpuinfo = CPUINFO.read_text(encoding='utf-8') if CPUINFO.exists() else ''
    name = _first(r'^model name\s*:\s*(.*)$', cpuinfo)
    if platform.system() == 'Darwin':
        name = _output('sysctl', '-n', 'machdep.cpu.brand_string')
    current = [float(clock) for clock in re.findall(r'^cpu MHz\s*:\s*([0-9.]+)$', cpuinfo, re.MULTILINE)]
    return {
        'model': name,
        'architecture': platform.machine(),
        'logical_cores': os.cpu_count(),
        'usable_cores': usable_processors(),
        'instruction_sets': _instruction_sets(cpuinfo),
        'clock_mhz': max(current or _cpufreq('scaling_cur_freq'), default=None),  # of the fastest core
        'clock_max_mhz': max(_cpufreq('cpuinfo_max_freq'), default=None),
    }


def _instruction_sets(cpuinfo: str) -> list[str]:
    """Return the instruction sets that speed up matrix products, by the names that Linux has for them."""
    flags = set((_first(r'^(?:flags|Features)\s*:\s*(.*)$', cpuinfo) or '').split())
    if platform.system() == 'Darwin' and platform.machine() == 'arm64':
        flags = {'neon'}
    arm = {ours: None for name, ours in ARM_INSTRUCTION_SETS.items() if name in flags}
    return [name for name in INSTRUCTION_SETS if name in flags] + list(arm)


def _cpufreq(name: str) -> list[float]:
    """Return a figure of cpufreq for every core, in MHz; most virtual machines have none."""
    return [int(path.read_text(encoding='utf-8')) / 1e3 for path in CPUFREQ.glob(f'cpu[0-9]*/cpufreq/{name}')]


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    query = f'--query-gpu={",".join(["driver_version", *GPU_CLOCKS])}'
    answer = _output('nvidia-smi', query, '--format=csv,noheader,nounits', f'--id=GPU-{properties.uuid}')
    driver, *clocks = answer.split(', ') if answer else [None] * (1 + len(GPU_CLOCKS))
    return {
        'model': properties.name,
        'memory_gib': round(properties.total_memory / 2**30, 1),
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'tf32': {'products': torch.backends.cuda.matmul.allow_tf32, 'convolutions': torch.backends.cudnn.allow_tf32},
        'driver': driver,
        **dict(zip(GPU_CLOCKS.values(), (_clock(value) for value in clocks), strict=True)),
    }


def _torch() -> dict[str, Any]:
    """Describe how torch was built and is set, without the paths in torch's own description."""
    built = torch.__config__.show()
    return {
        'threads': torch.get_num_threads(),
        'interop_threads': torch.get_num_interop_threads(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'blas': _first(r'\bBLAS_INFO=(\w+)', built),
        'onednn': _first(r'MKL-DNN v([0-9.]+)', built) if torch.backends.mkldnn.is_available() else None,
        'float32_matmul_precision': torch.get_float32_matmul_precision(),
    }


def _versions() -> dict[str, str | None]:
    """Return the versions by import name, with the name of the distribution where it is another (``mmcv-lite``)."""
    distributions = metadata.packages_distributions()
    versions: dict[str, str | None] = {'shvit_det': __version__}
    for name in PACKAGES:
        distribution, *_ = distributions.get(name, [name])
        version = version_of(distribution)
        versions[name] = f'{distribution} {version}' if version and distribution != name else version
    return versions


def _source(tree: Path) -> dict[str, Any] | None:
    """Return the commit of a source tree and whether tracked files differ from it; None if it is no checkout.

    A package that is installed somewhere inside another checkout has no commit.
    """
    if not (tree / '.git').exists():
        return None
    commit = _output('git', '-C', str(tree), 'rev-parse', 'HEAD')
    changes = _output('git', '-C', str(tree), 'status', '--porcelain', '--untracked-files=no')
    return None if commit is None or changes is None else {'commit': commit, 'changed': bool(changes)}


def _output(*command: str) -> str | None:
    """Return what a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding='utf-8', errors='replace', check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _first(pattern: str, text: str) -> str | None:
    """Return the first match of a pattern, its group if it has one."""
    match = re.search(pattern, text, re.MULTILINE)
    return match[match.lastindex or 0].strip() if match else None


def _clock(text: str | None) -> float | None:
    """Return a clock rate that nvidia-smi prints; it prints ``[N/A]`` for an unknown one."""
    return None if text is None or text.startswith('[') else float(text)
