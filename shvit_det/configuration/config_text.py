"""Values as they are written in a config file."""

from collections.abc import Mapping, MutableMapping
from typing import Any


class Variable(str):
    """An expression of the file, such as the name of a variable above."""


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested dicts."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parts, last = key.split('.')
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def lines_of(value: Any) -> str:
    """Return a value as it is written in a config; a list of dicts has one in each line."""
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        return '[\n' + ''.join(f'    {text_of(each)},\n' for each in value) + ']'
    return text_of(value)


def text_of(value: Any) -> str:
    """Return a value as it is written in a config: dicts as calls where their keys allow it."""
    if isinstance(value, Variable):
        return str(value)
    if isinstance(value, MutableMapping):
        items = {key: each for key, each in value.items() if (key, each) != ('_scope_', 'mmdet')}  # the default
        if all(str(key).isidentifier() for key in items):
            return f'dict({", ".join(f"{key}={text_of(each)}" for key, each in items.items())})'
        return '{' + ', '.join(f'{key!r}: {text_of(each)}' for key, each in items.items()) + '}'
    if isinstance(value, list):
        return f'[{", ".join(map(text_of, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(text_of, value))}{"," * (len(value) == 1)})'
    return repr(value)
