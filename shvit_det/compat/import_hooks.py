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

    An error of the action is an error of that import.
    """
    FINDER.actions.setdefault(name, []).append(action)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    if (module := sys.modules.get(name)) is not None:
        action(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that something waits for, by asking the other finders."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.actions[name])
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, and calls the actions at the end."""

    def __init__(self, loader: Any, actions: Sequence[Action]) -> None:
        self.loader, self.actions = loader, actions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        for action in self.actions:
            action(module)


FINDER = _Finder()
