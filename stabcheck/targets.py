"""Targets: the names under which users hand over kernels, and loading them.

target                      meaning
stabcheck.kernels           a package: every kernel registered in it or its submodules (its `mutants` only if asked for by name)
my_pkg.kernels              a module
my_pkg.kernels:softmax      one function, registered there, or given an operation
path/to/kernels.py[:name]   the same in a file
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from stabcheck.errors import UsageError
from stabcheck.registry import FILES, Function, Kernel, make_kernel, registered

BUILT_IN = "stabcheck.kernels"


def load(targets: Iterable[str], operation: str | None = None) -> list[Kernel]:
    """The kernels of some targets. Raises UsageError naming the target, what is wrong with it and what to do."""
    found: dict[str, Kernel] = {}
    for target in targets:
        for kernel in _load(target, operation):
            found[f"{kernel.target} {kernel.id}"] = kernel
    by_id: dict[str, str] = {}
    for kernel in found.values():
        if by_id.setdefault(kernel.id, kernel.target) != kernel.target:
            raise UsageError(f"{by_id[kernel.id]} and {kernel.target} are both called {kernel.id}; give one another name=")
    return list(found.values())


def _load(target: str, operation: str | None) -> list[Kernel]:
    place, _, name = target.partition(":")
    if place and not place.isidentifier() and Path(place).is_dir():
        raise UsageError(f"{target} is a directory; name its files, or the package as it is imported")
    modules = _import(place, target, deep=not name)
    kernels = registered(m.__name__ for m in modules)
    if not name:
        if not kernels:
            cure = f"decorate one with @stabcheck.kernel(OPERATION), or name it: {target}:FUNCTION --operation OPERATION"
            raise UsageError(f"{target} registers no kernel; {cure}")
        return kernels
    named = [k for k in kernels if name in (k.name, k.function.__name__)]
    if named:
        return named
    function = _function(modules[0], place, name)
    if operation is None:
        raise UsageError(f"{target} is not registered; say what it computes, e.g. --operation temperature_softmax")
    return [make_kernel(operation, function)]


def function_of(target: str) -> Function:
    """The function behind `module:name` or `file.py:name`. Raises UsageError if it cannot be imported or is not there."""
    place, _, name = target.partition(":")
    return _function(_import(place, target, deep=False)[0], place, name)


def _function(module: ModuleType, place: str, name: str) -> Function:
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(k.name for k in registered([module.__name__])) or "no kernels"
        raise UsageError(f"{place} has no function {name!r}; it has {known}")
    return function  # type: ignore[no-any-return]


def _import(place: str, target: str, deep: bool) -> list[ModuleType]:
    """The module, and if deep, for a package, its submodules but for mutants."""
    try:
        module = _from_file(place) if place.endswith(".py") else _from_here(place)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"cannot import {target}: {told}; {_cure(place, error)}") from error
    modules = [module]
    for sub in pkgutil.iter_modules(getattr(module, "__path__", ()) if deep else ()):
        if sub.name != "mutants" and not sub.name.startswith("_"):
            modules += _import(f"{module.__name__}.{sub.name}", target, deep)
    return modules


def dotted(target: str) -> str:
    """my_pkg/kernels.py:softmax as my_pkg.kernels:softmax: what goes by it does not change with the way a kernel is given."""
    place, colon, name = target.partition(":")
    return place.removesuffix(".py").removeprefix("src/").replace("/", ".") + colon + name


def short(path: Path) -> str:
    """The path as a user would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _cure(place: str, error: BaseException) -> str:
    if not place or (isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")):
        return "install it or run where it can be imported; a file is given as path/to/file.py"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if place.endswith(".py") and Path(frame.filename) == Path(place).resolve()]
    return f"mend {place}, line {own[-1].lineno}" if own else f"mend {place}"


def _from_here(name: str) -> ModuleType:
    """A module by its name, also one that lies in the current directory, as for python -m."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(place: str) -> ModuleType:
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"no file {place}; check the path")
    name = f"stabcheck_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    FILES[name] = short(path.resolve())  # one name however it was spelled: reproducers and the seeds of examples go by it
    sys.modules[name] = module
    beside = str(path.resolve().parent)  # what lies beside the file can be imported, as for python FILE
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
