"""Sessions behind the command line: `run` is a thin front of pytest, `replay` goes through reproducers."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stabcheck.devices import describe, prepare
from stabcheck.errors import UsageError
from stabcheck.operations import operation as find_operation
from stabcheck.profiles import check_profile
from stabcheck.results import COULD_NOT_RUN, cleared
from stabcheck.targets import BUILT_IN, load

NO_TESTS = 5  # pytest's exit status
PYTEST_EXITS = {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, NO_TESTS: COULD_NOT_RUN}
NOTHING_SELECTED = "nothing was tested: no trial matches the selection; stabcheck list names operations, kernels and properties"
COMMON = ["--pyargs", "stabcheck.properties", "--import-mode=importlib", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def run_suites(targets: Sequence[str], operation: str, device: str, profile: str, report_dir: Path, more: Sequence[str]) -> int:
    """Run the property suites on some targets in one pytest session; returns the exit code."""
    targets = list(targets) or [BUILT_IN]
    name = prepare(device)
    check_profile(profile)
    if operation:
        find_operation(operation)
    _check_order(more)
    load(targets, operation or None)  # a wrong target is told in one line, before pytest starts
    cleared(report_dir)
    arguments = [*COMMON, "-q", f"--rootdir={Path.cwd()}", f"--stabcheck-kernels={','.join(targets)}", f"--stabcheck-device={name}"]
    arguments += [f"--stabcheck-report-dir={report_dir}", *_optional("--stabcheck-operation", operation)]
    arguments += [*_optional("--hypothesis-profile", profile), *spread(more), *more]
    if (status := int(pytest.main(arguments))) == NO_TESTS:
        print(f"stabcheck: {NOTHING_SELECTED}", file=sys.stderr)
    return PYTEST_EXITS.get(status, COULD_NOT_RUN)


def spread(more: Sequence[str]) -> list[str]:
    """Of workers, if some are asked for, each starts on neighbouring trials, which are of one kernel: it is compiled and loaded in few."""
    return ["--dist=worksteal"] if any(word.startswith(("-n", "--numprocesses")) for word in more) else []


def collect_reports(targets: str, device: str, report_dir: Path, more: Sequence[str], plugin: Any) -> str:
    """Run the suites silently, for a caller that listens through its own plugin object; returns what pytest would have shown."""
    arguments = [*COMMON, "-q", f"--rootdir={Path.cwd()}", "-p", "no:cacheprovider", f"--stabcheck-kernels={targets}"]
    arguments += [f"--stabcheck-device={device}", f"--stabcheck-report-dir={report_dir}", "--stabcheck-ledger=", *more]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        pytest.main(arguments, plugins=[plugin])
    return shown.getvalue()


def replay_all(names: Sequence[str], allowed: Sequence[str], device: str, report_dir: Path, console: Console, prune: bool = False) -> int:
    """Replay reproducers, printing FIXED, FAILED or ERROR for each; 0 if all are fixed, 1 if one failed, 2 if one could not run.

    Fixed ones stay, as tests that the bug does not come back; `prune` deletes them, and their scripts.
    """
    where = describe(prepare(device))
    from stabcheck.reproducers import find, kernel_of, read, replay

    worst = 0
    for file in [f for name in names for f in find(name, (report_dir, Path("reports/corpus")))]:
        try:
            reproducer = read(file)
            kernel = kernel_of(reproducer, allowed)
            finding = replay(reproducer, kernel, where)
        except UsageError as error:
            console.print(f"ERROR   {file}: {error}", markup=False)
            worst = 2
            continue
        except Exception as error:  # a damaged file or a broken module; the other reproducers go on
            console.print(f"ERROR   {file}: {type(error).__name__}: {' '.join(str(error).split())}", markup=False)
            worst = 2
            continue
        if finding is None:
            console.print(
                f"FIXED   {reproducer.id}  {reproducer.property_name} · {kernel.id} · {reproducer.dtype} on {where}", markup=False
            )
            for done in (file, file.with_name(f"repro_{reproducer.id}.py")) if prune else ():
                done.unlink(missing_ok=True)
        else:
            console.print(f"FAILED  {reproducer.id}\n{finding.text()}", markup=False)
            worst = max(worst, 1)
    return worst


def _check_order(options: Sequence[str]) -> None:
    """Raise UsageError for a target behind an option, which pytest would take for a test file."""
    for word in options:
        if not word.startswith("-") and re.search(r"\.py(:\w+)?$", word):
            raise UsageError(f"target {word} stands behind an option; put targets first: stabcheck run {word} …")


def _optional(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value else []
