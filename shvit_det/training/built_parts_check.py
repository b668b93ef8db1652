"""Trials of parts that mmengine has built, and that would fail in their first steps, or do nothing, in a run."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from torch import nn

from ..common.errors import UsageError
from ..configuration.build_errors import nearest
from ..configuration.value_kinds import parameters_of
from .settings_check import check_known, compared_scores


def check_first_steps(schedulers: Any, part: str = 'param_scheduler') -> None:
    """Take a few steps of the schedules; raise ``UsageError`` if one cannot."""
    for key, each in schedulers.items() if isinstance(schedulers, dict) else enumerate(schedulers):
        if isinstance(each, list):
            check_first_steps(each, f'{part}.{key}')
            continue
        try:
            for _ in range(3):
                each.step()
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UsageError(f'{part}.{key} ({type(each).__name__}) fails in its first steps: {error}') from error


def check_monitored(config: Config, evaluator: Evaluator) -> None:
    """Raise ``UsageError`` if hooks compare what is not measured, as far as the metrics' names are known before."""
    if type(evaluator) is not Evaluator:
        return  # others may give the names further prefixes
    metrics = [metric for metric in evaluator.metrics if not isinstance(metric, DumpResults)]
    for place, _, key, names in compared_scores(config):
        for name in names:
            if not any(may_measure(metric, name) for metric in metrics):
                known = [f'{metric.prefix}/{item}' for metric in metrics for item in precisions_of(metric)]
                near = next((each for each in known if each.endswith(name)), nearest(name, known))
                begin = ', '.join(f'{metric.prefix}/' for metric in metrics)
                hint = f'did you mean {near!r}?' if near else f'its names begin with {begin}'
                raise UsageError(f'{place}.{key} is {name!r}, which val_evaluator does not measure: {hint}')


def may_measure(metric: BaseMetric, name: str) -> bool:
    """Tell whether a metric may have a score of that name; what it does not tell before is taken for measured."""
    if not metric.prefix:
        return True
    prefix, _, item = name.rpartition('/')
    items = precisions_of(metric)
    return prefix == metric.prefix and (not items or item in items)


def precisions_of(metric: Any) -> list[str]:
    """Return the names of all that a ``CocoMetric`` of boxes and masks measures; empty for other metrics."""
    if type(metric).__name__ != 'CocoMetric' or metric.classwise or not set(metric.metrics) <= {'bbox', 'segm'}:
        return []
    from ..configuration.evaluators import AP_ITEMS  # which needs mmdet

    return [f'{kind}_{item}' for kind in metric.metrics for item in metric.metric_items or AP_ITEMS]


def check_clipping(wrapper: Any) -> None:
    """Clip a gradient as an optimizer's wrapper will in the first step; raise ``UsageError`` if that is impossible."""
    settings = getattr(wrapper, 'clip_grad_kwargs', None)
    if not settings:
        return
    place, clip = 'optim_wrapper.clip_grad', wrapper.clip_func
    check_known(place, settings, clip.__name__, [name for name in parameters_of(clip) if name != 'parameters'])
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    try:
        clip([parameter], **settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f'{place} is {settings}, which {clip.__name__} refuses: {error}') from error
    if not parameter.grad.item() > 0:
        value = parameter.grad.item()
        raise UsageError(f'{place} is {settings}, with which a gradient of 1 becomes {value:.3g}: set a limit above 0')
