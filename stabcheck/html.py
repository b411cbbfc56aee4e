"""The report as one HTML page that needs nothing else: no script, no font, no request; dark, light and print by its own style sheet.

jinja2 escapes what comes from results; the only markup handed to the template is the panels of `stabcheck.plots`, which hold none of it.
A page stays below LIMIT: what is too much is cut, and the page says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stabcheck.plots import plots
from stabcheck.results import Report, counts, findings, judgement
from stabcheck.views import ADDRESS, WORDS, Bench, about, clean, cut, grades, listings, number, shown, speeds, told
from stabcheck.weakness import weak

LIMIT = 390_000  # bytes
STEPS = 10  # of the colour scale
CELLS = {
    "broken": ("✗", "broken"),
    "raised": ("E", "raised outside the kernel"),
    "unexpected pass": ("!", "passes although known to fail"),
    "known": ("K", "known to fail"),
    "skipped": ("○", "not run"),
}


@dataclass(frozen=True)
class Caps:
    """How much of a long report is shown: findings, characters of a text, lines of a table, kernels of a heat map."""

    findings: int
    text: int
    lines: int
    kernels: int


CAPS = (Caps(100, 4000, 250, 60), Caps(60, 2000, 150, 40), Caps(40, 1000, 60, 25), Caps(10, 500, 20, 10), Caps(3, 200, 3, 3))


@dataclass(frozen=True)
class Cell:
    """A kernel under a property: its CSS classes, the worst use of the bound, marks of what did not simply hold."""

    look: str = ""
    text: str = "-"
    marks: tuple[tuple[str, str], ...] = ()
    by_dtype: str = ""


@dataclass(frozen=True)
class HeatMap:
    """One architecture: its kernels, which of them begin another operation, a line of cells for each property."""

    arch: str
    kernels: list[str]
    firsts: list[bool]
    lines: list[tuple[str, list[Cell]]]
    left_out: int


def html(report: Report, benches: Sequence[Bench] = ()) -> str:
    """The page."""
    times = speeds(benches)
    drawn, missing = plots(report, times)
    code, line = judgement(report)
    context = {
        "word": WORDS[code],
        "line": line,
        "about": about(report),
        "counts": {name.replace("_", " "): n for name, n in counts(report).items()},
        "weak": weak(report),
        "findings": [finding | {"text": told(finding)} for finding in findings(report).values()],
        "lists": listings(report),
        "marks": CELLS,
        "steps": range(STEPS + 1),
        "plots": drawn,
        "missing": missing,
        "grades": grades(report),
        "times": times,
        "hosts": _hosts(report),
        "commands": list(_commands(report, benches)),
    }
    template = _environment().get_template("report.html.j2")
    for caps in CAPS:
        page = template.render(context, caps=caps, heat_maps=list(_heat_maps(report, caps.kernels)))
        if len(page.encode()) < LIMIT:
            break
    return page


def _environment() -> Environment:
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clean": _clean, "shown": shown, "svg": Markup}
    environment.tests["address"] = ADDRESS.fullmatch
    return environment


def _clean(value: Any, most: int = 300) -> str:
    return cut(clean(str(value)[: most + 1]), most)


# ---- the heat map


def _heat_maps(report: Report, most: int) -> Iterator[HeatMap]:
    """One for each architecture; too many kernels are cut to those that did not simply hold, and others."""
    groups: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for item in report["items"]:
        if item.get("corpus") and item["outcome"] == "skipped":
            continue  # a reproducer of a kernel that is not under test
        groups[item["arch"]][item["kernel"]][item["property"]].append(item)
    for arch, by_kernel in sorted(groups.items()):
        failing = {
            k for k, laws in by_kernel.items() if any(i["outcome"] not in ("passed", "skipped") for items in laws.values() for i in items)
        }
        kernels = sorted(sorted(by_kernel, key=lambda name: (name not in failing, name))[:most])
        properties = sorted({name for kernel in kernels for name in by_kernel[kernel]})
        lines = [(name, [_cell(by_kernel[kernel][name]) for kernel in kernels]) for name in properties]
        operations = [kernel.partition("[")[0] for kernel in kernels]
        firsts = [before != operation for before, operation in zip(["", *operations], operations, strict=False)]
        yield HeatMap(arch, kernels, firsts, lines, len(by_kernel) - len(kernels))


def _cell(items: list[dict[str, Any]]) -> Cell:
    used: dict[str, float] = {}
    for item in items:  # a reproducer of the corpus and a trial may share a cell
        if item["tally"]["examples"]:
            used[item["dtype"]] = max(number(item["tally"]["total"]["utilisation"]), used.get(item["dtype"], 0.0))
    states = {_state(item) for item in items}
    marks = tuple(mark for state, mark in CELLS.items() if state in states)
    dtypes = dict.fromkeys(item["dtype"] for item in items)
    told_ = ", ".join(f"{dtype} {shown(used[dtype]) if dtype in used else 'not run'}" for dtype in dtypes)
    if not used:
        return Cell("off" if marks else "", "" if marks else "-", marks, told_)
    worst = max(used.values())
    look = f"u{min(STEPS, int(worst * STEPS))}" + (" bad" if states & {"broken", "raised"} else "")
    return Cell(look, f"{worst:.3g}" if worst > 1 else shown(worst) if worst else "0", marks, told_)


def _state(item: dict[str, Any]) -> str:
    if item["outcome"] != "failed":
        return str(item["outcome"])
    return "broken" if item["findings"] else "raised"


# ---- where it ran, and how to run it again


def _hosts(report: Report) -> list[dict[str, str]]:
    """A line for each host; older results name them in their items only."""
    items = sorted({(item["device"], item["arch"]) for item in report["items"]})
    hosts = report.get("hosts") or [{"device": device, "arch": arch, "versions": report["versions"]} for device, arch in items]
    return [{"device": host["device"], **host.get("versions", {})} for host in hosts]


def _commands(report: Report, benches: Sequence[Bench]) -> Iterator[tuple[str, str]]:
    """(what it makes again, command)."""
    if report["profile"] == "gate":
        since = report.get("scope", {}).get("since")
        yield "the run", "stabcheck gate" + (f" --changed-since {since}" if since else "")
    else:
        profile = "" if report["profile"] == "default" else f" --profile {report['profile']}"
        yield "the run", f"stabcheck run{profile}" + ("" if report.get("seed") is None else f" --hypothesis-seed={report['seed']}")
    yield "this page", "stabcheck report results.json"
    for bench in benches:
        if bench.get("command"):
            yield f"the times of {bench['operation']}", bench["command"]
