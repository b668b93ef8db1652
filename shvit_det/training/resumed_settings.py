"""What a resumed run takes from its checkpoint and what from its config, and lines for the log on where they differ.

The checkpoint has the state: weights, moments of the optimizer, position. The config has the settings: optimizer,
learning rate, schedules, length, data. Where all settings are those of the checkpoint, its state is taken as it is, to
the last bit. Where the schedules or what they start from are others, they are taken through all steps to the position,
as if the run had had them from its beginning.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..checkpoint.stored_config import stored_config
from ..common.errors import UsageError
from ..configuration.reading import type_of
from .optimizer_state import INITIAL, load_optimizer, planned, saved_settings, scheduled, settings_of
from .schedules import advance, are_same, reset, stretched, take_position

COMPARED = (
    'train_cfg',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'model',
    'custom_hooks',
    'default_hooks',
    'visualizer',
)
FORMER_LENGTHS = 'shvit_det_former_lengths'  # in mmengine's message hub, and so in each checkpoint
LONGEST_VALUE = 60
MOST_LINES = 20


def restore(
    runner: Any, schedules: Any, content: dict[str, Any], path: str | Path, optimizer: bool, scheduler: bool
) -> list[str]:
    """Give the optimizer and the schedules of a run the state in a checkpoint, with the settings of the run.

    Both have just been built, and the runner is at the position of the checkpoint. ``schedules`` is the
    ``param_scheduler`` of its config; ``optimizer`` and ``scheduler`` say which of the states are used.

    Returns:
        Lines for the log: what was in the checkpoint's run and what is now.

    Raises:
        UsageError: If the state belongs to another model.
    """
    batch = content['meta'].get('batch', 0)  # how many iterations of the present epoch are done
    former = former_config(content)
    lines = (differences(former, runner.cfg) if former else []) + new_epoch_length(runner, batch)
    wrapper = runner.optim_wrapper
    if are_configs(schedules):
        schedules, changes = stretched(schedules, *lengths(runner))
        lines += changes
        reset(wrapper)
        runner.param_schedulers = runner.build_param_scheduler(schedules)
    saved = content.get('optimizer') if optimizer else None
    saved_schedules = content.get('param_schedulers') if scheduler else None
    groups = None if saved is None else saved_settings(saved)
    lines += changed_settings(groups, settings_of(wrapper.param_groups))
    reason: str | None = 'they are not in it'
    if saved is not None:
        kind = type_of((former.get('optim_wrapper') or {}).get('optimizer') or {})
        reason = load_optimizer(saved, wrapper, kind, path)
    if reason is not None:
        lines.append(f'the moments of the optimizer start anew: {reason}')
        groups = None
    if 'ema_state_dict' in content and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        lines.append('the weights that go on are the average in it, since this run averages none (--ema)')
    set_position(runner, groups, saved_schedules, batch)
    if groups is not None and (lr := wrapper.param_groups[0]['lr']) != groups[0]['lr']:
        lines.append(f'learning rate at this point: {groups[0]["lr"]:.4g} -> {lr:.4g}')
    return lines


def set_position(
    runner: Any, groups: list[dict[str, Any]] | None, saved: Sequence[Mapping[str, Any]] | None, batch: int
) -> None:
    """Take the schedules, and the values that they change, to the position of the run.

    ``groups`` has the settings of all groups of parameters in the checkpoint, and ``saved`` the states of its
    schedules, each None if this run cannot use it; ``batch`` iterations of the present epoch are done.
    """
    own = runner.optim_wrapper.param_groups
    schedules: list[_ParamScheduler] = runner.param_schedulers or []
    names = scheduled(own[0])
    if groups is not None and saved is not None and len(saved) == len(schedules):
        begins_alike = all(
            planned(group)[name] == planned(former)[name]
            for group, former in zip(own, groups, strict=True)
            for name in names & planned(group).keys()
        )
        if begins_alike and are_same(schedules, saved):
            for group, former in zip(own, groups, strict=True):
                group.update({name: former[name] for name in names})
            for schedule, state in zip(schedules, saved, strict=True):
                schedule.load_state_dict(dict(state))
            return
        # what schedules that wait for scores did until now cannot be repeated
        if any(getattr(each, 'need_val_args', False) for each in schedules):
            for group, former in zip(own, groups, strict=True):
                for name in names & {'lr', 'momentum'} & former.keys():
                    initial = former.get(INITIAL + name, former[name])
                    group[name] = former[name] * (group[INITIAL + name] / initial if initial else 1)
            take_position(schedules, saved)
            return
    advance(schedules, runner.epoch, runner.iter, batch)


def lengths(runner: Runner) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return the lengths that a run had until it was resumed, which it notes, and the one that it has now."""
    hub, length = runner.message_hub, dict(epochs=runner.max_epochs, iterations=runner.max_iters)
    last = dict(epochs=hub.get_info('max_epochs'), iterations=hub.get_info('max_iters'))
    noted = hub.get_info(FORMER_LENGTHS) or {}
    former = {unit: sorted({*noted.get(unit, ()), *([last[unit]] if last[unit] else [])}) for unit in length}
    hub.update_info(FORMER_LENGTHS, former)
    return former, length


