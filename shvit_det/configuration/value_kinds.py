"""Values of the wrong kind in a config, a text where a class takes a dict for instance: found before they are used."""

import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmengine.config import Config
from mmengine.runner import Runner

from ..common.errors import UsageError
from ..data.checking.findings import short
from .cfg_options import places_in
from .names_at_top import READ
from .type_names import registries

KINDS: dict[str, tuple[type, ...]] = {
    'text': (str,),
    'number': (bool, int, float),
    'list': (list, tuple),
    'dict': (dict,),
}
WORDS: dict[type, str] = {str: 'a text', bool: 'True or False', int: 'a number', float: 'a number', dict: 'a dict'}
TRUSTED = ('dataloader', 'evaluator', 'hooks', 'cfg')  # in models and optimizers, annotations mistake texts for numbers
DICTS = ('dataset', 'sampler', 'batch_sampler', 'collate_fn', 'optimizer', 'sample_set')  # mmengine and we build them
SEVERAL = ('dataset', 'ann_file')  # a list of them has a sentence of its own, where data sets are looked for
UNKNOWN = inspect.Parameter('unknown', inspect.Parameter.KEYWORD_ONLY, annotation=Any)
LISTS_OF_DICTS = ('pipeline', 'datasets', 'metrics', 'vis_backends', 'custom_hooks', 'val_evaluator', 'test_evaluator')


def check_kinds(config: Config) -> None:
    """Refuse values of another kind than the annotations of the classes that take them say.

    Only classes that have been imported and registered are known. None is left alone.
    """
    known: dict[str, list[type]] = {}
    for registry in registries():
        for name, kind in registry.module_dict.items():
            if inspect.isclass(kind):
                known.setdefault(name, []).append(kind)
    settings = {name: value for name, value in config.items() if name in READ - {'log_level'}}  # which may be a number
    check_values('', settings, [Runner])
    for place, node in places_in(settings):
        above, _, key = place.rpartition('.')
        is_element = key.isdigit() and above.rpartition('.')[2] in LISTS_OF_DICTS
        wants_dict = is_element or key in DICTS or above == 'default_hooks'
        is_several = key in SEVERAL and isinstance(node, list | tuple)
        if not isinstance(node, Mapping):
            if wants_dict and not is_several and isinstance(node, str | int | float | list | tuple):
                raise UsageError(f'{place} is {short(node)}, where a dict is wanted: dict(type=...)')
        elif isinstance(kind := node.get('type'), str):
            check_values(f'{place}.', node, known.get(kind.rpartition('.')[2], []))
        elif kind is None and wants_dict and key != 'sample_set':
            raise UsageError(f'{place} is {short(node)}, which has no type, the name of its class')


def check_values(prefix: str, node: Mapping, classes: Sequence[type]) -> None:
    """Compare the values of a dict with the annotations of the classes of its type; one of them has to agree."""
    trusted = not prefix or prefix.partition('.')[0].endswith(TRUSTED)
    for key, value in node.items():
        if key in SEVERAL and isinstance(value, list | tuple):
            continue
        parameters = [parameters_of(kind).get(key, UNKNOWN).replace(default=UNKNOWN.default) for kind in classes]
        kinds = {kind for parameter in parameters for kind in kinds_taken(parameter)}
        is_checked = trusted or kinds == {'dict'}
        if kinds and is_checked and not any(fits(value, each, alike=('number', 'list')) for each in parameters):
            hints = [parameter.annotation for parameter in parameters]
            wanted = ' or '.join(dict.fromkeys(word for hint in hints for word in words_for(hint)))
            raise UsageError(f'{prefix}{key} is {short(value)}, where {classes[0].__name__} takes {wanted}')


@functools.cache
def parameters_of(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a function, or of the constructors of a class and its bases.

    An annotation that names something which only type checkers import is left out.
    """
    makers = [vars(each).get('__init__') for each in inspect.getmro(kind)] if inspect.isclass(kind) else [kind]
    parameters: dict[str, inspect.Parameter] = {}
    for maker in makers:
        if not (inspect.isfunction(maker) or inspect.ismethod(maker)):
            continue
        try:
            hints = get_type_hints(maker)
        except (NameError, TypeError, AttributeError):
            hints = {}
        for name, parameter in inspect.signature(maker).parameters.items():
            if name != 'self' and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                parameters.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
    return parameters


def fits(value: Any, parameter: inspect.Parameter, alike: Sequence[str] = ()) -> bool:
    """Tell whether a parameter takes a value of this kind, by its annotation and default; True if both are silent.

    A list of dicts fits where a dict does, since mmengine builds such lists in many places. Kinds that are ``alike``
    count as one: annotations in OpenMMLab's projects mistake numbers and lists for each other.
    """
    kind, taken = value_kind(value), kinds_taken(parameter)
    if taken & set(alike):
        taken = taken | set(alike)
    is_list_of_dicts = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return kind is None or not taken or kind in taken or (is_list_of_dicts and 'dict' in taken)


def kinds_taken(parameter: inspect.Parameter) -> set[str]:
    """Return the kinds of values that a parameter takes; empty if that is not known."""
    kinds = {kind for kind in KINDS if parameter.annotation is not Any and takes(parameter.annotation, kind)}
    return kinds | {kind for kind in [value_kind(parameter.default)] if kind is not None}


def value_kind(value: Any) -> str | None:
    return next((kind for kind, types in KINDS.items() if isinstance(value, types)), None)


def takes(hint: Any, kind: str) -> bool:
    """Tell whether an annotation allows values of a kind; a text is no sequence of something else."""
    hints = [each for each in alternatives(hint) if kind != 'text' or get_args(each)[:1] in ((), (str,), (Any,))]
    bases = [get_origin(each) or each for each in hints]
    return any(
        not isinstance(base, type) or any(issubclass(each, base) or issubclass(base, each) for each in KINDS[kind])
        for base in bases
    )


def words_for(hint: Any) -> Iterator[str]:
    """Yield words for the kinds of values that an annotation allows."""
    for each in alternatives(hint):
        base = get_origin(each) or each
        if base in WORDS or any(takes(each, kind) for kind in KINDS):
            yield WORDS.get(base, 'a dict' if takes(each, 'dict') else 'a list')


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, the classes of the values of a Literal, or the annotation itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(each for member in get_args(hint) for each in alternatives(member))
    return tuple({type(each): None for each in get_args(hint)}) if get_origin(hint) is Literal else (hint,)
