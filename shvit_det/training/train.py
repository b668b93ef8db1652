"""The training run behind ``tools/train.py``."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from ..checkpoint import check_checkpoint, find_checkpoint
from ..common.errors import RunError, UsageError
from ..configuration import config as changes
from ..configuration.cfg_options import pasteable
from ..configuration.scores import plot_curves
from ..configuration.task_choice import task_of
from .fast_options import enable_amp, enable_fast
from .hooks.termination import Terminated, listening
from .resuming import Place, check_resumable, checkpoints_of, last_checkpoint, newest_whole, place_of, written_last
from .runner import SHViTRunner
from .starting import NO_ROOM, launch, runner_of

AUTO = 'auto'
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
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
) -> Path | str | None:
    """Train the model of a config, a detector or a classifier, and return the path of the last checkpoint.

    It is an address where checkpoints go to remote storage, and None where the config lets none be written.

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
    if 'train' not in changes.splits_of(config):
        raise UsageError(
            f'{config_path} has no train_dataloader, train_cfg and optim_wrapper: there is nothing to train'
        )
    if data_root is not None:
        changes.set_data_root(config, data_root)
    if not pretrained:
        changes.remove_pretrained(config)
    choices = [f'--amp: {enable_amp(config)}'] if amp else []
    choices += [f'--fast: {enable_fast(config)}'] if fast else []
    if auto_scale_lr:
        changes.enable_auto_scale_lr(config)
    if seed is not None:
        config.randomness = dict(config.get('randomness') or {}, seed=seed)
    choices += launch(config, launcher)
    config.work_dir = str(work_dir or config.get('work_dir') or Path('work_dirs') / changes.name_of(config_path))
    place = place_of(config)
    choices += check_before_training(config, place, resume)

    runner = curves = None
    with listening() as requests:
        try:
            with runner_of(config, place.folder) as runner:
                for choice in choices:
                    print_log(choice, 'current')
                runner.train()
            if requests.received:
                raise Terminated(requests.received)  # it came during the last evaluation or after it: all is saved
        except (KeyboardInterrupt, Terminated) as error:
            what = 'Interrupted' if isinstance(error, KeyboardInterrupt) else 'Terminated'
            print_log(f'{what}; {way_on(place)}', 'current')
            raise
        except RunError as error:
            raise RunError(f'{error}; {way_on(place)}') from error
        except OSError as error:
            folders = {place.work_dir, place.folder or place.work_dir}
            if error.errno not in NO_ROOM and not any(Path(str(error.filename)).is_relative_to(f) for f in folders):
                raise
            where = ' or '.join(sorted(map(str, folders)))
            raise UsageError(f'cannot write into {where} any more ({error.strerror}); {way_on(place)}') from error
        finally:
            if is_main_process() and runner is not None:
                with suppress(OSError):  # a full disk has been told of already
                    curves = plot_curves(place.work_dir)

    last = saved_by(runner, place)
    if is_main_process():
        print_log('Validation\n' + task_of(config).table(runner.metrics), 'current')
        print_log(f'Checkpoint: {last or NONE_SAVED}', 'current')
        if curves is not None:
            print_log(f'Curves: {curves}', 'current')
    return last


def saved_by(runner: SHViTRunner, place: Place) -> Path | str | None:
    """Return the last checkpoint of a run that has ended, its address on remote storage, or None if it saved none."""
    written = runner.message_hub.runtime_info.get('last_ckpt')  # also that of the run which this one goes on with
    if written is None:
        return None
    return last_checkpoint(place.work_dir, place.folder) or (Path(written) if Path(written).is_file() else written)


def way_on(place: Place) -> str:
    """Return the end of a sentence about a run that ended early."""
    last = last_checkpoint(place.work_dir, place.folder) or written_last(place.work_dir)
    return f'the last checkpoint is {last}: go on with --resume' if last else 'no checkpoint was written yet'


def check_before_training(config: Config, place: Place, resume: str | None) -> list[str]:
    """Find the mistakes that can be found before the start, and settle where the weights come from.

    Returns lines for the log.

    Raises:
        UsageError: With the first mistake found.
    """
    splits = [split for split in changes.splits_of(config) if split != 'test']
    task = task_of(config)
    config.setdefault('default_scope', task.scope)
    model = task.build(config)
    task.check_model(config, model, splits)
    lines = []
    if not resume and config.get('resume'):
        resume = config.get('load_from') or AUTO
        if resume == AUTO and not written_last(place.work_dir) and not any(checkpoints_of(place)):
            lines.append(f'resume=True: {place.work_dir} holds no checkpoint yet, so that this run starts anew')
            resume, config.resume = None, False
    if resume:
        if resume == AUTO:
            path, content = newest_whole(place, model)
        else:
            path, content = find_checkpoint(resume), check_checkpoint(model, resume)
            check_resumable(content, path)
        lines += [
            f'{path} holds no state of {name}: it starts anew'
            for key, name in (('optimizer', 'optim_wrapper'), ('param_schedulers', 'param_scheduler'))
            if key not in content and config.get(name)
        ]
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
    return lines


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
