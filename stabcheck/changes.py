"""`--changed-since REV`: which kernels a change can have touched, by their source and all that it imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import stabcheck
from stabcheck.baselines import file_of
from stabcheck.errors import UsageError
from stabcheck.registry import FUNCTIONS, Kernel

# Files no import leads to: what they change may be anything that is built or installed.
BUILT = {".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".so", ".toml", ".cfg", ".lock", ".txt"}


def split(kernels: Iterable[Kernel], revision: str, ledger: Path, baselines: Path, corpus: Path) -> tuple[list[Kernel], list[Kernel]]:
    """(kernels a change since the revision can have touched, the others).

    A change of the toolkit itself, or of a file that builds or pins something, touches every kernel; one of a baseline or of a reproducer
    touches its own.
    Raises UsageError where there is no repository, or no such revision in it.
    """
    kernels, changed = list(kernels), changed_files(revision) - {ledger.resolve()}
    if any(path.suffix in BUILT or _of_toolkit(path) for path in changed):
        return kernels, []
    recorded = {path.name for path in changed if path.is_relative_to(baselines.resolve())}
    reproduced = "".join(path.read_text() for path in changed if path.is_relative_to(corpus.resolve()) and path.is_file())
    touched = [
        kernel
        for kernel in kernels
        if sources(kernel) & changed or file_of(kernel.id) in recorded or f'"kernel": "{kernel.name}"' in reproduced
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
    listed = _git("diff", "--name-only", "-z", base) + _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", str(root))
    return {(root / name).resolve() for name in listed.split("\0") if name}


def sources(kernel: Kernel) -> set[Path]:
    """The files of a kernel's functions and of all they import, as far as they are loaded."""
    functions = [kernel.function, *kernel.routes.values(), *(getattr(kernel, role) for role in FUNCTIONS)]
    waiting = [str(getattr(function, "__module__", "")) for function in functions if function]
    seen: set[str] = set()
    files: set[Path] = set()
    while waiting:
        name = waiting.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in seen or not file or not file.endswith(".py") or not _own(Path(file)):
            continue
        seen.add(name)
        files.add(Path(file).resolve())
        waiting += [*_imports(name, Path(file)), *_parents(name)]
    return files


def _imports(name: str, file: Path) -> Iterator[str]:
    """Names of modules a module may import: of `from a import b` both a and a.b."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
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
    return not {"site-packages", "dist-packages"} & set(file.parts) and not file.is_relative_to(sys.base_prefix)


def _of_toolkit(path: Path) -> bool:
    from stabcheck import properties

    homes = [Path(home).resolve() for package in (stabcheck, properties) for home in package.__path__]
    return any(path.is_relative_to(home) for home in homes)


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("--changed-since needs git, which is not installed") from None
    if ended.returncode:
        raise UsageError(f"git {arguments[0]}: {' '.join(ended.stderr.split()) or 'nothing in common'}")
    return ended.stdout
