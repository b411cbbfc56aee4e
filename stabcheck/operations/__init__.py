"""The operations stabcheck knows; one file each, found by name."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from importlib import import_module

from stabcheck.errors import UsageError
from stabcheck.operations.base import Operation


@lru_cache(maxsize=1)
def all_operations() -> dict[str, Operation]:
    """Every operation, by name."""
    modules = {m.name: import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module.OPERATION for name, module in sorted(modules.items()) if hasattr(module, "OPERATION")}


def operation(name: str) -> Operation:
    """The operation of that name, or a UsageError that lists them."""
    found = all_operations()
    if name not in found:
        raise UsageError(f"unknown operation {name!r}; stabcheck knows {', '.join(found)}")
    return found[name]
