"""What the doctor runs in another process, by ``python -c``: imports and small computations, a step at a time.

It writes a line of JSON when a step starts and one when it ends, so that a step that ends the process is known. What
the imports print is dropped.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(steps: list[str]) -> None:
    """Take the steps in order."""
    lines = os.fdopen(os.dup(1), 'w', buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    for step in steps:
        lines.write(json.dumps({'step': step}) + '\n')
        lines.write(json.dumps({'step': step, **take(step)}) + '\n')


def take(step: str) -> dict[str, Any]:
    """Return the fields of :class:`.probe_process.Outcome`."""
    outcome: dict[str, Any] = {'facts': {}, 'error': '', 'missing': None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            outcome['facts'] = STEPS[step]() if step in STEPS else imported(step)
        except BaseException as error:  # whatever a broken package raises, SystemExit included
            outcome['error'] = one_line(f'{type(error).__name__}: {error}')
            outcome['missing'] = error.name if isinstance(error, ModuleNotFoundError) else None
    outcome['warnings'] = [one_line(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]
    return outcome


def one_line(text: object) -> str:
    return ' '.join(str(text).split())


def imported(name: str) -> dict[str, Any]:
    """Import a module; a folder of that name without code does not count as one."""
    module = importlib.import_module(name)
    if getattr(module, '__file__', None) is None and hasattr(module, '__path__'):
        raise ImportError(f'the folder {next(iter(module.__path__))} has its name and no code')
    return {'version': str(getattr(module, '__version__', ''))}


def torch_facts() -> dict[str, Any]:
    """Describe how torch was built and is set."""
    facts = imported('torch')
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)  # a library that is missing may show only here
    return {
        **facts,
        'threads': torch.get_num_threads(),
        'cuda': torch.version.cuda,
        'hip': torch.version.hip,
        'cache': torch.hub.get_dir(),
    }


def torchvision_facts() -> dict[str, Any]:
    """Use one of torchvision's compiled ops, which are not there if it was built for another torch."""
    facts = imported('torchvision')
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.ones(1), 0.5)
    return facts


def gpu_facts() -> dict[str, Any]:
    """Describe the GPUs that torch can use, and how a small computation on the first one fails, if it does."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        available = torch.cuda.is_available()
    said = one_line(caught[0].message) if caught else ''
    facts = {'available': available, 'said': said, 'devices': [], 'error': ''}
    if not available:
        return facts
    try:
        facts['devices'] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        facts['capability'] = list(torch.cuda.get_device_capability(0))
        facts['built_for'] = torch.cuda.get_arch_list()
        (torch.ones(2, 2, device='cuda') @ torch.ones(2, 2, device='cuda')).cpu()
    except (RuntimeError, AssertionError) as error:
        facts['error'] = str(error).splitlines()[0]
    return facts


def shvit_det_facts() -> dict[str, Any]:
    """Import what the package offers, except the predictor, which needs mmdet."""
    importlib.import_module('torch')  # nothing of the rest works without it
    facts = imported('shvit_det')
    module = sys.modules['shvit_det']
    for name in module.__all__:
        if name != 'Predictor':
            getattr(module, name)
    return facts


def ops_facts() -> dict[str, Any]:
    """Use mmcv's ops as a detector does, on the GPU too if there is one."""
    importlib.import_module('shvit_det')  # which replaces them if need be
    import torch
    from mmcv.ops import nms, roi_align

    from shvit_det.compat import mmcv_ops

    facts: dict[str, Any] = {'stand_in': mmcv_ops.is_stand_in(), 'cuda': ''}
    for device in ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]:
        try:
            boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]], device=device)
            nms(boxes, torch.ones(1, device=device), 0.5)
            rois = torch.nn.functional.pad(boxes, (1, 0))
            roi_align(torch.ones(1, 1, 8, 8, device=device), rois, (2, 2))
        except RuntimeError as error:
            if device == 'cpu':
                raise
            facts['cuda'] = str(error).splitlines()[0]
    return facts


def kernels_facts() -> dict[str, Any]:
    """Find the kernels that deployed models use on this processor."""
    from shvit_det.kernels import loading

    switch = os.environ.get(loading.SWITCH, loading.ON)
    if switch == loading.OFF:
        return {'instruction_set': '', 'reason': f'turned off by {loading.SWITCH}=0'}
    try:
        return {'instruction_set': loading.find_kernels(switch).instruction_set, 'reason': ''}
    except loading.CannotLoadError as error:
        return {'instruction_set': '', 'reason': one_line(error)}


def bases_facts() -> dict[str, Any]:
    """Read a config that inherits from mmdet's, as all of ours do."""
    from mmengine.config import Config

    Config.fromstring("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'", '.py')
    return {}


def resume_facts() -> dict[str, Any]:
    """Save what a checkpoint of a run has besides the weights, and load it as resuming does."""
    import torch
    from mmengine.logging import HistoryBuffer

    from shvit_det.compat.torch_load import classes_allowed

    history = HistoryBuffer()
    history.update(1.0)
    file = io.BytesIO()
    torch.save({'history': history}, file)
    file.seek(0)
    with classes_allowed():
        torch.load(file, weights_only=True)
    return {}


def weights_facts() -> dict[str, Any]:
    """Return our files in torch's cache, each with what is wrong with it, as its first bytes tell."""
    import torch

    from shvit_det.checkpoint.reading import head_of, wrong_kind

    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.glob('*shvit*')):
            if path.suffix in ('.pth', '.safetensors'):
                found[str(path)] = wrong_kind(head_of(path)) or ''
    return {'folder': str(folder), 'files': found}


def mmpretrain_models_facts() -> dict[str, Any]:
    importlib.import_module('shvit_det')  # they may need our ops
    return imported('mmpretrain.models')


# What is not only an import.
STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    'torch': torch_facts,
    'torchvision': torchvision_facts,
    'gpu': gpu_facts,
    'shvit_det': shvit_det_facts,
    'ops': ops_facts,
    'kernels': kernels_facts,
    'bases': bases_facts,
    'resume': resume_facts,
    'weights': weights_facts,
    'mmpretrain.models': mmpretrain_models_facts,
}

if __name__ == '__main__':
    main(sys.argv[1:])
