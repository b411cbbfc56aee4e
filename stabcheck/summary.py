"""The summary of a session, as lines of text: generators without I/O."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from stabcheck.baselines import advice
from stabcheck.devices import versions
from stabcheck.ledger import advice as ledger_advice
from stabcheck.regimes import names
from stabcheck.results import Report, findings, judgement
from stabcheck.weakness import weak

WIDTH = 80
Results = list[dict[str, Any]]


def header(device: str, profile: str | None) -> list[str]:
    """Device, arch, interpreter or not, profile, versions."""
    v, interpreted = versions(), "interpreter" in device
    how = ": logic only, not the GPU's arithmetic" if interpreted else ""
    parts = [
        f"stabcheck: {device}{how} · profile {profile or ('cpu' if interpreted else 'gpu')}",
        f"torch {v['torch']} · triton {v['triton']}",
    ]
    line = " · ".join(parts)
    return [line] if len(line) <= WIDTH else [parts[0], "  " + parts[1]]


def lines(report: Report) -> Iterator[str]:
    """What ran, how close to its bounds, what was exercised, what makes a pass weak, and the verdict."""
    ran = [item for item in report["items"] if item["tally"]["examples"]]
    yield from _table([item for item in ran if not item["corpus"]])
    yield from _accuracy(ran)
    yield from _chance(ran)
    yield from _regimes(ran)
    yield from _weak(report)
    yield from _known(report)
    yield from _verdict(report)


def _table(ran: Results) -> Iterator[str]:
    groups: dict[tuple[str, str], Results] = defaultdict(list)
    operations = dict.fromkeys(r["kernel"].partition("[")[0] for r in ran)
    for r in sorted(ran, key=lambda r: (list(operations).index(r["kernel"].partition("[")[0]), r["kernel"])):  # xdist mixes them
        groups[r["kernel"], r["dtype"]].append(r)
    short = {kernel: kernel.partition("[")[2].removesuffix("]") for kernel, _ in groups}
    width = max([6, *map(len, short.values())])
    yield f"{'kernel':<{width}} dtype worst use of bound   examples   rows  elements  ill found"
    operation = ""
    for (kernel, dtype), rs in groups.items():
        if (of := kernel.partition("[")[0]) != operation:
            operation = of
            yield operation
        tallies = [r["tally"] for r in rs]
        worst = max(rs, key=lambda r: r["tally"]["total"]["utilisation"])
        use = f"{_figure(worst['tally']['total']['utilisation'])} {worst['property']}"
        examples, rows, elements = (_short(sum(t[key] for t in tallies)) for key in ("examples", "rows", "elements"))
        compared, ill = (sum(t["total"][key] for t in tallies) for key in ("compared", "ill"))
        found = len({f["id"] for r in rs for f in r["findings"]})
        share = f"{ill / compared:.0%}" if compared else "-"
        yield f"{short[kernel]:<{width}} {dtype:<5} {use:<22} {examples:>6} {rows:>6} {elements:>9} {share:>4} {found:>5}"


def _accuracy(ran: Results) -> Iterator[str]:
    """Rows that were held against the reference, output by output, in the law made for that."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for r in ran:
        if r["property"] == "accuracy":
            rows[r["kernel"].partition("[")[0]][r["dtype"]] += r["tally"]["rows"]
    told = [" ".join([operation, *(f"{dtype} {_short(n)}" for dtype, n in counts.items())]) for operation, counts in rows.items()]
    yield from _wrapped("rows through the accuracy law: ", told)


def _chance(ran: Results) -> Iterator[str]:
    """What was left to chance."""
    draws, chances = (sum(r["tally"]["total"][key] for r in ran) for key in ("draws", "chances"))
    if chances:
        from stabcheck.statistics import total_false_alarms

        yield f"random draws: {_short(draws)} in {chances} assertions; all together"
        yield f"  they fail by chance with probability {total_false_alarms(chances):.1e} at most"


def _regimes(ran: Results) -> Iterator[str]:
    """Rows by regime over all operations."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for r in ran:
        rows[r["kernel"].partition("[")[0]].update(r["tally"]["regimes"])
    total = sum(rows.values(), Counter())
    order = dict.fromkeys(name for operation in rows for name in names(operation))
    yield from _wrapped("rows by regime: ", [f"{name} {_short(total[name])}" for name in order if total[name]])


def _weak(report: Report) -> Iterator[str]:
    for line in weak(report):
        label, colon, rest = line.partition(": ")
        yield from _wrapped(label + colon, [rest] if colon else [])


def _known(report: Report) -> Iterator[str]:
    """What the ledger and the baselines ask for."""
    for line in (*ledger_advice(report.get("ledger", ())), *(advice(report["baselines"]) if report.get("baselines") else ())):
        yield from _lines(line)


def _verdict(report: Report) -> Iterator[str]:
    yield from _lines(judgement(report)[1])
    if found := findings(report):
        yield f"next: {next(iter(found.values()))['replay']}"


def _wrapped(label: str, parts: list[str]) -> list[str]:
    """Nothing for a label that announces parts, without parts."""
    return _lines(label + ", ".join(parts)) if label and (parts or not label.endswith(": ")) else []


def _lines(text: str) -> list[str]:
    """Words are never split: many are paths and names."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _figure(use: float) -> str:
    return f"{use:.3f}" if use < 1000 else f"{use:.1e}"


def _short(n: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**4)):
        if n >= size:
            return f"{n / (size if unit != 'k' else 10**3):.1f}{unit}"
    return str(n)
