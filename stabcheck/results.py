"""The results of a session as one JSON file, `stabcheck-report/1`; what every report counts and concludes is counted and concluded here.

Nothing in it depends on how fast the machine was: the same commit, seed and machine give the same bytes. Durations are in durations.json.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stabcheck.errors import UsageError

SCHEMA = "stabcheck-report/1"
PROPERTY = "stabcheck"  # the user property that carries an item's results through reports, xdist and JUnit
HELD, BROKEN, COULD_NOT_RUN, STALE = 0, 1, 3, 4  # exit codes; 2 is wrong use
OUTCOMES = ("passed", "failed", "skipped", "known", "unexpected pass")
NEEDED = ("test", "kernel", "property", "dtype", "device", "arch", "outcome", "tally", "findings")
SHOWN = 12  # of a long list
Report = dict[str, Any]


def read(report: Any) -> dict[str, Any] | None:
    """The results an item's report carries, with its outcome and duration; None for anything else."""
    texts = [value for name, value in report.user_properties if name == PROPERTY]
    final = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if not texts or not final:
        return None
    reason = str(report.longrepr[2]).removeprefix("Skipped: ") if report.skipped and isinstance(report.longrepr, tuple) else ""
    carried: dict[str, Any] = json.loads(texts[-1])
    return {"outcome": report.outcome, "reason": reason} | carried | {"test": report.nodeid, "seconds": report.duration}


def document(items: Iterable[dict[str, Any]], **more: Any) -> Report:
    """The report of some items, sorted, without their durations."""
    from stabcheck.devices import versions

    kept = [{key: value for key, value in item.items() if key != "seconds"} for item in sorted(items, key=lambda item: str(item["test"]))]
    found = sorted({(item["device"], item["arch"]) for item in kept})
    hosts = [{"device": device, "arch": arch, "versions": versions()} for device, arch in found]
    return {"schema": SCHEMA, "profile": "default", "seed": None, "versions": versions(), "hosts": hosts, "items": kept} | more


def write(report: Report, path: Path) -> Path:
    """Write a report in one step; NaN and infinities become strings, which JSON has no numbers for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(report), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    return path


def load(paths: Sequence[Path]) -> Report:
    """Read one report, or join those of several shards and hosts. Raises UsageError for a damaged or a foreign file."""
    read = {path: _load(path) for path in paths}
    reports = sorted(read.values(), key=_sorted_text)  # whatever the order of the files
    if len(reports) == 1:
        return reports[0]
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for path, report in read.items():
        for item in report["items"]:
            before = items.setdefault((item["arch"], item["test"]), item)
            if _answer(before) != _answer(item):
                clash = f"{before['outcome']} in one report and {item['outcome']} in {path}"
                raise UsageError(f"{item['test']} on {item['arch']} is {clash}; join reports of one commit, each trial in one shard")
    first = reports[0]
    joined = {key: value for key, value in first.items() if key not in ("items", "hosts")}
    for key in ("ledger", "baselines", "scope", "mutants"):
        if found := [report[key] for report in reports if report.get(key)]:
            joined[key] = _joined(found)
    if sessions := [report["session"] for report in reports if report.get("session")]:
        joined["session"] = _joined_sessions(sessions, {item["test"] for item in items.values()})
    hosts = _joined([report.get("hosts", []) for report in reports])
    return joined | {"hosts": hosts, "items": sorted(items.values(), key=lambda item: (item["test"], item["arch"]))}


def _answer(item: dict[str, Any]) -> tuple[str, list[str]]:
    return item["outcome"], sorted(finding["id"] for finding in item["findings"])


def _sorted_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _load(path: Path) -> Report:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; name a results.json that a run wrote") from error
    except ValueError as error:
        raise UsageError(f"{path} is truncated or no JSON ({error}); run the suites again to write a new one") from error
    schema = report.get("schema") if isinstance(report, dict) else type(report).__name__
    if schema != SCHEMA:
        raise UsageError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}: name a results.json that a run wrote")
    if missing := [key for key in ("profile", "versions", "items") if key not in report]:
        raise UsageError(f"{path} lacks {missing[0]!r}; run the suites again to write a new one")
    if not isinstance(report["items"], list) or not all(isinstance(item, dict) and item.keys() >= set(NEEDED) for item in report["items"]):
        raise UsageError(f"{path} has items without {', '.join(NEEDED)}; run the suites again to write a new one")
    for item in report["items"]:  # as version 0.1 wrote them
        item.setdefault("corpus", "")
        for part in ("ulps", "by_vocab", "by_magnitude"):
            item["tally"].setdefault(part, {})
        item["tally"].setdefault("short", 0)
    return report  # type: ignore[no-any-return]


def _joined(found: list[Any]) -> Any:
    """Sections of several reports as one: lists are united, the rest is the first's."""
    if isinstance(found[0], list):
        entries = {_sorted_text(entry): entry for part in found for entry in part}
        return [entries[text] for text in sorted(entries)]
    keys = dict.fromkeys(key for part in found for key in part)
    having = {key: [part[key] for part in found if key in part] for key in keys}
    return {key: _joined(parts) if isinstance(parts[0], list) else parts[0] for key, parts in having.items()}


