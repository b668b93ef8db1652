"""The training run behind ``tools/train.py``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from ..checkpoint import check_checkpoint, find_checkpoint
from ..errors import UsageError
from . import config as changes
from .fast import enable_amp, enable_fast
from .report import last_metrics, plot_curves
from .runner import SHViTRunner
from .task import task_of

AUTO = 'auto'


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest checkpoint that the runs in ``work_dir`` finished writing, or None."""
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return None
    path = work_dir / Path(pointer.read_text().strip()).name  # the folder may have moved since
    return path if path.is_file() else None


def train(
    config_path: str,
    work_dir: str | None = None,
    resume: str | None = None,
    pretrained: bool = True,
    amp: bool = False,
    fast: bool = False,
    auto_scale_lr: bool = False,
    data_root: str | None = None,
    seed: int | None = None,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Train the model of a config, a detector or a classifier, and return the path of the last checkpoint.

    Args:
        config_path: The config file.
        work_dir: Where logs and checkpoints go; by default ``work_dir`` of the config, else ``work_dirs/NAME``.
        resume: ``'auto'`` for the last checkpoint in the work dir, or a path.
        pretrained: False starts the backbone from random weights.
        amp: Mixed precision: bfloat16, or float16 on a GPU that lacks it.
        fast: Channels-last, a fused optimizer, and mixed precision where bfloat16 is native.
        auto_scale_lr: Scale the learning rate to the total batch.
        data_root: Another folder of the layout that the config expects.
        seed: Seed of all random numbers; by default a random one, which is logged.
        launcher: How several processes were started: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.
        cfg_options: Changes of single values, dotted names.

    Raises:
        UsageError: If the run cannot start; nothing has been written then.
    """
    config = changes.load_config(config_path, cfg_options)
    if data_root is not None:
        changes.set_data_root(config, data_root)
    if not pretrained:
        changes.remove_pretrained(config)
    choices = [f'--amp: {enable_amp(config)}'] if amp else []
    choices += [f'--fast: {enable_fast(config)}'] if fast else []
    if auto_scale_lr:
        changes.enable_auto_scale_lr(config)
    if seed is not None:
        config.randomness = dict(seed=seed)
    config.launcher = launcher
    config.work_dir = str(work_dir or config.get('work_dir') or Path('work_dirs') / Path(config_path).stem)
    check_before_training(config, resume)

    runner = SHViTRunner.from_cfg(config)
    for choice in choices:
        print_log(choice, 'current')
    folder = Path(runner.work_dir)
    try:
        runner.train()
    except KeyboardInterrupt:
        last = last_checkpoint(folder)
        where = f'the last checkpoint is {last}: go on with --resume' if last else 'no checkpoint was written yet'
        print_log(f'Interrupted at iteration {runner.iter}; {where}', 'current')
        raise
    finally:
        curves = plot_curves(folder) if is_main_process() else None

    last = last_checkpoint(folder)
    assert last is not None
    if is_main_process():
        print_log('Validation\n' + task_of(config).table(last_metrics(folder)), 'current')
        print_log(f'Checkpoint: {last}\nCurves: {curves}', 'current')
    return last


def check_before_training(config: Config, resume: str | None) -> None:
    """Find the mistakes that can be found before the start, and settle where the weights come from.

    Raises:
        UsageError: With the first mistake found.
    """
    if resume == AUTO:
        last = last_checkpoint(Path(config.work_dir))
        if last is None:
            raise UsageError(f'nothing to resume: {config.work_dir} holds no checkpoint; train without --resume first')
        resume = str(last)
    task = task_of(config)
    model = task.build(config)
    splits = ('train', 'val') if config.get('val_dataloader') else ('train',)
    task.check_model(config, model, splits)
    if resume:
        check_resumable(check_checkpoint(model, resume), resume)
        config.load_from, config.resume = str(Path(resume).resolve()), True
    elif config.get('load_from'):
        check_checkpoint(model, config.load_from, new_classes=True)
    elif pretrained := changes.pretrained_arguments(config):
        if pretrained.pop('strict', True):
            check_checkpoint(model.get_submodule('backbone'), pretrained.pop('checkpoint'), **pretrained)
        else:
            find_checkpoint(pretrained.pop('checkpoint'), **pretrained)
    if config.get('load_from'):
        changes.remove_pretrained(config)  # all of the backbone is in the checkpoint, nothing else need be fetched
    task.check_data(config, model, splits)


def check_resumable(content: Any, path: str) -> None:
    """Look for what a run needs to go on, beside its weights.

    Raises:
        UsageError: If the file holds less, as published ones do.
    """
    lacking = [key for key in ('meta', 'message_hub') if key not in content]
    if lacking or not {'epoch', 'iter'} <= set(content['meta']):
        raise UsageError(
            f'{path} holds weights but no state of a training run ({", ".join(lacking) or "meta without epoch"} '
            f'missing), so that nothing can be resumed: start from it with --cfg-options load_from={path}'
        )
