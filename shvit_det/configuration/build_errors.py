"""Which key of a config an error is about that was raised while a part of the config was built."""

import difflib
import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry, build_from_cfg
from mmengine.registry.build_functions import build_scheduler_from_cfg
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..common.errors import RunError, UsageError
from ..data.checking.findings import short
from ..registry import real_class
from .cfg_options import dicts_in, pasteable, places_in
from .reading import type_of
from .type_names import registries
from .value_kinds import fits, parameters_of

# What each method of mmengine's runner takes from the config.
PARTS = {
    'setup_env': 'env_cfg',
    'set_randomness': 'randomness',
    'build_logger': 'log_level',
    'build_log_processor': 'log_processor',
    'build_visualizer': 'visualizer',
    'add_config': 'visualizer',
    'register_default_hooks': 'default_hooks',
    'register_custom_hooks': 'custom_hooks',
    'build_train_loop': 'train_cfg',
    'build_val_loop': 'val_cfg',
    'build_test_loop': 'test_cfg',
    'build_dataloader': 'dataloader',
    'build_evaluator': 'evaluator',
    'build_optim_wrapper': 'optim_wrapper',
    'scale_lr': 'auto_scale_lr',
    '_check_scheduler_cfg': 'param_scheduler',
    'build_param_scheduler': 'param_scheduler',
    'before_run': 'custom_hooks',
    '_init_model_weights': 'model',
    'turn_on_activation_checkpointing': 'activation_checkpointing',
    'turn_on_efficient_conv_bn_eval': 'efficient_conv_bn_eval',
    '_maybe_compile': 'compile',
}
BUILDERS: set[CodeType] = {build_from_cfg.__code__, build_scheduler_from_cfg.__code__}
NO_ARGUMENTS = ('type', 'priority', '_scope_')  # what mmengine takes out of the dict of a hook
OWN_FILES = str(Path(__file__).parents[1])


def raise_refusal(error: Exception, config: Config, part: str = '', beginning: str = '') -> NoReturn:
    """Raise ``UsageError`` in place of an error that is about the config (:func:`refusal_of`), else that error."""
    sentence = None if isinstance(error, UsageError | RunError) else refusal_of(error, config, part)
    if sentence is None:
        raise error
    raise UsageError(f'{beginning}{sentence}') from error


def build_from_config(
    registry: Registry, node: Mapping, config: Config, part: str, scope: str | None, beginning: str
) -> Any:
    """Build a part of a config, ``part`` by its key; ``beginning`` is that of a refusal."""
    with DefaultScope.overwrite_default_scope(scope):
        try:
            return registry.build(node)
        except Exception as error:
            raise_refusal(error, config, part, beginning)


