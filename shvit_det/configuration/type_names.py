"""Classes and their names in a config: the class that a name stands for, and names in place of classes.

mmengine's configs of pure Python have classes as types.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import get_object_from_string

from ..common.errors import UsageError
from ..registry import real_class

TYPE_KEYS = ('type', 'runner_type', 'constructor')
IMPORTED = (LazyAttr, LazyObject, ModuleType, FunctionType, type)


def use_names(config: Config) -> None:
    """Replace every class or function that stands as a type by its name, so that the tools meet text only.

    Paths become text too. What a file imports or defines at its top is removed: it is no setting, and some of it cannot
    be copied or saved.
    """
    settings = config._cfg_dict
    scope = settings.get('default_scope')
    for key, value in list(dict.items(settings)):  # dict's own method, which does not import mmengine's lazy objects
        if isinstance(value, IMPORTED) and key not in TYPE_KEYS:
            del settings[key]
    pending: list[Any] = [settings]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            for key, value in list(dict.items(node)):
                if key in TYPE_KEYS:
                    node[key] = type_name(value, scope)
                elif isinstance(value, os.PathLike):
                    node[key] = os.fspath(value)
                else:
                    pending.append(value)
        elif isinstance(node, list | tuple):
            pending.extend(node)


def type_name(kind: Any, default_scope: str | None = None) -> Any:
    """Return the name by which mmengine finds a class or function; anything else is returned unchanged.

    It is the name in a registry, as configs of text have it, or else the dotted one.
    """
    if isinstance(kind, LazyAttr | LazyObject):
        kind = kind.build()
    if not (inspect.isclass(kind) or inspect.isfunction(kind)):
        return kind
    if inspect.isfunction(kind) and kind.__module__.startswith('mmcv.ops.'):
        return kind.__name__  # mmcv looks for the type of an NMS among its own names
    for registry in registries():
        name = next((name for name, registered in registry.module_dict.items() if registered is kind), None)
        if name is not None:
            is_hidden = any(name in child.module_dict for child in registry.children.values())
            is_default = registry.scope in (default_scope, root.MODELS.scope) and not is_hidden
            return name if is_default else f'{registry.scope}.{name}'
    return dotted_name(kind)


def registries() -> Iterator[Registry]:
    """Yield mmengine's registries, those of a project before the one that all projects share."""
    for shared in vars(root).values():
        if isinstance(shared, Registry):
            yield from shared.children.values()
            yield shared


def dotted_name(kind: Any) -> str:
    """Return the dotted name by which a class or function can be imported; without one, a config cannot be saved."""
    packages = kind.__module__.split('.')
    for length in range(len(packages), 0, -1):  # a shorter one if a function hides the module of the same name
        name = '.'.join([*packages[:length], kind.__qualname__])
        if get_object_from_string(name) is kind:
            return name
    raise UsageError(f'type={kind.__qualname__} cannot be imported by its name: define it at the top level of a module')


def class_of(registry: Registry, node: Mapping, scope: str | None = None) -> type | None:
    """Return the class that a dict of a config names, or None if there is no such class.

    mmengine looks for the name in ``registry``, and first in the project ``scope``; None is the one that is set.
    """
    kind = node.get('type')
    if isinstance(kind, str):
        kind = real_class(registered(registry, kind, scope))
    return kind if inspect.isclass(kind) else None


def registered(registry: Registry, name: str, scope: str | None = None) -> Any:
    """Return what a registry of mmengine, or of the project of a scope, has under a name, or None."""
    with DefaultScope.overwrite_default_scope(scope), registry.switch_scope_and_registry(None) as switched:
        try:
            return switched.get(name)
        except RuntimeError:  # a module of that name cannot be imported
            return None
