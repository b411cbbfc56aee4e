"""`stabcheck gate`: one command between a pull request of kernels and its merge.

The self-test, then one pytest session (the corpus, then every property in profile gate, whose examples are the same in each run), held
against the ledger and the baselines; then reports, and one exit code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stabcheck.baselines import check as check_baselines
from stabcheck.changes import split
from stabcheck.devices import gpu_available, prepare
from stabcheck.errors import UsageError
from stabcheck.ledger import load as load_ledger
from stabcheck.markdown import markdown
from stabcheck.mutants import self_test
from stabcheck.registry import Kernel
from stabcheck.report import find_benches, write_reports
from stabcheck.results import COULD_NOT_RUN, HELD, Report, cleared, document, judgement, load, write
from stabcheck.sessions import COMMON, NO_TESTS, NOTHING_SELECTED, PYTEST_EXITS, spread
from stabcheck.targets import BUILT_IN
from stabcheck.targets import load as load_targets

REPORTS = ("gate.md", "report.html", "summary.md", "junit.xml", "durations.json")


@dataclass(frozen=True)
class Gate:
    """What is asked of a gate; the command line's options."""

    targets: tuple[str, ...] = (BUILT_IN,)
    operation: str = ""
    device: str = "auto"
    report_dir: Path = Path("reports/latest")
    corpus: Path = Path("reports/corpus")
    ledger: Path = Path("stabcheck-ledger.toml")
    baselines: Path = Path("reports/baselines")
    since: str = ""
    update: str = ""
    mutants: bool = True


def run_gate(gate: Gate, more: Sequence[str], console: Console) -> int:
    """Run it all; the exit code. Raises UsageError for wrong use, before anything has run."""
    if gate.device.startswith("cuda") and not gpu_available():
        console.print(f"could not run: device {gate.device!r} asked for, but torch sees no GPU", markup=False)
        return COULD_NOT_RUN
    _check(gate, more)
    device = prepare(gate.device)
    kernels = load_targets(gate.targets, gate.operation or None)
    touched, left_out = split(kernels, gate.since, gate.ledger, gate.baselines, gate.corpus) if gate.since else (kernels, [])
    about: dict[str, Any] = {"scope": {"since": gate.since, "left_out": [kernel.id for kernel in left_out]}}
    cleared(gate.report_dir, ("results.json", *REPORTS))  # of an earlier run, not to be taken for this one's
    path = gate.report_dir / "results.json"
    if not touched:
        return _finish(gate, document([], profile="gate") | about, HELD, console)
    about["mutants"] = self_test({kernel.operation for kernel in touched}, device, gate.report_dir) if gate.mutants else {}
    status = int(pytest.main(_arguments(gate, device, touched if gate.since else [], more)))
    if not path.is_file():
        console.print(f"gate: {NOTHING_SELECTED}" if status == NO_TESTS else "gate: could not run; pytest says why above", markup=False)
        return PYTEST_EXITS.get(status, COULD_NOT_RUN) or COULD_NOT_RUN
    return _finish(gate, load([path]) | about, PYTEST_EXITS.get(status, COULD_NOT_RUN), console)


def _check(gate: Gate, more: Sequence[str]) -> None:
    """Raise UsageError for a ledger that is wrong, for a path that was named and is not there, or for another profile."""
    for path, default in ((gate.corpus, Gate.corpus), (gate.ledger, Gate.ledger), (gate.baselines, Gate.baselines)):
        if path != default and not path.exists() and not (path == gate.baselines and gate.update):
            raise UsageError(f"there is no {path}; name one that is there, or leave the option out")
    if any(word.startswith("--hypothesis-profile") for word in more):
        raise UsageError("a gate has the profile gate, whose examples are the same in every run; use stabcheck run for another")
    load_ledger(gate.ledger)
    check_baselines(gate.baselines)


def _arguments(gate: Gate, device: str, only: Sequence[Kernel], more: Sequence[str]) -> list[str]:
    """What pytest is told; the corpus comes first."""
    options = {
        "rootdir": Path.cwd(),
        "junitxml": gate.report_dir / "junit.xml",
        "hypothesis-profile": "gate",
        "stabcheck-kernels": ",".join(gate.targets),
        "stabcheck-only": ",".join(kernel.id for kernel in only),
        "stabcheck-device": device,
        "stabcheck-report-dir": gate.report_dir,
        "stabcheck-corpus": gate.corpus,
        "stabcheck-ledger": gate.ledger,
        "stabcheck-baselines": gate.baselines,
        "stabcheck-operation": gate.operation,
        "stabcheck-update": gate.update,
    }
    corpus = [str(gate.corpus)] if gate.corpus.is_dir() else []
    return [*corpus, *COMMON, "-q", *(f"--{name}={value}" for name, value in options.items() if value != ""), *spread(more), *more]


def _finish(gate: Gate, report: Report, status: int, console: Console) -> int:
    """Tell and write; a session that failed for another reason than ours is no pass."""
    code, verdict = judgement(report)
    console.print(f"\ngate: {verdict}", markup=False, highlight=False, soft_wrap=True)
    write(report, gate.report_dir / "results.json")
    benches = find_benches()
    for path in write_reports(report, gate.report_dir, benches):
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):  # where a job tells what it found, if there is such a place
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(report, benches) + "\n")
        except OSError as error:
            console.print(f"  the job's summary {summary} could not be written: {error.strerror}", markup=False, soft_wrap=True)
    return code or status
