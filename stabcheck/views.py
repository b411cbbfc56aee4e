"""What Markdown and the HTML page both show of a results file, as plain rows: laid out there, escaped there, but made once, here.

Counts, findings and the verdict are `stabcheck.results`'; nothing here counts them again.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stabcheck.results import Report

WORDS = {0: "PASS", 1: "FAIL", 3: "NO VERDICT", 4: "STALE"}
ADDRESS = re.compile(r"https?://[\w./#?=&%~:+-]+")  # what may become a link
Bench = dict[str, Any]
Items = list[dict[str, Any]]


@dataclass(frozen=True)
class Listing:
    """Something to act on, as a table: what it is, what to do, its columns and lines."""

    title: str
    advice: str
    head: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Grade:
    """How a kernel did in one dtype on one architecture, over all properties that ran."""

    kernel: str
    dtype: str
    arch: str
    use: float
    law: str  # where it used that much
    ulp: float | None
    examples: int
    rows: int
    elements: int
    ill: float | None  # share of the elements compared


@dataclass(frozen=True)
class Speed:
    """One point of a benchmark; times in µs, `peer` is the fastest one."""

    operation: str
    device: str
    dtype: str
    vocab: int
    rows: int
    ours: float
    peer: str
    theirs: float | None
    ratio: float | None  # ours / theirs
    floor: float | None
    copy: float | None

    @property
    def over(self) -> float | None:
        """Our time in units of the floor."""
        return self.ours / self.floor if self.floor else None


def about(report: Report) -> str:
    """Profile, seed, versions and scope in a line."""
    versions = [f"{name} {report['versions'][name]}" for name in ("torch", "triton") if name in report["versions"]]
    seed = [] if report.get("seed") is None else [f"seed {report['seed']}"]
    since = report.get("scope", {}).get("since")
    return " · ".join([f"profile {report['profile']}", *seed, *versions, *([f"changed since {since}"] if since else [])])


def told(finding: dict[str, Any]) -> str:
    """A finding's text, with the command that replays it if that is not in it."""
    text, replay = clean(str(finding["text"])), clean(str(finding.get("replay", "")))
    return text if replay in text else f"{text}\n  replay   {replay}"


def listings(report: Report) -> list[Listing]:
    """What somebody has to act on beside the findings, the gravest first; empty lists are left out."""
    base = report.get("baselines", {})
    where, arch = base.get("directory", "the baselines' directory"), base.get("arch", "this device")
    errors = [(item["test"], item["device"]) for item in report["items"] if item["outcome"] == "failed" and not item["findings"]]
    survived = [(name,) for name in report.get("mutants", {}).get("survived", ())]
    broken = "Kernels broken on purpose: while the laws miss them here, a pass means nothing."
    found = [
        Listing("Trials that raised outside the kernel", "The suite or the set-up is at fault, see the log.", ("trial", "device"), errors),
        Listing("Mutants not noticed", broken, ("mutant",), survived),
        _moved(
            "Accuracy baselines that got worse",
            f"Within the bounds, but worse than in {where}: mend the kernel, or accept it with stabcheck gate --update-all.",
            base.get("loosened", ()),
        ),
        _entries("Ledger: passes although known to fail", "Remove the entry, and close its issue.", report, "unexpected pass"),
        _entries("Ledger: entries that match nothing", "No such trial or finding is left: remove the entry.", report, "stale"),
        _names("Baselines missing", f"Not in {where} for {arch}: stabcheck gate --update records them.", base.get("missing", ())),
        _names(
            "Baselines left over",
            f"In {where}, but no trial measures them any more: stabcheck gate --update removes them.",
            base.get("stale", ()),
        ),
        _moved("Baselines that got worse and were accepted", "Recorded in this run, as asked.", base.get("accepted", ())),
        _moved("Baselines that can be tightened", "The kernel got better: stabcheck gate --update keeps it so.", base.get("tighter", ())),
    ]
    return [one for one in found if one.lines]


def _moved(title: str, advice: str, changes: Sequence[dict[str, Any]]) -> Listing:
    lines = [(change["kernel"], change["metric"], f"{shown(change['was'])} → {shown(change['now'])}") for change in changes]
    return Listing(title, advice, ("kernel", "metric", "was → now"), lines)


def _entries(title: str, advice: str, report: Report, state: str) -> Listing:
    keys = ("kernel", "property", "dtype", "kind", "issue")
    return Listing(title, advice, keys, [tuple(e[key] for key in keys) for e in report.get("ledger", ()) if e["state"] == state])


def _names(title: str, advice: str, names: Sequence[str]) -> Listing:
    return Listing(title, advice, ("baseline",), [(name,) for name in names])


def grades(report: Report) -> list[Grade]:
    """Kernel × dtype × architecture, of the trials that ran."""
    groups: dict[tuple[str, str, str], Items] = defaultdict(list)
    for item in report["items"]:
        if item["tally"]["examples"]:
            groups[item["kernel"], item["dtype"], item["arch"]].append(item)
    return [_grade(*key, groups[key]) for key in sorted(groups)]


def _grade(kernel: str, dtype: str, arch: str, items: Items) -> Grade:
    totals = [item["tally"]["total"] for item in items]
    use, law = max((number(total["utilisation"]), item["property"]) for total, item in zip(totals, items, strict=True))
    ulp = max((number(item["tally"]["total"]["ulp"]) for item in items if item["tally"].get("ulps")), default=None)
    examples, rows, elements = (sum(item["tally"][name] for item in items) for name in ("examples", "rows", "elements"))
    compared, ill = (sum(total[name] for total in totals) for name in ("compared", "ill"))
    return Grade(kernel, dtype, arch, use, law, ulp, examples, rows, elements, ill / compared if compared else None)


def speeds(benches: Sequence[Bench]) -> list[Speed]:
    """Every point of every benchmark."""
    return [_speed(bench, point) for bench in benches for point in bench["points"]]


def _speed(bench: Bench, point: dict[str, Any]) -> Speed:
    peers = {name: timing["median"] for name, timing in point.get("peers", {}).items()}
    peer = min(peers, key=lambda name: peers[name], default="")
    at, ours, theirs = point["point"], point["ours"]["median"], peers.get(peer)
    names = (bench["operation"], bench["device"], at["dtype"])
    return Speed(*names, at["vocab"], at["rows"], ours, peer, theirs, theirs and ours / theirs, point.get("floor"), point["copy"]["median"])


def number(value: Any) -> float:
    """A number of a results file, where infinities and NaN are strings; NaN counts as infinity, the worst."""
    found = float(value)
    return found if found == found else float("inf")


def shown(value: Any) -> str:
    """A utilisation or an error in ulp: three decimals, or three digits if it is large; - where there is none."""
    if value is None:
        return "-"
    return f"{float(value):.3f}" if abs(float(value)) < 1000 else f"{float(value):.3g}"


class _Shown(dict[int, int]):
    """Code point -> itself, or the replacement character for one that is not to be shown; each is looked up once."""

    def __missing__(self, code: int) -> int:
        hidden = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs") and chr(code) not in "\n\t"
        self[code] = 0xFFFD if hidden else code
        return self[code]


SHOWN = _Shown()


def clean(text: str) -> str:
    """Without control characters, lone surrogates and marks that turn the direction of writing, which could hide what is there."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(SHOWN)


def cut(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
