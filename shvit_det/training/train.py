"""The training run behind ``tools/train.py``."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..checkpoint import check_checkpoint, find_checkpoint
from ..common.errors import RunError
from ..configuration.cfg_options import pasteable
from ..configuration.changing import enable_auto_scale_lr, remove_pretrained
from ..configuration.reading import pretrained_parts, splits_of
from ..configuration.task import Task
from ..configuration.unread_settings import check_optimizer_keys
from .build_runner import NO_ROOM, built_runner, config_of_run
from .curves import loss_curves, plot_curves, score_curves, validation_losses
from .fast_options import enable_amp, enable_fast
from .first_batch import try_first_batch
from .hook_options import enable_ema, enable_val_loss, log_to, set_monitored
from .hooks.safe_checkpoint import POINTER
from .hooks.termination import Terminated
from .resuming import (
    CheckpointLocation,
    checkpoint_location,
    checkpoint_to_resume,
    last_checkpoint,
    recorded_path,
    take_seed,
)
from .runner import SHViTRunner
from .scores import ScoresHook, run_of, was_evaluated
from .trial_build import check_parts

NONE_SAVED = 'none was written, as default_hooks.checkpoint of the config has it'


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
    ema: bool = False,
    save_best: str | None = None,
    early_stop: int | None = None,
    val_loss: bool = False,
    logged_to: Sequence[str] = (),
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
) -> Path | str | None:
    """Train the model of a config, a detector or a classifier, and return the path of the last checkpoint.

    On remote storage it is an address, and it is None if the config lets no checkpoint be written.

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
        ema: Average the weights over the steps; validations and checkpoints have the average.
        save_best: Keep the checkpoint that is best in this score, ``'bbox'`` for instance.
        early_stop: End after so many validations in which the score of ``save_best`` did not rise.
        val_loss: Compute the losses of the validation images too, for the log and the curves.
        logged_to: Other programs for losses and scores: ``'tensorboard'``, ``'wandb'``, ``'mlflow'``.
        launcher: How several processes were started: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.
        cfg_options: Changes of single values, dotted names.

    Raises:
        UsageError: If the run cannot start; nothing has been written then.
    """
    config, task, log = config_of_run(config_path, cfg_options, 'train', data_root, work_dir, launcher)
    if not pretrained:
        remove_pretrained(config)
    log += [f'--amp: {enable_amp(config)}'] if amp else []
    log += [f'--fast: {enable_fast(config)}'] if fast else []
    log += [f'--ema: {enable_ema(config)}'] if ema else []
    if val_loss:
        enable_val_loss(config)
    if logged_to:
        log_to(config, logged_to)
    task.register()
    log += set_monitored(config, task, save_best, early_stop)
    if auto_scale_lr:
        enable_auto_scale_lr(config)
    if seed is not None:
        config.randomness = dict(config.get('randomness') or {}, seed=seed)
    location = checkpoint_location(config)
    lines, resumed = check_before_training(task, config, location, resume)
    log += lines
    if resumed is not None and (sentence := nothing_to_do(config, location, resumed)):
        print_log(sentence)  # there is no log: nothing is written
        return Path(config.load_from)

    pointed_at = when_pointed(location)
    runner = curves = None
    scores = ScoresHook()
    try:
        with built_runner(config, location.folder, log) as runner:
            if isinstance(runner, SHViTRunner):
                scores = runner.scores
            else:
                runner.register_hook(scores)
            runner.train()
    except (KeyboardInterrupt, Terminated) as error:
        what = 'Interrupted' if isinstance(error, KeyboardInterrupt) else 'Terminated'
        print_log(f'{what}; {how_to_continue(config, location, pointed_at)}', 'current')
        raise
    except RunError as error:
        raise RunError(f'{error}; {how_to_continue(config, location, pointed_at)}') from error
    except OSError as error:
        folders = {location.work_dir, location.folder or location.work_dir}
        if error.errno not in NO_ROOM and not any(Path(str(error.filename)).is_relative_to(f) for f in folders):
            raise
        where, way = ' or '.join(sorted(map(str, folders))), how_to_continue(config, location, pointed_at)
        raise RunError(f'cannot write into {where} any more ({error.strerror}); {way}') from error
    finally:
        if is_main_process() and runner is not None and getattr(runner, 'ran_first_hooks', True):
            with suppress(OSError):  # a full disk has been reported already
                losses = loss_curves(runner) | validation_losses(scores.evaluations)
                curves = plot_curves(location.work_dir, losses, score_curves(scores.evaluations))

    last = saved_by(runner, location)
    if is_main_process():
        evaluation = scores.evaluations[-1] if scores.evaluations else dict(iter=runner.iter, scores={})
        when = f' after {evaluation["iter"]} of {runner.iter} iterations' if evaluation['iter'] != runner.iter else ''
        print_log(f'Validation{when}\n{task.table(evaluation["scores"])}', 'current')
        print_log(f'Checkpoint: {last or NONE_SAVED}', 'current')
        if curves is not None:
            print_log(f'Curves: {curves}', 'current')
    return last


def nothing_to_do(config: Config, location: CheckpointLocation, content: Mapping[str, Any]) -> str | None:
    """Return a sentence if a run that is to be resumed has ended already, else None."""
    unit, name = ('epoch', 'max_epochs') if 'max_epochs' in config.train_cfg else ('iter', 'max_iters')
    done, length = content['meta'][unit], config.train_cfg.get(name)
    if length is None or done < length:
        return None
    path = Path(config.load_from)
    folders, iteration = (location.work_dir, path.parent), content['meta']['iter']
    ends_with_evaluation = done == length and unit == 'epoch' and 'val' in splits_of(config)
    if ends_with_evaluation and not was_evaluated(folders, run_of(content), iteration):
        return None  # it was interrupted there
    plural = 'epochs' if unit == 'epoch' else 'iterations'
    return (
        f'Nothing to do: {path} has {done} {plural}, and train_cfg.{name} is {length}. To go on, set it higher, with '
        f'{pasteable({f"train_cfg.{name}": 2 * done})} for instance'
    )


def saved_by(runner: Runner, location: CheckpointLocation) -> Path | str | None:
    """Return the last checkpoint of a run that has ended, or its address on remote storage, or None."""
    written = runner.message_hub.runtime_info.get('last_ckpt')  # that of the resumed run too
    if written is None:
        return None
    return last_checkpoint(location.work_dir, location.folder) or (
        Path(written) if Path(written).is_file() else written
    )


def when_pointed(location: CheckpointLocation) -> int | None:
    """Return when a checkpoint was last written into a work dir, as the pointer to it shows; None if never."""
    pointer = location.work_dir / POINTER
    return pointer.stat().st_mtime_ns if pointer.is_file() else None


def how_to_continue(config: Config, location: CheckpointLocation, pointed_at: int | None) -> str:
    """Return the end of a message about a run that ended early, before which a checkpoint was written at a time."""
    if when_pointed(location) != pointed_at:
        last = last_checkpoint(location.work_dir, location.folder) or recorded_path(location.work_dir)
        return f'the last checkpoint is {last}: go on with --resume'
    if config.get('resume'):
        return f'the last checkpoint is {config.load_from}: go on with --resume {config.load_from}'
    return 'no checkpoint was written yet'


def check_before_training(
    task: Task, config: Config, location: CheckpointLocation, resume: str | None
) -> tuple[list[str], dict[str, Any] | None]:
    """Raise ``UsageError`` at the first mistake found before the run starts, and set where its weights come from.

    Returns:
        Lines for the log, and what the checkpoint that is resumed holds, None without one.
    """
    splits = [split for split in splits_of(config) if split != 'test']
    model = task.build(config)
    check_optimizer_keys(config, model)
    check_parts(config, model, splits)
    task.check_model(config, model, splits)
    lines, content = [], None
    found = checkpoint_to_resume(config, location, model, resume)
    if found is None and config.get('resume'):
        lines.append(f'resume=True: {location.work_dir} holds no checkpoint yet, so that this run starts anew')
        config.resume = False
    if found is not None:
        path, content = found
        task.check_checkpoint_classes(config, content, str(path), ('train',))
        config.load_from, config.resume = str(path.resolve()), True
        take_seed(config, content['meta'].get('seed'), path)
    elif config.get('load_from'):
        check_checkpoint(model, config.load_from, new_classes=True)
        config.load_from = str(find_checkpoint(config.load_from).absolute())  # for mmengine's runner too
    else:
        for part, pretrained in pretrained_parts(model):
            if pretrained.pop('strict', True):
                check_checkpoint(part, pretrained.pop('checkpoint'), **pretrained)
            else:
                find_checkpoint(pretrained.pop('checkpoint'), **pretrained)
    if config.get('load_from'):
        remove_pretrained(config)  # the checkpoint has the backbone's weights too
    first_images = task.check_data(config, model, splits)
    try_first_batch(task, config, model, splits, first_images)
    return lines, content
