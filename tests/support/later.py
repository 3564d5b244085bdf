"""Modules that take seconds to import, for files whose tests use them now and then."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class Later:
    """Stand for a module, and import it when something of it is used: collecting tests is quick, and few use torch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_mock_name":
            raise AttributeError(attribute)  # pytest asks every name of a file for these while it collects
        return getattr(imported(self), attribute)


def imported(later: Later) -> ModuleType:
    """Import the module that is stood for; a function, since the module's own names are those of `later`."""
    return importlib.import_module(later._name)