def new_epoch_length(runner: Any, batch: int) -> list[str]:
    """Count the iterations of a run at the end of an epoch anew if epochs have another length now."""
    loop = runner.train_loop
    count, former = len(loop.dataloader), runner.iter
    if not isinstance(loop, EpochBasedTrainLoop) or batch or former == runner.epoch * count:
        return []
    loop._iter = runner.epoch * count
    change = f'{former / max(runner.epoch, 1):g} -> {count}'
    return [f'iterations of an epoch: {change}, so that {former} iterations count as {loop._iter}']


def are_configs(schedules: Any) -> bool:
    """Tell whether ``param_scheduler`` holds configs, and not nothing, or schedules of a program without a config."""
    return all(isinstance(each, Mapping) for each in (schedules if isinstance(schedules, list) else [schedules]))


def former_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config in a checkpoint, empty if there is none that can be read without running it."""
    with suppress(UsageError):  # it is only compared; resuming does not need it
        return stored_config(content) or {}
    return {}


def changed_settings(former: list[dict[str, Any]] | None, own: list[dict[str, Any]]) -> list[str]:
    """Return lines on the settings of groups of parameters that differ, for instance ``lr: 0.01 -> 0.02``."""
    lines = []
    pairs = [(planned(old), planned(new)) for old, new in zip(former or (), own, strict=False)]
    for name in planned(own[0]):
        both = [(old[name], new[name]) for old, new in pairs if name in old and name in new]
        changed = [f'{old} -> {new}' for old, new in both if old != new]
        if changed:
            others = f', in {len(changed)} groups of parameters' if len(changed) > 1 else ''
            lines.append(f'{name}: {changed[0]}{others}')
    return lines


def differences(former: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return lines on the settings for training in which two configs differ, the former one first."""
    found = [line for part in COMPARED for line in _compare(former.get(part), own.get(part), part)]
    more = [f'and {len(found) - MOST_LINES} more'] if len(found) > MOST_LINES else []
    return found[:MOST_LINES] + more


def _compare(former: Any, own: Any, place: str) -> Iterator[str]:
    if place.endswith('.init_cfg') or (place.startswith('optim_wrapper.optimizer.') and not place.endswith('.type')):
        return  # the weights are in the checkpoint, and the optimizer's values are compared group by group
    if isinstance(former, Mapping) and isinstance(own, Mapping):
        for name in dict.fromkeys((*former, *own)):
            yield from _compare(former.get(name), own.get(name), f'{place}.{name}')
    elif isinstance(former, list | tuple) and isinstance(own, list | tuple) and len(former) == len(own):
        for index, (old, new) in enumerate(zip(former, own, strict=True)):
            yield from _compare(old, new, f'{place}.{index}')
    elif former != own:
        yield f'{place}: {_short(former)} -> {_short(own)}'


def _short(value: Any) -> str:
    text = 'none' if value is None else repr(value)
    return text if len(text) <= LONGEST_VALUE else f'{text[: LONGEST_VALUE - 3]}...'
