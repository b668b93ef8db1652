"""Values of the wrong kind in a config, a text where a class takes a dict for instance: found before they are used."""

import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from mmengine.config import Config
from mmengine.runner import Runner

from ..common.errors import UsageError
from ..data.checking.findings import short
from .cfg_options import READ, places_in
from .type_names import registries

# Annotations in OpenMMLab's projects mistake numbers and lists for each other, which therefore are one kind here.
KINDS: dict[str, tuple[type, ...]] = {
    'text': (str,),
    'dict': (dict,),
    'number or list': (bool, int, float, list, tuple),
}
WORDS: dict[type, str] = {str: 'a text', bool: 'True or False', int: 'a number', float: 'a number', dict: 'a dict'}
TRUSTED = ('dataloader', 'evaluator', 'hooks', 'cfg')  # in models and optimizers, annotations mistake texts for numbers
DICTS = ('dataset', 'sampler', 'batch_sampler', 'collate_fn', 'optimizer', 'sample_set')  # mmengine and we build them
SEVERAL = ('dataset', 'ann_file')  # a list of them has a sentence of its own, where data sets are looked for
LISTS_OF_DICTS = ('pipeline', 'datasets', 'metrics', 'vis_backends', 'custom_hooks', 'val_evaluator', 'test_evaluator')


def check_kinds(config: Config) -> None:
    """Compare the values in a config with the annotations of the classes that take them.

    Only classes that have been imported and registered are known. None is left alone.

    Raises:
        UsageError: Naming the first value of another kind than its class takes.
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
        if wants_dict and not is_several and isinstance(node, str | int | float | list | tuple):
            raise UsageError(f'{place} is {short(node)}, where a dict is wanted: dict(type=...)')
        kind = node.get('type') if isinstance(node, Mapping) else None
        if kind is None and wants_dict and isinstance(node, Mapping) and key != 'sample_set':
            raise UsageError(f'{place} is {short(node)}, which has no type, the name of its class')
        if isinstance(kind, str):
            check_values(f'{place}.', node, known.get(kind.rpartition('.')[2], []))


def check_values(prefix: str, node: Mapping, classes: Sequence[type]) -> None:
    """Compare the values of a dict with the annotations of the classes of its type; one of them has to agree."""
    trusted = not prefix or prefix.partition('.')[0].endswith(TRUSTED)
    for key, value in node.items():
        if key in SEVERAL and isinstance(value, list | tuple):
            continue
        hints = [annotations(kind).get(key, Any) for kind in classes]
        kinds = [kind for kind in KINDS if any(takes(hint, kind) for hint in hints)]
        if kinds and (trusted or kinds == ['dict']) and not any(fits(value, hint) for hint in hints):
            wanted = ' or '.join(dict.fromkeys(word for hint in hints for word in words_for(hint)))
            raise UsageError(f'{prefix}{key} is {short(value)}, where {classes[0].__name__} takes {wanted}')


@functools.cache
def annotations(kind: type) -> dict[str, Any]:
    """Return the annotations of what a class is built of, its own and those of the classes that it inherits from."""
    found: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        try:
            found |= get_type_hints(vars(each).get('__init__', object.__init__))
        except (NameError, TypeError, AttributeError):  # they name something that only type checkers import
            found |= dict.fromkeys(inspect.signature(each).parameters, Any)
    return found


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a kind that an annotation allows; True where the annotation does not tell.

    A list of dicts fits where a dict does, since mmengine builds such lists in many places.
    """
    kind = next((kind for kind, kinds in KINDS.items() if isinstance(value, kinds)), None)
    if kind is None or takes(hint, kind) or not any(takes(hint, each) for each in KINDS):
        return True
    is_list_of_dicts = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    return is_list_of_dicts and takes(hint, 'dict')


def takes(hint: Any, kind: str) -> bool:
    """Tell whether an annotation allows values of a kind."""
    bases = [get_origin(each) or each for each in alternatives(hint)]
    return any(
        not isinstance(base, type) or any(issubclass(each, base) or issubclass(base, each) for each in KINDS[kind])
        for base in bases
    )


def words_for(hint: Any) -> Iterator[str]:
    """Yield words for the kinds of values that an annotation allows."""
    for each in alternatives(hint):
        base = get_origin(each) or each
        if base in WORDS or any(takes(each, kind) for kind in KINDS):
            yield WORDS.get(base, 'a list' if takes(each, 'number or list') else 'a dict')


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
