"""Results: what a session's items report, gathered from reports (so that xdist and JUnit see the same) and written as one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = "stabcheck-report/1"
PROPERTY = "stabcheck"


def read(report: Any) -> dict[str, Any] | None:
    """The results an item's report carries, with its outcome and duration; None for anything else."""
    texts = [value for name, value in report.user_properties if name == PROPERTY]
    final = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if not texts or not final:
        return None
    reason = str(report.longrepr[2]).removeprefix("Skipped: ") if report.skipped and isinstance(report.longrepr, tuple) else ""
    carried: dict[str, Any] = json.loads(texts[-1])
    return carried | {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "reason": reason}


def write(results: list[dict[str, Any]], directory: Path, profile: str | None, shown: list[str]) -> Path:
    """Write results.json, and summary.md with the lines shown in the terminal, into the report directory."""
    from stabcheck.devices import versions

    directory.mkdir(parents=True, exist_ok=True)
    data = {
        "schema": SCHEMA,
        "profile": profile or "default",
        "versions": versions(),
        "items": sorted(results, key=lambda r: str(r["test"])),
    }
    path = directory / "results.json"
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    findings = {f["id"]: f["text"] for r in results for f in r["findings"]}
    told = "\n\n".join(f"```\n{text}\n```" for text in findings.values())
    (directory / "summary.md").write_text("# stabcheck run\n\n```\n" + "\n".join(shown) + f"\n```\n{told}\n")
    return path