def refusal_of(error: Exception, config: Config, part: str = '') -> str | None:
    """Return one sentence about an error that names the key of the config; None if it is not about the config.

    The frames that the error came through tell: in each of them in which mmengine built something are the dict that it
    was built from, and the class. An error that was raised by a line of this package is not about the config, unless it
    has a value of another kind than the class takes: such a line raises ``UsageError`` if a value is wrong.

    ``part`` is the key of the config that was built, if it was not the runner.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built: list[FrameType] = []
    split, is_hook = 'train', False
    for frame in frames:
        name = frame.f_code.co_name
        if name in PARTS:
            part, built, is_hook = PARTS[name], [], name == 'before_run'
            if part.endswith('_cfg') and part != 'env_cfg':
                split = part.removesuffix('_cfg')
            elif part in ('dataloader', 'evaluator'):
                part = f'{split}_{part}'
        elif frame.f_code in BUILDERS:
            built.append(frame)
    reason = reason_of(error)
    if frames[-1].f_code is Runner.__init__.__code__:
        return reason
    tree = config.get(part) if part else config
    if (unknown := unknown_name(error, frames)) is not None:
        name, registry = unknown
        place = next((place for place, value in places_in(tree, part) if is_name(value, name)), part)
        return unknown_type(place, name, registry)
    if not part or (is_hook and not built):  # a hook that fails, not one that cannot be built
        return None
    place, node, kind = innermost(built, tree, part, frames[-1], error)
    if (sentence := about_arguments(place, node, kind, str(error))) is not None:
        return sentence
    if frames[-1].f_code.co_filename.startswith(OWN_FILES) and not unlike(node, kind):
        return None
    return about_values(place, node, kind, str(error), reason)


def reason_of(error: Exception) -> str:
    """Return an error as one line; an assertion without a text is shown as its line of code."""
    text = ' '.join(str(error).split()) or traceback.extract_tb(error.__traceback__)[-1].line
    return f'{type(error).__name__}: {text}'


def unknown_name(error: Exception, frames: Sequence[FrameType]) -> tuple[str, Registry] | None:
    """Return the name that a registry was asked for and does not have, with the registry, if that is the error."""
    last = len(frames) - 1
    while last > 0 and frames[last - 1].f_code is Registry.get.__code__ is frames[last].f_code:
        last -= 1  # a registry asks others with a part of the name
    names = frames[last].f_locals
    if frames[last].f_code is Registry.get.__code__ and isinstance(error, RuntimeError):
        return names['key'], names['self']
    if frames[last].f_code in BUILDERS and isinstance(error, KeyError):
        name = names.get('obj_type', names.get('scheduler_type'))
        return (name, names['registry']) if isinstance(name, str) else None
    return None


def is_name(value: Any, name: str) -> bool:
    return isinstance(value, str) and (value == name or value.endswith(f'.{name}'))


def unknown_type(place: str, name: str, registry: Registry) -> str:
    """Return the sentence about a name in a config that a registry does not have."""
    sentence = f'{place} is {name!r}, but no such {registry.name.replace("_", " ")} is registered'
    own = [registry]
    while (above := own[-1].parent) is not None:
        own.append(above)
    if others := [each for each in registries() if name in each.module_dict and each not in own]:
        alike = [each for each in others if each.name == registry.name]
        if alike:
            scope = alike[0].scope
            return (
                f'{sentence} in the scope of this config: {scope} has it: write {scope}.{name}, or for all names set '
                f'{pasteable({"default_scope": scope})}'
            )
        return f'{sentence}: {name} is registered as {others[0].name.replace("_", " ")}'
    near = nearest(name.rpartition('.')[2], sorted({known for each in own for known in each.module_dict}))
    hint = f'did you mean {near!r}?' if near else 'name the module that has it in custom_imports'
    return f'{sentence}: {hint}'


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the name among the known ones that a wrong name is probably meant to be, if there is one."""
    lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[found[0]] if found else None


def unknown_key(place: str, name: str, owner: str, known: Sequence[str]) -> str:
    """Return the sentence about a key of a config that the class it is for does not take."""
    near = nearest(name, known)
    hint = f'did you mean {near!r}?' if near else f'it takes {", ".join(known) or "none"}'
    return f'{place}.{name}: {owner} has no argument {name!r}: {hint}'


def innermost(
    built: Sequence[FrameType], tree: Any, part: str, last: FrameType, error: Exception
) -> tuple[str, Any, Any]:
    """Return the innermost dict of the config that was being built: its place, the dict, and what it builds or None."""
    dicts = list(dicts_in(tree, part))
    for frame in reversed(built):
        cfg, kind = frame.f_locals['cfg'], class_built_in(frame)
        if not isinstance(cfg, Mapping):  # a text where a dict is wanted, for instance
            place = next((place for place, value in places_in(tree, part) if value == cfg), part)
            return place, cfg, None
        if alike := [(place, node) for place, node in dicts if type_of(node) == type_of(cfg)]:
            # what was built may be a changed copy of the dict in the config
            return (*max(alike, key=lambda each: 2 * num_shared(cfg, each[1]) - len(each[1])), kind)
    if built:  # of a dict that a class made of its own arguments
        cfg, kind = built[-1].f_locals['cfg'], class_built_in(built[-1])
        place, node = max(dicts, key=lambda each: num_shared(cfg, each[1]), default=(part, tree))
        return (place, node, kind) if isinstance(node, Mapping) and num_shared(cfg, node) else (part, tree, kind)
    kind = None
    if called := re.match(r'(\w+)(\.\w+)?\(\)', str(error)):
        kind = last.f_globals.get(called[1])
        if kind is not None and called[2] not in (None, '.__init__'):
            kind = getattr(kind, called[2][1:], None)
    return part, tree, DataLoader if kind is None and part.endswith('dataloader') else kind


