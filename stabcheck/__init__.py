"""stabcheck finds the input that breaks a fused GPU kernel.

The public names load on first use, so that importing the package (as its pytest plugin does) imports neither torch nor triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Kernel": "registry",
    "Mutant": "registry",
    "kernel": "registry",
    "UsageError": "errors",
    "UnsupportedInput": "errors",
    "Recipe": "recipe",
    "materialise": "expansion",
    "recipes": "strategies",
    "suite": "suites",
    "assert_within_bound": "usage",
    "reference": "usage",
    "FILTER_PRESETS": "operations.filters",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'stabcheck' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"stabcheck.{_PUBLIC[name]}"), name)
