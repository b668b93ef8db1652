"""Schedules of a run that is resumed: compared with those of its checkpoint, taken to its position, made as long as it.

A schedule of mmengine computes each value from the one before, so that it has to go through all steps to its position.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler

from ..common.durations import counted
from ..configuration.own_data import SHORTEST_RISE
from .optimizer_state import INITIAL

POSITION = ('base_values', 'last_step', '_global_step', '_last_value', 'verbose')
PLATEAU_POSITION = ('best', 'num_bad_epochs', 'cooldown_counter')  # of schedules that wait for scores to improve
LENGTHS = ('end', 'T_max', 'total_steps')  # settings that mostly stand for the length of the run


def stretched(
    schedules: Any, former: Mapping[str, Collection[int]], length: Mapping[str, int]
) -> tuple[list[Any], list[str]]:
    """Make schedules that ended with the run end with it again after its length was changed.

    If one of them ends with the run as it is now, the config was written for that, and all stay as they are.

    Args:
        schedules: ``param_scheduler`` of the config.
        former: Lengths that the run had before, in ``'epochs'`` and in ``'iterations'``.
        length: Those that it has now.

    Returns:
        The schedules, and a line for each change.
    """
    given = [schedules] if isinstance(schedules, Mapping) else schedules or ()
    found: list[Any] = [copy.deepcopy(each) for each in given]  # one dict may stand there twice
    places = [
        (index, name, 'epochs' if each.get('by_epoch', True) else 'iterations', each.get('begin', 0))
        for index, each in enumerate(found)
        for name in LENGTHS
        if each.get(name) is not None
    ]
    if any(length[unit] - found[index][name] in (0, begin) for index, name, unit, begin in places):
        return found, []
    lines = []
    for index, name, unit, begin in places:
        value = found[index][name]
        offset = next((offset for offset in (0, begin) if value + offset in former[unit]), None)
        if offset is not None:
            found[index][name] = length[unit] - offset
            lines.append(f'param_scheduler.{index}.{name}: {value} -> {length[unit] - offset}, to end with the run')
    return found, lines


def without_effect(schedules: Any, length: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence about each part of an optimizer's schedules after the end of the run.

    The length of the run is given by ``'epoch'`` and ``'step'``.
    """
    for number, each in enumerate(schedules if isinstance(schedules, list) else ()):
        unit = 'epoch' if each.by_epoch else 'step'
        place, last = f'param_scheduler.{number} ({type(each).__name__})', length[unit]
        late = [str(milestone) for milestone in sorted(getattr(each, 'milestones', ())) if milestone >= last]
        if late:
            yield f'{place}: the run ends after {counted(last, unit)}, before the milestones {", ".join(late)}'
        elif hasattr(each, 'start_factor') and each.end - each.begin < SHORTEST_RISE:
            lasts = counted(each.end - each.begin, unit)
            yield f'{place} lasts {lasts}, and the rate stays at start_factor: let end be {each.begin + 2} or more'
        elif hasattr(each, 'start_factor') and last < each.end < INF:
            yield (
                f'{place}: the run ends after {counted(last, unit)}, before the {counted(each.end, unit)} in which the '
                f'learning rate comes to its full value'
            )


def settings_of_schedule(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a schedule's state that a config sets."""
    changing = (*POSITION, *PLATEAU_POSITION)
    return {name: value for name, value in state.items() if name not in changing and not callable(value)}


def are_same(schedules: Sequence[_ParamScheduler], saved: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether schedules have the settings of those in a checkpoint."""
    own = [settings_of_schedule(each.state_dict()) for each in schedules]
    return own == list(map(settings_of_schedule, saved))


def reset(wrapper: OptimWrapper) -> None:
    """Give all values that schedules change their initial ones, so that schedules can be built anew."""
    for group in wrapper.param_groups:
        for name in [name for name in group if name.startswith(INITIAL)]:
            group[name.removeprefix(INITIAL)] = group[name]


def advance(schedules: Sequence[_ParamScheduler], epochs: int, iterations: int, batch: int) -> None:
    """Take schedules that were just built to a position in the run, as if it had had them from its beginning.

    So many epochs and iterations are done, ``batch`` of the iterations in the present epoch.
    """
    for each in schedules:
        each.optimizer._global_step = 0  # else they warn of steps before those of the optimizer
    by_iteration = [each for each in schedules if not each.by_epoch]
    by_epoch = [each for each in schedules if each.by_epoch]
    done = 0
    for epoch in range(1, epochs + 1):
        end = round((iterations - batch) * epoch / epochs)
        _step(by_iteration, end - done)
        _step(by_epoch, 1)
        done = end
    _step(by_iteration, iterations - done)


def _step(schedules: Sequence[_ParamScheduler], count: int) -> None:
    for _ in range(count if schedules else 0):
        for each in schedules:
            each.step()


def take_position(schedules: Sequence[_ParamScheduler], saved: Sequence[Mapping[str, Any]]) -> None:
    """Take schedules, of which one waits for scores, to the position of those in a checkpoint; settings stay."""
    for each, state in zip(schedules, saved, strict=True):
        names = {'last_step', '_global_step', *PLATEAU_POSITION} & state.keys()
        each.load_state_dict({name: state[name] for name in names})
