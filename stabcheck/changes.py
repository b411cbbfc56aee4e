"""`--changed-since REV`: which kernels a change can have touched, by their source and all that it imports."""

from __future__ import annotations

import ast
import functools
import inspect
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import stabcheck
from stabcheck.baselines import file_of
from stabcheck.errors import UsageError
from stabcheck.registry import FUNCTIONS, Kernel

# Files no import leads to: what they change may be anything that is built or installed.
BUILT = {".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".so", ".toml", ".cfg", ".lock", ".txt"}

PROSE = (".md", ".rst", ".ipynb", "")


def split(kernels: Iterable[Kernel], revision: str, ledger: Path, baselines: Path, corpus: Path) -> tuple[list[Kernel], list[Kernel]]:
    """(kernels a change since the revision can have touched, the others).

    A change of the toolkit itself, or of a file that builds or pins something, touches every kernel; one of a baseline or of a reproducer
    touches its own.
    Raises UsageError where there is no repository, or no such revision in it.
    """
    kernels, everything = list(kernels), changed_files(revision)
    changed = everything - {ledger.resolve()}
    if any(path.suffix in BUILT or _of_toolkit(path) for path in changed):
        return kernels, []
    recorded = {path.name for path in changed if path.is_relative_to(baselines.resolve())}
    reproduced = "".join(_now(path) for path in changed if path.is_relative_to(corpus.resolve()))
    entries = _now(ledger) + _before(revision, ledger) if ledger.resolve() in everything else ""
    touched = [
        kernel
        for kernel in kernels
        if _may_touch(kernel, changed)
        or file_of(kernel.id) in recorded
        or f'"kernel": "{kernel.name}"' in reproduced
        or f'"{kernel.id}"' in entries
    ]
    return touched, [kernel for kernel in kernels if kernel not in touched]


def changed_files(revision: str) -> set[Path]:
    """Files that differ from where the branch left the revision: committed, uncommitted and untracked."""
    root = Path(_git("rev-parse", "--show-toplevel").strip())
    try:
        base = _git("merge-base", "--end-of-options", revision, "HEAD").strip()
    except UsageError as error:
        raise UsageError(
            f"no revision {revision!r} that this branch comes from ({error}); fetch it, with its history (fetch-depth: 0)"
        ) from None
    differ = _git("diff", "--name-only", "--no-relative", "-z", base)
    new = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", str(root))
    return {(root / name).resolve() for name in (differ + new).split("\0") if name}


def _may_touch(kernel: Kernel, changed: set[Path]) -> bool:
    """Whether the kernel's files are among the changed ones, or none of the project's is known: it may be wrapped by a library."""
    own = sources(kernel)
    beside = {path.parent for path in own}
    data = {path for path in changed if path.suffix not in (".py", *PROSE) and path.parent in beside}
    return not own or bool(own & changed) or bool(data)


def _modules(kernel: Kernel) -> list[str]:
    functions = [kernel.function, *kernel.routes.values(), *(getattr(kernel, role) for role in FUNCTIONS)]
    return [str(getattr(_unwrapped(function), "__module__", "")) for function in functions if function]


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def sources(kernel: Kernel) -> set[Path]:
    """The project's files of a kernel's functions and of all that they import, loaded or not."""
    waiting = _modules(kernel)
    seen: set[str] = set()
    files: set[Path] = set()
    while waiting:
        name = waiting.pop()
        file = None if name in seen else _file(name)
        seen.add(name)
        if file is None or file.suffix != ".py" or not _own(file):
            continue
        files.add(file.resolve())
        waiting += [*_imports(name, file), *_parents(name)]
    return files


def _file(module: str) -> Path | None:
    """The file of a module, loaded or not."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        spec = _spec(module)
        file = spec.origin if spec and spec.has_location else None
    return Path(file) if file else None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module would be loaded from, found level by level, so that no package is run for it."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    above = module.rpartition(".")[0]
    parent = _spec(above) if above else None
    places = parent.submodule_search_locations if parent else None
    return PathFinder.find_spec(module, places) if places or not above else None


def _imports(name: str, file: Path) -> Iterator[str]:
    """Names of modules a module may import: of `from a import b` both a and a.b."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _own(file: Path) -> bool:
    """Whether a file is the project's, not an installed library's."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return not {"site-packages", "dist-packages"} & set(file.parts) and not any(file.is_relative_to(library) for library in libraries)


def _of_toolkit(path: Path) -> bool:
    from stabcheck import properties

    homes = [Path(home).resolve() for package in (stabcheck, properties) for home in package.__path__]
    return any(path.is_relative_to(home) for home in homes)


def _now(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _before(revision: str, file: Path) -> str:
    """A file's text in a revision, empty where it was not there."""
    try:
        return _git("show", f"{revision}:./{file}")
    except UsageError:
        return ""


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("--changed-since needs git, which is not installed") from None
    if ended.returncode:
        raise UsageError(f"git {arguments[0]}: {' '.join(ended.stderr.split()) or 'nothing in common'}")
    return ended.stdout
