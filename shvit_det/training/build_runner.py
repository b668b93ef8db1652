"""The runner of a config, built by the tools: one sentence if that fails, and nothing left behind."""

import errno
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS, LOOPS, OPTIM_WRAPPERS, RUNNERS, Registry
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization import Visualizer

from ..common.errors import RunError, UsageError
from ..common.output_paths import check_output_folder
from ..compat.formatted_configs import formatted_once
from ..configuration.build_errors import raise_refusal
from ..configuration.changing import set_data_root
from ..configuration.detector_or_classifier import task_of
from ..configuration.reading import load_config, name_of, splits_of
from ..configuration.task import Task

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DEFAULT_HOOKS = dict(
    checkpoint=dict(type='SafeCheckpointHook', interval=1),
    step_seed=dict(type='StepSeedHook'),
    finite_check=dict(type='FiniteCheckHook'),
    termination=dict(type='TerminationHook'),
    run_summary=dict(type='RunSummaryHook'),
)


def config_of_run(
    path: str, options: Mapping[str, Any] | None, split: str, data_root: str | None, work_dir: str | None, launcher: str
) -> tuple[Config, Task, list[str]]:
    """Load the config of a training or a test, changed by the options that both tools have; return log lines too.

    Raises:
        UsageError: If the config cannot be read, or does not say how to run the split.
    """
    config = load_config(path, options)
    if split not in splits_of(config):
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        raise UsageError(f'{path} has no {split}_dataloader, {split}_cfg and {last}: there is nothing to {split}')
    if data_root is not None:
        set_data_root(config, data_root)
    config.work_dir = str(work_dir or config.get('work_dir') or Path('work_dirs') / name_of(path))
    task = task_of(config)
    config.setdefault('default_scope', task.scope)
    return config, task, set_launcher(config, launcher)


def name_runner(config: Config) -> str | None:
    """Give a config that names no runner what configs/_base_/runtime.py names: our runner, loop and hooks.

    A config of mmdet's then trains with our tool as one of ours does; a line for the log is returned. A config with a
    ``runner_type``, for instance ``Runner`` for mmengine's own, is left as it is.
    """
    if config.get('runner_type'):
        return None
    config.runner_type = 'SHViTRunner'
    config.default_hooks = DEFAULT_HOOKS | (config.get('default_hooks') or {})
    for hook in (*config.default_hooks.values(), *(config.get('custom_hooks') or ())):
        _replace(hook, CheckpointHook, 'SafeCheckpointHook', HOOKS)
    _replace(config.get('optim_wrapper'), AmpOptimWrapper, 'LossScaleOptimWrapper', OPTIM_WRAPPERS)
    loop = config.get('train_cfg')
    if loop and loop.get('by_epoch') and 'type' not in loop:
        del loop['by_epoch']
        loop['type'] = 'EpochBasedTrainLoop'
    _replace(loop, EpochBasedTrainLoop, 'ResumableEpochLoop', LOOPS)
    return 'runner_type, train_cfg.type and default_hooks are those of our configs, since this one names no runner'


def _replace(node: Any, original: type, name: str, registry: Registry) -> None:
    """Make a dict of a config name another class, if it names exactly ``original``."""
    if isinstance(node, Mapping) and isinstance(node.get('type'), str) and registry.get(node['type']) is original:
        node['type'] = name  # type: ignore[index]


def set_launcher(config: Config, launcher: str) -> list[str]:
    """Set how this process was started; return a line for the log if the config says otherwise."""
    named, config.launcher = config.get('launcher', 'none'), launcher
    if (named == 'none') == (launcher == 'none'):
        return []
    return [f'launcher: {launcher} in place of {named}, since that is how this process was started']


@contextmanager
def built_runner(config: Config, checkpoints: Path | None = None, log: Sequence[str] = ()) -> Iterator[Runner]:
    """Build the runner of a config for one run. If the run ends before its first step, what it wrote is removed.

    Args:
        config: The config, with a ``work_dir``.
        checkpoints: The folder of checkpoints, or None if none are written or they go to remote storage.
        log: Lines to log as soon as there is a log.

    Raises:
        UsageError: If a folder cannot be written, or settings of the config do not go together.
        RunError: If such settings are found after the first step.
    """
    visualizers = {kind: dict(kind._instance_dict) for kind in (Visualizer, *subclasses_of(Visualizer))}
    work_dir = Path(config.work_dir).absolute()
    folders = [work_dir] if checkpoints in (None, work_dir) else [work_dir, checkpoints]
    new = [each for folder in folders for each in (folder, *folder.parents) if not each.exists()]
    dumped = work_dir / Path(config.filename or 'config').name  # where mmengine writes the config, over an older one
    former = dumped.read_bytes() if dumped.is_file() else None
    runner = None
    try:
        lines = [*log, name_runner(config)]
        check_output_folder(work_dir, 'the work dir', '--work-dir')
        if checkpoints not in (None, work_dir):
            check_output_folder(checkpoints, 'the folder of checkpoints', 'default_hooks.checkpoint.out_dir')
        with formatted_once():
            runner = RUNNERS.build(config)
            for line in filter(None, lines):
                print_log(line, 'current')
            yield runner
    except Exception as error:
        ran_first_hooks = runner is not None and getattr(runner, 'ran_first_hooks', True)  # only our runner tells
        if ran_first_hooks and isinstance(error, UsageError):
            raise RunError(str(error)) from error  # a UsageError promises that nothing was written
        if ran_first_hooks or getattr(error, 'errno', None) in NO_ROOM:
            raise
        for kind, instances in visualizers.items():  # one that has just been made writes into a folder that goes now
            kind._instance_dict = OrderedDict(instances)
        if is_main_process():
            remove_new(folders, new)
            if runner is not None and work_dir not in new:
                shutil.rmtree(work_dir / runner.timestamp, ignore_errors=True)
                if former is not None:
                    dumped.write_bytes(former)
        raise_refusal(error, config)


def subclasses_of(kind: Any) -> Iterator[Any]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses_of(each)


def remove_new(folders: Sequence[Path], new: Sequence[Path]) -> None:
    """Remove those of the folders that are new, and the new folders above them if nothing else is in them."""
    for folder in folders:
        if folder in new:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in new:
        with suppress(OSError):  # it is gone already, or another program uses it by now
            folder.rmdir()