def class_built_in(frame: FrameType) -> Any:
    return real_class(frame.f_locals.get('obj_cls', frame.f_locals.get('scheduler_cls')))


def num_shared(cfg: Mapping, node: Mapping) -> int:
    return sum(key in cfg and (cfg[key] is value or cfg[key] == value) for key, value in node.items())


def about_arguments(place: str, node: Any, kind: Any, text: str) -> str | None:
    """Return the sentence about an argument too many or too few, or a wrong type; None if the error is another."""
    if not isinstance(node, Mapping):
        return None
    owner, names = name_of_class(node, kind), list(parameters_of(kind))
    unexpected = re.search(r"got an unexpected keyword argument '(\w+)'", text)
    if unexpected and unexpected[1] in node:
        return unknown_key(place, unexpected[1], owner, names)
    others = [key for key in node if key not in (*names, *NO_ARGUMENTS)]
    if text.endswith('() takes no arguments') and others:
        return unknown_key(place, others[0], owner, names)
    missing = re.match(r'(\w+)\.__init__\(\) missing \d+ required .*arguments?: (.*)', text)
    if missing and (kind is None or missing[1] in {each.__name__ for each in inspect.getmro(kind)}):
        return f'{place} lacks {missing[2]}, which {owner} needs'
    if 'type' not in node and 'contain the key "type"' in text:
        return f'{place} has no type, which names the class to build'
    if 'type must be a str' in text:
        return f'{place}.type is {node.get("type")!r}, which names no class'
    return None


def about_values(place: str, node: Any, kind: Any, text: str, reason: str) -> str:
    """Return the sentence about a dict that cannot be built, about one key of it if the error tells which."""
    if not isinstance(node, Mapping):
        return f'{place} is {short(node)}: {reason}'
    settings = {str(key): value for key, value in node.items() if key != 'type'}
    named = [key for key in settings if re.search(rf'(?<![a-zA-Z]){re.escape(key)}s?(?![a-zA-Z_])', text)]
    shown = [
        key
        for key, value in settings.items()
        if re.search(rf'(?<![\w.]){re.escape(str(value))}' + (r'(?!\w)' if isinstance(value, str) else r'\W*$'), text)
    ]
    of_another_kind = unlike(node, kind)
    key = next((keys[0] for keys in (named, of_another_kind, shown) if len(keys) == 1), None)
    owner = name_of_class(node, kind)
    if key is None:
        return f'{place} is refused by {owner}: {reason}'
    if key in of_another_kind:
        return wrong_kind(f'{place}.{key}', settings[key], owner)
    return f'{place}.{key} is {short(settings[key])}, which {owner} refuses: {reason}'


def unlike(node: Any, kind: Any) -> list[str]:
    """Return the keys of a dict whose values are not of the kind that the class takes."""
    parameters = parameters_of(kind) if isinstance(node, Mapping) else {}
    plain = {name: node[name] for name in parameters if isinstance(node.get(name), str | int | float)}
    return [name for name, value in plain.items() if not fits(value, parameters[name])]


def wrong_kind(place: str, value: Any, owner: str) -> str:
    """Return the sentence about a text or a number where a class takes something else."""
    kind = 'text' if isinstance(value, str) else 'number'
    return f'{place} is the {kind} {value!r}, but {owner} takes no {kind} there'


def name_of_class(node: Mapping, kind: Any) -> str:
    return str(getattr(kind, '__qualname__', None) or node.get('type') or 'mmengine')
