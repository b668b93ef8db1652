"""Records of measurements: how they are saved, and the lines that say where and when they were made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_files import save_json
from .durations import counted

PACKAGES = ('torch', 'mmdet', 'mmcv', 'timm')  # whose versions stand beside a result


def save_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a record as JSON; floats keep six significant digits, which is more than they mean."""
    rounded = json.loads(json.dumps(record), parse_float=lambda number: float(f'{float(number):.6g}'))
    save_json(path, rounded, indent=1)


def conditions(record: Mapping[str, Any]) -> str:
    """Return the processor, threads, batch, image size and data type of a measurement."""
    settings, environment = record['settings'], record['environment']
    on_gpu = settings['device'].startswith('cuda')
    model = environment['gpu' if on_gpu else 'cpu']['model']
    parts = [
        f'{"GPU" if on_gpu else "CPU"}{f" {model}" if model else ""}',
        '' if on_gpu else counted(settings['threads'], 'thread'),
        f'batch {settings["batch"]}',
        '{}x{}'.format(*settings['shape']) if settings['shape'] else settings['images'],
        settings['dtype'],
        'channels-last' if settings['channels_last'] else '',
        'compiled' if settings['compile'] else '',
        'training' if settings['mode'] == 'train' else '',
    ]
    return ', '.join(filter(None, parts))


def origin(record: Mapping[str, Any]) -> str:
    """Return the cores, versions, date and commit of a measurement."""
    settings, environment = record['settings'], record['environment']
    cpu, versions, source = environment['cpu'], environment['versions'], environment['source']
    on_gpu = settings['device'].startswith('cuda')
    found = {name: versions[name] for name in PACKAGES if versions.get(name)}
    parts = [
        f'CPU {cpu["model"]}, {counted(settings["threads"], "thread")}' if on_gpu else '',
        counted(cpu['usable_cores'], 'core'),
        *(version if ' ' in version else f'{name} {version}' for name, version in found.items()),
        record['date'],
        f'commit {source["commit"][:10]}{" with changes" if source["changed"] else ""}' if source else '',
    ]
    return ', '.join(filter(None, parts))
