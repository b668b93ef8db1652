"""The training run behind ``tools/train.py``."""

import errno
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from ..checkpoint import check_checkpoint, find_checkpoint
from ..errors import RunError, UsageError
from . import config as changes
from .fast import enable_amp, enable_fast
from .options import pasteable
from .report import last_metrics, plot_curves
from .resuming import check_resumable, last_checkpoint, newest_whole
from .runner import SHViTRunner
from .tasks import task_of
from .termination import Terminated, listening

AUTO = 'auto'
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


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
    config.work_dir = str(work_dir or config.get('work_dir') or Path('work_dirs') / changes.name_of(config_path))
    check_before_training(config, resume)

    folder = Path(config.work_dir).resolve()
    check_writable(folder)
    curves = None
    with listening() as requests:
        try:
            runner = SHViTRunner.from_cfg(config)
            for choice in choices:
                print_log(choice, 'current')
            runner.train()
            if requests.received_at is not None:
                raise Terminated  # it came during the last evaluation or after it: all is saved
        except (KeyboardInterrupt, Terminated) as error:
            what = 'Interrupted' if isinstance(error, KeyboardInterrupt) else 'Terminated'
            print_log(f'{what}; {way_on(folder)}', 'current')
            raise
        except RunError as error:
            raise RunError(f'{error}; {way_on(folder)}') from error
        except OSError as error:
            if error.errno not in NO_ROOM and not Path(str(error.filename)).is_relative_to(folder):
                raise
            raise UsageError(f'cannot write into {folder} any more ({error.strerror}); {way_on(folder)}') from error
        finally:
            if is_main_process():
                with suppress(OSError):  # a full disk has been told of already
                    curves = plot_curves(folder)

    last = last_checkpoint(folder)
    assert last is not None
    if is_main_process():
        print_log('Validation\n' + task_of(config).table(last_metrics(folder)), 'current')
        print_log(f'Checkpoint: {last}\nCurves: {curves}', 'current')
    return last


def way_on(work_dir: Path) -> str:
    """Return the end of a sentence about a run that ended early."""
    last = last_checkpoint(work_dir)
    return f'the last checkpoint is {last}: go on with --resume' if last else 'no checkpoint was written yet'


def check_writable(work_dir: Path) -> None:
    """Make the work dir and write something into it.

    Raises:
        UsageError: If that does not go.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir) as file:
            file.write(b'a checkpoint will be larger')
            file.flush()
    except OSError as error:
        raise UsageError(
            f'cannot write into the work dir {work_dir} ({error.strerror}): name another one with --work-dir'
        ) from error


def check_before_training(config: Config, resume: str | None) -> None:
    """Find the mistakes that can be found before the start, and settle where the weights come from.

    Raises:
        UsageError: With the first mistake found.
    """
    task = task_of(config)
    model = task.build(config)
    splits = ('train', 'val') if config.get('val_dataloader') else ('train',)
    task.check_model(config, model, splits)
    if resume:
        if resume == AUTO:
            path, content = newest_whole(Path(config.work_dir), model)
        else:
            path, content = Path(resume), check_checkpoint(model, resume)
            check_resumable(content, path)
        config.load_from, config.resume = str(path.resolve()), True
        take_seed(config, content['meta'].get('seed'), path)
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


def take_seed(config: Config, seed: int | None, path: Path) -> None:
    """Let a resumed run have the seed of the run that it goes on with.

    Raises:
        UsageError: If the config or ``--seed`` has another: the rest of the run would fit neither.
    """
    given = (config.get('randomness') or {}).get('seed')
    if seed is not None and given not in (None, seed):
        raise UsageError(
            f'{path} is from a run with seed {seed}, but the seed given is {given}: leave it out, '
            f'or start a new run from the weights with {pasteable(dict(load_from=str(path)))}'
        )
    config.randomness = dict(config.get('randomness') or {}, seed=seed)
