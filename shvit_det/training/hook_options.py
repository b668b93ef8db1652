"""The options of the train tool that add hooks or visualizer backends to a config."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook, EMAHook

from ..common.errors import UsageError
from ..configuration.cfg_options import pasteable
from ..configuration.reading import splits_of
from ..configuration.task import Task
from .hooks.validation_loss import ValidationLossHook, with_annotations_first
from .settings_check import BACKEND_PACKAGES, as_list, compared_scores, has_hook, hooks_of

LOGGERS = dict(tensorboard='TensorboardVisBackend', wandb='WandbVisBackend', mlflow='MLflowVisBackend')
# The average reaches back over a tenth of the steps until then, and over 5000 steps at most.
EMA = dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=10, momentum=0.0002, update_buffers=True)
NO_VALIDATION = 'needs a validation, and this config has no val_dataloader, val_cfg and val_evaluator'
SMALLEST_GAIN = 1e-6  # in a score, so that an equal one is no gain


def add_hook(config: Config, hook: dict[str, Any]) -> None:
    config.custom_hooks = [*(config.get('custom_hooks') or []), hook]


def enable_ema(config: Config) -> str:
    """Average the weights over the steps; return what was set, for the log."""
    if has_hook(config, EMAHook):
        return 'averaged weights as in the config'
    add_hook(config, dict(EMA))
    return 'validations and checkpoints have averaged weights'


def enable_val_loss(config: Config) -> None:
    """Compute the losses of the validation images too; raise ``UsageError`` without validation or annotations."""
    if 'val' not in splits_of(config):
        raise UsageError(f'--val-loss {NO_VALIDATION}')
    with_annotations_first(config.val_dataloader)  # raises
    if not has_hook(config, ValidationLossHook):
        add_hook(config, dict(type='ValidationLossHook'))


def log_to(config: Config, names: Sequence[str]) -> None:
    """Give the losses and scores of a run to other programs too, some of ``LOGGERS``."""
    for name in names:
        if name not in LOGGERS:
            raise UsageError(f'--log-to {name}: choose from {", ".join(LOGGERS)}')
        package = BACKEND_PACKAGES[LOGGERS[name]]
        if find_spec(package) is None:
            raise UsageError(f'--log-to {name} needs {package}, which is not installed: pip install {package}')
    visualizer = config.get('visualizer') or dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = list(visualizer.get('vis_backends') or [])
    present = {each.get('type') for each in backends}
    wanted = [backend(name, config) for name in dict.fromkeys(names)]
    visualizer['vis_backends'] = [*backends, *(each for each in wanted if each['type'] not in present)]
    config.visualizer = visualizer


def backend(name: str, config: Config) -> dict[str, Any]:
    """Return the dict of a visualizer's backend that writes into the work dir, or where its environment says."""
    made: dict[str, Any] = dict(type=LOGGERS[name])
    if name == 'mlflow':
        folder = Path(config.work_dir).absolute()
        made |= dict(exp_name=folder.name, tracked_config_keys=['optim_wrapper', 'train_cfg', 'train_dataloader'])
        made['tracking_uri'] = os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{folder / "mlflow.db"}'
        if 'MLFLOW_TRACKING_URI' not in os.environ:
            made['artifact_location'] = (folder / 'mlartifacts').as_uri()
            made['artifact_suffix'] = ()  # else it would copy the files of the work dir into this folder of it
    return made


# ----- scores that are compared between validations


def full_name(name: str, known: Sequence[str], place: str) -> str:
    """Return the known score that a short name means: ``coco/bbox_mAP`` for ``bbox``, ``mAP`` or ``bbox_mAP``.

    ``place`` is where the name was given, for the message if there is no such score.
    """
    last = {each: each.rpartition('/')[2] for each in known}
    ways = (
        [each for each in known if each == name],
        [each for each in known if last[each] in (name, f'{name}_mAP')],
        [each for each in known if last[each].endswith(f'_{name}')],
    )
    found = next(filter(None, ways), [])
    if len({each.rpartition('/')[0] for each in found}) != 1:
        which = 'which several data sets have' if found else 'which val_evaluator does not measure'
        raise UsageError(f'{place} is {name!r}, {which}: choose from {", ".join(found or known)}')
    return found[0]


def set_monitored(config: Config, task: Task, save_best: str | None, early_stop: int | None) -> list[str]:
    """Set ``--save-best`` and ``--early-stop``, and give hooks the full names of the scores that they compare.

    Return lines for the log.
    """
    validates = 'val' in splits_of(config)
    for option, value in (('--save-best', save_best), ('--early-stop', early_stop)):
        if value is not None and not validates:
            raise UsageError(f'{option} {NO_VALIDATION}')
    compared = list(compared_scores(config))
    known = task.score_names(config) if validates and (save_best or early_stop or compared) else []
    for place, node, key, names in compared if known else ():
        full = [full_name(name, known, f'{place}.{key}') for name in names]
        node[key] = full[0] if isinstance(node[key], str) else full
    lines = []
    if save_best is not None:
        best = full_name(save_best, known, '--save-best') if known else save_best
        checkpoint_hook(config)['save_best'] = best
        lines.append(f'--save-best: {best}')
    if early_stop is not None:
        lines.append(f'--early-stop: {set_early_stop(config, early_stop, known)}')
    return lines


def checkpoint_hook(config: Config) -> Any:
    """Return the dict of the hook that saves checkpoints; a config without one gets it."""
    hooks = config.setdefault('default_hooks', {})
    if hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1)) is None:
        raise UsageError('default_hooks.checkpoint of this config is None, so that no best checkpoint can be saved')
    return hooks['checkpoint']


def set_early_stop(config: Config, patience: int, known: Sequence[str]) -> str:
    """End a run when the score of ``save_best`` has not risen for some validations; return what was set, for the log.

    Without a ``save_best`` it is the first score, which then also decides on the best checkpoint.
    """
    if patience < 1:
        raise UsageError(f'--early-stop is {patience}: it takes the number of validations to wait, from 1 on')
    for _, node, kind in hooks_of(config):
        if issubclass(kind, EarlyStoppingHook):
            node['patience'] = patience
            return f'after {patience} validations in a row without a better {node.get("monitor")}, as in the config'
    hook = checkpoint_hook(config)
    best = hook.get('save_best')
    named = [name for name in as_list(best) if isinstance(name, str) and name != 'auto'] or list(known[:1])
    if not named:
        example = pasteable({'default_hooks.checkpoint.rule': 'greater'})
        raise UsageError(
            f'--early-stop needs the name of a score: add --save-best NAME, and {example} for its direction'
        )
    hook.setdefault('save_best', named[0])
    rule = hook.get('rule')
    stopping = dict(type='ResumableEarlyStoppingHook', monitor=named[0], patience=patience, min_delta=SMALLEST_GAIN)
    if rule is not None:
        stopping['rule'] = rule if isinstance(rule, str) else rule[0]
    add_hook(config, stopping)
    return f'after {patience} validations in a row without a better {named[0]}'
