"""What makes a pass weaker than it looks: told in the terminal, in Markdown and in HTML alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from stabcheck.errors import UsageError
from stabcheck.regimes import names
from stabcheck.results import Report, few, many

Items = list[dict[str, Any]]


def weak(report: Report) -> list[str]:
    """One line each, the gravest first."""
    items = report["items"]
    return [
        *_interpreter(items),
        *_empty(items),
        *_not_run(items),
        *_left_out(report.get("session", {})),
        *_ill(items),
        *never_drawn(items),
        *_gate(report),
    ]


def _interpreter(items: Items) -> Iterator[str]:
    ran = [item for item in items if item["outcome"] != "skipped"]
    if n := sum(item["arch"] == "interpreter" for item in ran):
        yield f"{n} of {len(ran)} trials ran through the interpreter: logic only, not a GPU's arithmetic"


def _empty(items: Items) -> Iterator[str]:
    told = {
        "vacuous": "compared nothing",
        "unsupported": "refused as unsupported",
        "short": "found too little device memory",
    }
    for name, text in told.items():
        if count := sum(item["tally"][name] for item in items):
            yield f"{many(count, 'example')} {text} ({', '.join(Counter(item['property'] for item in items if item['tally'][name]))})"


def _not_run(items: Items) -> Iterator[str]:
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        if item["outcome"] == "skipped":
            reasons[item["reason"]][item["property"]] += 1
    for reason, properties in sorted(reasons.items()):
        yield f"did not run, {reason}: " + ", ".join(f"{name} × {n}" for name, n in sorted(properties.items()))


def _left_out(session: dict[str, Any]) -> Iterator[str]:
    if n := session.get("deselected"):
        yield f"{many(n, 'trial')} deselected"
    if passed_over := session.get("passed_over"):
        yield f"{many(len(passed_over), 'trial')} skipped beforehand: " + few(passed_over)


def _ill(items: Items) -> Iterator[str]:
    compared, ill = (sum(item["tally"]["total"][key] for item in items) for key in ("compared", "ill"))
    if ill:
        yield f"{ill / compared:.1%} of the elements compared are ill-conditioned: their bound exceeds their magnitude"


def never_drawn(items: Items) -> Iterator[str]:
    """Regimes of inputs that no example of an operation reached."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        if item["tally"]["examples"]:
            rows[item["kernel"].partition("[")[0]].update(item["tally"]["regimes"])
    for operation, counts in rows.items():
        if missing := [name for name in _names(operation) if not counts[name]]:
            yield f"never drawn, {operation}: " + ", ".join(missing)


def _names(operation: str) -> tuple[str, ...]:
    """None for an operation that another version knows."""
    try:
        return names(operation)
    except UsageError:
        return ()


def _gate(report: Report) -> Iterator[str]:
    baselines, scope, known = report.get("baselines", {}), report.get("scope", {}), report.get("ledger", ())
    if baselines.get("state") == "absent":
        yield f"no accuracy baselines for {baselines['arch']} in {baselines['directory']}: stabcheck gate --update records them"
    if known and (failing := [entry for entry in known if entry["state"] == "known"]):
        yield f"known to fail ({len(failing)}): " + few([f"{e['property']} · {e['kernel']} · {e['dtype']}, {e['issue']}" for e in failing])
    if scope.get("left_out"):
        yield f"left out, unchanged since {scope['since']}: " + few(scope["left_out"])
    if report.get("mutants") and not any(report["mutants"].values()):
        yield "no mutant could run here to prove that the laws notice something"