def _joined_sessions(found: list[dict[str, Any]], reported: set[str]) -> dict[str, Any]:
    """How several sessions ended, the worst of them; what one did not select or lost may have run in another."""
    worst = max((session["status"] for session in found), key=lambda status: (status not in (0, 1, 5), status == 1))
    missing = {name: sorted({test for session in found for test in session[name]} - reported) for name in ("lost", "passed_over")}
    return {"status": worst, "deselected": 0} | missing


def counts(report: Report) -> dict[str, int]:
    """Trials by outcome, and distinct findings; every report shows these."""
    items = report["items"]
    by = {outcome: [item for item in items if item["outcome"] == outcome] for outcome in OUTCOMES}
    broken = sum(bool(item["findings"]) for item in by["failed"])
    return {
        "trials": len(items),
        "held": len(by["passed"]),
        "broken": broken,
        "errors": len(by["failed"]) - broken,
        "known": len(by["known"]),
        "unexpected": len(by["unexpected pass"]),
        "not_run": len(by["skipped"]),
        "findings": len(findings(report)),
    }


def findings(report: Report) -> dict[str, dict[str, Any]]:
    """The findings of trials that failed, by id; known ones are the ledger's."""
    return {finding["id"]: finding for item in report["items"] if item["outcome"] == "failed" for finding in item["findings"]}


def judgement(report: Report) -> tuple[int, str]:
    """(exit code, verdict in one line)."""
    n, on = counts(report), " and ".join(sorted({item["device"] for item in report["items"]})) or "no device"
    ran = n["trials"] - n["not_run"]
    baselines, survived = report.get("baselines", {}), report.get("mutants", {}).get("survived", ())
    known = f", {n['known']} known to fail" if n["known"] else ""
    if n["findings"]:
        return BROKEN, f"BROKEN on {on}: {many(n['findings'], 'finding')} in {many(ran, 'trial')}: {few(list(findings(report)))}"
    session = report.get("session", {})
    if lost := session.get("lost"):
        return BROKEN, f"ERROR on {on}: {len(lost)} of {n['trials'] + len(lost)} trials never reported, such as {lost[0]}"
    if n["errors"]:
        return BROKEN, f"ERROR on {on}: {n['errors']} of {ran} trials raised outside the kernel"
    if session.get("status", 0) not in (0, 1, 5):
        return COULD_NOT_RUN, f"NO VERDICT on {on}: the session ended early, with pytest's exit status {session['status']}"
    if session.get("status") == 1 and not n["unexpected"]:
        return BROKEN, f"ERROR on {on}: something failed outside the {ran} trials that ran"
    if loosened := baselines.get("loosened"):
        return BROKEN, f"LOOSENED on {on}: {many(len(loosened), 'accuracy baseline')} got worse, within the bounds"
    if survived:
        return COULD_NOT_RUN, f"NO VERDICT on {on}: the laws did not notice {', '.join(survived)}, broken on purpose"
    if not n["held"] and not n["known"] and not n["unexpected"]:
        if not report["items"] and report.get("scope", {}).get("since"):
            return HELD, f"nothing to test: no kernel changed since {report['scope']['since']}"
        return COULD_NOT_RUN, f"nothing was tested on {on}"
    if stale := sum(entry["state"] in ("unexpected pass", "stale") for entry in report.get("ledger", ())) or n["unexpected"]:
        return STALE, f"STALE on {on}: {many(stale, 'entry', 'entries')} of the ledger no longer {'holds' if stale == 1 else 'hold'}"
    if old := [*baselines.get("missing", ()), *baselines.get("stale", ())]:
        return STALE, f"STALE on {on}: {many(len(old), 'baseline')} missing or left over"
    return HELD, f"held on {on}: {n['held']} of {ran} trials, no finding{known}"


def cleared(directory: Path, names: Sequence[str] = ()) -> None:
    """Make a directory for reports, and remove these files of it. Raises UsageError where nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        for name in names:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}; choose another directory with --report-dir") from error


def few(parts: list[str]) -> str:
    """The first of a list, and how many more there are."""
    return ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")


def many(n: int, what: str, several: str = "") -> str:
    """1 trial, 2 trials."""
    return f"{n} {what if n == 1 else several or what + 's'}"


def _plain(value: Any) -> Any:
    """The same with NaN and infinities as strings, and keys as text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
