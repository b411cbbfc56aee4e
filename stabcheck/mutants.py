"""`stabcheck mutants`: every kernel broken on purpose must be killed by a law named for it, and shrink as small as its table says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stabcheck.devices import describe, prepare, versions
from stabcheck.errors import UsageError
from stabcheck.registry import Kernel
from stabcheck.results import COULD_NOT_RUN, read
from stabcheck.sessions import collect_reports
from stabcheck.targets import load

MUTANTS = "stabcheck.kernels.mutants"
# One of each operation, killed within seconds on any device: the short form, which a gate runs before it believes a pass.
SHORT = {
    "temperature_softmax": "SM11",
    "logsumexp": "LS4",
    "token_logprob": "CE8",
    "cross_entropy": "CE1",
    "filtered_probs": "SA8",
    "sample": "SA14",
    "verify_speculative": "SA12",
}


@dataclass(frozen=True)
class Kill:
    """How one law fared against one mutant: outcome, examples until it failed, seconds with shrinking, kind and size of the finding."""

    mutant: str
    law: str
    outcome: str
    examples: int = 0
    seconds: float = 0.0
    kind: str = ""
    rows: int = 0
    vocab: int = 0
    small: bool = False

    @property
    def killed(self) -> bool:
        return self.outcome == "failed" and self.small and self.kind != "crash"  # none is made to raise


class Listener:
    """A pytest plugin object that gathers the trials' reports and moves a progress bar."""

    def __init__(self, advance: Any) -> None:
        self.advance = advance
        self.reports: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if (found := read(report)) is not None:
            self.reports.append(found)
            self.advance()


def run_mutants(only: Sequence[str], device: str, report_dir: Path, console: Console) -> int:
    """Run each mutant against its laws, print the table, write mutants.json and mutants.md; 1 if one survives, 3 if none could run."""
    name = prepare(device)
    kernels = _all()
    unknown = [m for m in only if m not in kernels]
    if unknown:
        raise UsageError(f"unknown mutant {unknown[0]!r}; there are {', '.join(kernels)}")
    chosen = {i: k for i, k in kernels.items() if not only or i in only}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("mutants", total=sum(len(k.mutant.killed_by) for k in chosen.values() if k.mutant))
        listener = Listener(lambda: progress.advance(task))
        shown = collect_reports(MUTANTS, name, report_dir / "mutants", _select(chosen) if only else [], listener)
    if not listener.reports or any(r["outcome"] == "failed" and not r["findings"] for r in listener.reports):
        console.print(shown, markup=False)  # the suites themselves broke: show why
    kills = [_kill(r, chosen) for r in listener.reports if _id(r, chosen)]
    return _report(kills, chosen, str(describe(name)), report_dir, console)


def self_test(operations: Collection[str], device: str, report_dir: Path) -> dict[str, list[str]]:
    """The short form: which mutants of some operations the laws noticed, and which survived. Those that cannot run here are in neither."""
    chosen = {i: k for i, k in _all().items() if SHORT.get(k.operation) == i and k.operation in operations}
    if not chosen:
        return {"killed": [], "survived": []}
    listener = Listener(lambda: None)
    collect_reports(MUTANTS, device, report_dir / "mutants", _select(chosen), listener)
    kills = [_kill(r, chosen) for r in listener.reports if _id(r, chosen)]
    killed = sorted({kill.mutant for kill in kills if kill.killed})
    skipped = {kill.mutant for kill in kills} - {kill.mutant for kill in kills if kill.outcome != "skipped"}
    return {"killed": killed, "survived": sorted(set(chosen) - set(killed) - skipped)}


def _all() -> dict[str, Kernel]:
    return {k.mutant.id: k for k in load([MUTANTS]) if k.mutant}


def _select(kernels: dict[str, Kernel]) -> list[str]:
    return ["-k", " or ".join(f"{k.operation}-{k.name}-" for k in kernels.values())]


