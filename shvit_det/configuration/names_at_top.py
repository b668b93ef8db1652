"""Names at the top of a config, and ``--cfg-options`` for them: refused where nothing reads them.

They are names of mmdet 2.x, variables that the file has used already, and typing errors.
"""

import inspect
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..common.errors import UsageError
from ..common.log import warn
from .cfg_options import dicts_in, pasteable, places_in

# The settings at the top of a config that are read after the file: by mmengine's runner, and by us.
READ = {
    *(inspect.signature(Runner.__init__).parameters.keys() - {'self', 'cfg'}),
    *('runner_type', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile', 'strategy'),
    *('activation_checkpointing', 'efficient_conv_bn_eval'),
    *('bad_data', 'channels_last', 'sample_set'),
}
# What mmdet 2 called them; the longest match counts.
FORMER = {
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'evaluation.interval': 'train_cfg.val_interval',
    'evaluation.metric': 'val_evaluator.metric',
    'evaluation.save_best': 'default_hooks.checkpoint.save_best',
    'data.samples_per_gpu': 'train_dataloader.batch_size',
    'data.workers_per_gpu': 'train_dataloader.num_workers',
    'data.train': 'train_dataloader.dataset',
    'data.val': 'val_dataloader.dataset',
    'data.test': 'test_dataloader.dataset',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config.grad_clip': 'optim_wrapper.clip_grad',
    'lr_config': 'param_scheduler.1',
    'runner.max_epochs': 'train_cfg.max_epochs',
    'runner.max_iters': 'train_cfg.max_iters',
    'total_epochs': 'train_cfg.max_epochs',
    'seed': 'randomness.seed',
}
OURS = ('shvit_det', 'mmdet', 'mmpretrain', 'mmcv', 'mmengine')
MOST_OTHERS = 3  # keys that are named only because they have the same value: with more, it means nothing
ALIKE = 0.9  # two long names that differ in one letter or two
KNOWN = sorted(READ | {'tta_model', 'tta_pipeline', 'custom_imports'})

# What shows that a dict of such a name is one of mmdet 2.x, and no variable.
KEYS_OF_MMDET_2: dict[str, set[str]] = dict(
    data={'samples_per_gpu', 'workers_per_gpu'},
    lr_config={'policy'},
    optimizer_config={'grad_clip'},
    evaluation={'interval', 'metric'},
    checkpoint_config={'interval'},
    log_config={'hooks'},
    runner={'max_epochs', 'max_iters'},
)


def is_read(config: Config, top: str) -> bool:
    """Tell whether a setting at the top of a config is read after the file."""
    has_loader = any(config.get(f'{split}_dataloader') for split in ('val', 'test'))
    return top in READ or (top == 'test_pipeline' and not has_loader)  # then it says how new images are read


def may_be_read(config: Config, key: str) -> bool:
    """Tell whether a setting at the top of a config may be for code that the config imports."""
    imports = (config.get('custom_imports') or {}).get('imports') or ()
    modules = [imports] if isinstance(imports, str) else imports
    return key.partition('.')[0] in config and any(each.partition('.')[0] not in OURS for each in modules)


def check_names_at_top(config: Config) -> None:
    """Check the names at the top of a config, as it was read.

    Variables that a file uses for its settings may have any name, and so may what the user's own modules read. A name
    of mmdet 2.x that may be such a variable, whose value was replaced later, is a line in the log.

    Raises:
        UsageError: If one of them does nothing, and it is clear what was meant.
    """
    for name, value in config.items():
        if name in KNOWN or value is None or is_read(config, name) or may_be_read(config, name):
            continue
        now = dict.fromkeys(new for old, new in FORMER.items() if old.partition('.')[0] == name)
        if now and not is_used(config, value):
            sentence = f'{name} is a setting of mmdet 2.x, and nothing reads it: mmdet 3.x has {", ".join(now)}'
            if isinstance(value, Mapping) and not KEYS_OF_MMDET_2.get(name, set()).isdisjoint(value):
                raise UsageError(sentence)
            warn(sentence)
        elif isinstance(value, Mapping | list | tuple):
            near = get_close_matches(name, KNOWN, 1, ALIKE)
            if near and not is_used(config, value):
                raise UsageError(f'nothing reads {name} of the config: did you mean {near[0]!r}?')


def is_used(config: Config, variable: Any) -> bool:
    """Tell whether a variable of a file went into a setting, which may have got other values and more keys since."""
    settings = {name: value for name, value in config.items() if name in KNOWN}
    if not isinstance(variable, Mapping):
        return any(value == variable for _, value in places_in(settings))
    return any(
        variable.keys() <= node.keys() and variable.get('type') == node.get('type')
        for _, node in dicts_in(settings, '')
    )


def warn_if_new(config: Config, key: str) -> None:
    """Log a warning if ``key``, with dots, names nothing that the config has, which mostly is a typing error.

    In a dict without a type, which nothing checks later, one that is nearly the name of another key is refused.
    """
    node: Any = config
    for part in key.split('.'):
        try:
            node = node[int(part) if isinstance(node, list | tuple) else part]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    else:
        return
    names = [str(name) for name in node if name not in ('type', '_scope_')] if isinstance(node, Mapping) else []
    untyped = isinstance(node, Mapping) and 'type' not in node
    if untyped and (near := get_close_matches(part, names, 1, 0.7)):
        raise UsageError(
            f'--cfg-options {key}: the config has no {part!r} there: did you mean {near[0]!r}? A key that is really '
            f'new goes into a config file'
        )
    known = f' beside {", ".join(names)}' if names else ''
    warn(f'--cfg-options {key}: the config has no {part!r} there, it is added{known}')


def why_unread(config: Config, key: str, value: Any) -> tuple[str, list[str]]:
    """Return why a key at the top of a config is read by nothing, with the keys that are meant instead."""
    top, dot, rest = key.partition('.')
    known = top in config
    why = f'{top} is a variable that the file has used already' if known else f'nothing reads {top}'
    if key == 'data_root':
        root = f'--data-root {shlex.quote(str(value))}'
        return f'{why}; {root} names the folder of all data sets and evaluators', [root]
    places = dict(places_in({name: config.get(name) for name in sorted(READ)}))
    last = key.rpartition('.')[2]
    names = [name for name in (place.rpartition('.')[2] for place in places) if not name.startswith('_')]
    near = last if last in names or known else next(iter(get_close_matches(last, names, 1, 0.7)), None)
    named = [place for place in places if place.rpartition('.')[2] == near and not (known and rest)]
    same = [f'{place}{dot}{rest}' for place, there in places.items() if known and is_used_for(config[top], there)]
    meant = named if isinstance(config.get(top), int | float) else same or named
    former = max((old for old in FORMER if not known and f'{key}.'.startswith(f'{old}.')), key=len, default=None)
    if former:
        meant = [FORMER[former] + key.removeprefix(former)]
    if meant:
        why += f'; the keys that are read are {pasteable(dict.fromkeys(meant, value))}'
    others = [place for place in same if place not in meant]
    return why + (f' (of the same value now: {", ".join(others)})' if 0 < len(others) <= MOST_OTHERS else ''), meant


def is_used_for(variable: Any, value: Any) -> bool:
    """Tell whether a value in a config looks as if a variable of the file had gone into it."""
    return bool(variable) and variable is not True and without_scopes(variable) == without_scopes(value)


def without_scopes(node: Any) -> Any:
    """Return nested dicts and lists without the entries that mmengine adds to what comes from another project."""
    if isinstance(node, Mapping):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [without_scopes(value) for value in node] if isinstance(node, list | tuple) else node


def merge_options(config: Config, options: Mapping[str, Any] | None) -> None:
    """Merge ``--cfg-options`` into a config; refuse those that nothing reads, or that do not fit what is there."""
    for key, value in (options or {}).items():
        if not is_read(config, key.partition('.')[0]):
            why, meant = why_unread(config, key, value)
            if meant or not may_be_read(config, key):
                raise UsageError(f'--cfg-options {key} changes nothing: {why}')
            warn(f'--cfg-options {key}: only code of your own can read it')
        warn_if_new(config, key)
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, AttributeError) as error:
            place = key.rpartition('.')[0]
            raise UsageError(
                f'--cfg-options {key} does not fit what the config has there ({error}): set {place} as a whole'
            ) from error
