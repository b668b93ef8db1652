"""What a checkpoint of mmengine says of its run: its config, read as data and not run as Python, and its classes."""

import ast
from collections.abc import Mapping
from typing import Any

from ..common.errors import UsageError

NUMBERS = {text: float(text) for text in ('inf', 'nan')}  # as Python writes them, which are no literals


def meta_of(content: Any) -> Mapping:
    """Return what mmengine writes beside the weights in a checkpoint file, if anything."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def stored_config(content: Any) -> dict[str, Any] | None:
    """Return the config in the content of a checkpoint file, see :func:`parse_config`; None if it has no config."""
    text = meta_of(content).get('cfg')
    return parse_config(text) if isinstance(text, str) and text.strip() else None


def parse_config(text: str) -> dict[str, Any]:
    """Return a config that mmengine wrote as text: ``NAME = VALUE``, the values made of literals and ``dict()``.

    Anything else is refused.
    """
    try:
        config = {}
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or not isinstance(target := statement.targets[0], ast.Name):
                raise ValueError(f'line {statement.lineno} is no NAME = VALUE')
            config[target.id] = value_of(statement.value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise UsageError(
            f'the config in the checkpoint is not the plain data that mmengine writes ({error}), and it is not run'
        ) from error
    return config


def value_of(node: ast.expr) -> Any:
    """Return the value of a literal or of a ``dict()`` of such; else raise ``ValueError``."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[]):
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError(f'line {node.lineno} has **')
            return {str(keyword.arg): value_of(keyword.value) for keyword in node.keywords}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as inner], keywords=[]):
            return value_of(inner)  # as mmengine writes keys that are no names
        case ast.Dict():
            if any(key is None for key in node.keys):
                raise ValueError(f'line {node.lineno} has **')
            pairs = zip(node.keys, node.values, strict=True)
            return {ast.literal_eval(key): value_of(value) for key, value in pairs if key is not None}
        case ast.List():
            return [value_of(item) for item in node.elts]
        case ast.Tuple():
            return tuple(value_of(item) for item in node.elts)
        case ast.Name(id=name) if name in NUMBERS:
            return NUMBERS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id=name)) if name in NUMBERS:
            return -NUMBERS[name]
    return ast.literal_eval(node)


def stored_data_meta(content: Any) -> dict[str, Any]:
    """Return what the content of a checkpoint says of its training data, by names in small letters."""
    meta = meta_of(content)
    stored = meta.get('dataset_meta', meta)  # mmdet 2 has no dict of its own for it
    if isinstance(stored, list | tuple) and stored:
        stored = stored[0]  # of a ConcatDataset
    return {str(key).lower(): value for key, value in stored.items()} if isinstance(stored, Mapping) else {}


def stored_classes(content: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a checkpoint was trained on; None if it does not say."""
    classes = stored_data_meta(content).get('classes')
    if isinstance(classes, str):
        return (classes,)
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else None
