"""The end of a session: what was gathered becomes one report, held against the ledger and the baselines, and is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stabcheck.baselines import hold
from stabcheck.ledger import Ledger
from stabcheck.results import Report, document, findings, write
from stabcheck.summary import header, lines

RATCHETED = "gate"  # the profile whose examples are the same in every run


def conclude(
    results: Sequence[dict[str, Any]],
    ledger: Ledger,
    baselines: Path,
    trials: set[Any] | None,
    more: dict[str, Any],
    update: str,
    targets: Sequence[str] = (),
) -> Report:
    """The report of a session.

    Parameters
    ----------
    trials: (kernel, property, dtype) of all that was collected, or None if that was not everything.
    more: profile, seed and session. update, targets: as in `baselines.hold`.
    """
    report = document(results, **more)
    if ledger.entries:
        report["ledger"] = ledger.states(report["items"], trials)
    if more["profile"] == RATCHETED:
        arch = report["items"][0]["arch"]
        report["baselines"] = asdict(hold(report["items"], trials, baselines, arch, update, targets))
    return report


def write_all(report: Report, results: Sequence[dict[str, Any]], directory: Path) -> list[str]:
    """Write results.json, durations.json and summary.md; the lines to show in the terminal."""
    shown = [*header(report["items"][0]["device"], report["profile"]), *lines(report)]
    try:
        return [*shown, f"results  {_write(report, results, shown, directory)}"]
    except OSError as error:
        return [*shown, f"results could not be written to {directory}: {error.strerror}; choose --stabcheck-report-dir"]


def _write(report: Report, results: Sequence[dict[str, Any]], shown: list[str], directory: Path) -> Path:
    path = write(report, directory / "results.json")
    durations = {item["test"]: round(item["seconds"], 3) for item in sorted(results, key=lambda item: str(item["test"]))}
    (directory / "durations.json").write_text(json.dumps(durations, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told = "\n\n".join(f"```\n{finding['text']}\n```" for finding in findings(report).values())
    (directory / "summary.md").write_text("# stabcheck run\n\n```\n" + "\n".join(shown) + f"\n```\n{told}\n", encoding="utf-8")
    return path
