"""Act on a library when it has been imported, without importing it."""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def when_imported(name: str, action: Action) -> None:
    """Call ``action`` with the module ``name``: now if it has been imported, and whenever it is imported from now on.

    An error of the action is an error of that import. The same action again changes nothing.
    """
    actions = FINDER.actions.setdefault(name, [])
    if action in actions:
        return
    if (module := sys.modules.get(name)) is not None:
        action(module)
    actions.append(action)  # unless it has raised an error: then the next import of this package repeats it
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that something waits for, by asking the other finders, and adds the actions to the loading."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute
            execute(module)
            for action in self.actions.get(module.__name__, ()):  # a loader may be that of several modules
                action(module)

        loader.exec_module = exec_module
        return spec


FINDER = _Finder()