def _id(report: dict[str, Any], kernels: dict[str, Kernel]) -> str:
    return next((i for i, k in kernels.items() if k.id == report["kernel"]), "")


def _kill(report: dict[str, Any], kernels: dict[str, Kernel]) -> Kill:
    mutant = kernels[_id(report, kernels)].mutant
    assert mutant is not None
    base = Kill(mutant.id, report["property"], report["outcome"], report["tally"]["killed_at"], report["seconds"])
    if not report["findings"]:
        return base
    finding = min(report["findings"], key=lambda f: (f["vocab"], f["rows"]))
    small = finding["rows"] <= (mutant.rows or finding["rows"]) and finding["vocab"] <= (mutant.vocab or finding["vocab"])
    size = {"kind": finding["kind"], "rows": finding["rows"], "vocab": finding["vocab"], "small": small}
    return Kill(**(asdict(base) | size))


def _report(kills: list[Kill], kernels: dict[str, Kernel], device: str, report_dir: Path, console: Console) -> int:
    outcomes = {i: {k.outcome for k in kills if k.mutant == i} for i in kernels}
    skipped, unreached = ([i for i, found in outcomes.items() if found == wanted] for wanted in ({"skipped"}, set()))
    dead = {k.mutant for k in kills if k.killed}
    survivors = [i for i in kernels if i not in dead and i not in skipped and i not in unreached]
    table = Table("mutant", "law", "result", "examples", "seconds", "shrunk to", "allowed")
    rows = [_cells(k, kernels[k.mutant]) for k in sorted(kills, key=lambda k: (list(kernels).index(k.mutant), not k.killed))]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    first = [min((k.seconds for k in kills if k.killed and k.mutant == i), default=0.0) for i in dead]
    verdict = f"{len(dead)} of {len(kernels)} mutants killed on {device}"
    if first:
        verdict += f"; seconds to kill and shrink: median {statistics.median(first):.2f}, worst {max(first):.2f}"
    if skipped:
        verdict += f"; could not run here: {', '.join(skipped)}"
    if unreached:
        verdict += f"; NOT REACHED, the run was cut short: {', '.join(unreached)}"
    if survivors:
        verdict += f"; SURVIVED: {', '.join(survivors)}"
    console.print(verdict, markup=False, soft_wrap=True)
    _write(report_dir, kills, rows, verdict, device)
    return 1 if survivors else 0 if dead and not unreached else COULD_NOT_RUN


def _cells(kill: Kill, kernel: Kernel) -> list[str]:
    assert kernel.mutant is not None
    allowed = f"{kernel.mutant.rows or 'any'} × {kernel.mutant.vocab or 'any'}"
    if kill.outcome == "skipped":
        return [kill.mutant, kill.law, "not run", "", "", "", allowed]
    if kill.outcome == "passed":
        return [kill.mutant, kill.law, "not noticed", "", f"{kill.seconds:.2f}", "", allowed]
    noticed = {"crash": "crashed", "": "error"}.get(kill.kind, f"{kill.kind}, too large")
    result = kill.kind if kill.killed else noticed
    return [kill.mutant, kill.law, result, str(kill.examples), f"{kill.seconds:.2f}", f"{kill.rows} × {kill.vocab}", allowed]


def _write(report_dir: Path, kills: list[Kill], rows: list[list[str]], verdict: str, device: str) -> None:
    report_dir.mkdir(parents=True, exist_ok=True)
    data = {
        "schema": "stabcheck-mutants/1",
        "device": device,
        "versions": versions(),
        "verdict": verdict,
        "kills": [asdict(k) for k in kills],
    }
    (report_dir / "mutants.json").write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    head = ["mutant", "law", "result", "examples", "seconds", "shrunk to", "allowed"]
    table = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    v = ", ".join(f"{name} {version}" for name, version in versions().items())
    (report_dir / "mutants.md").write_text(
        f"# Mutants on {device}\n\n{verdict}.\n\nCommand: `stabcheck mutants`; {v}.\n\n{text}\n", encoding="utf-8"
    )
