"""Two benches of one operation held against each other: what became slower, and by how much. Needs no GPU.

Machines differ, so a time is taken over that of the copy of the same bytes in its own run: ratio = (now / copy now) / (then / copy then).
The copy has noise of its own. With the spread (20th to 80th percentile) of each of the four,

    slower:  p20 now / p80 of the copy now  >  p80 then / p20 of the copy then

and faster is the mirror image. Two runs of the same softmax on one H200 have 4 of 30 points slower over the copies' medians, and none so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from stabcheck.errors import UsageError

SCHEMA = "stabcheck-bench/1"  # files from before it had a name are the same
WIDEST = 1000  # columns of a terminal: a table is as wide as it needs; a narrower terminal wraps its lines
STYLES = {"slower": "red", "faster": "green"}

Document = dict[str, Any]
Times = Mapping[str, float]  # median, p20 and p80 in µs


@dataclass(frozen=True)
class Change:
    """One of our times beside what it was. `name`: ours, or a variant of it; `peers`: its part of the fastest peer's time, then and now."""

    dtype: str
    vocab: int
    rows: int
    name: str
    then: Times
    now: Times
    copy_then: Times
    copy_now: Times
    peers: tuple[str, str]

    @property
    def raw(self) -> float:
        return self.now["median"] / self.then["median"]

    @property
    def ratio(self) -> float:
        """The same as if the machines were equal."""
        return self.raw / (self.copy_now["median"] / self.copy_then["median"])

    @property
    def mark(self) -> str:
        """slower, faster, or nothing where the spreads leave it open."""
        if self.now["p20"] / self.copy_now["p80"] > self.then["p80"] / self.copy_then["p20"]:
            return "slower"
        return "faster" if self.now["p80"] / self.copy_now["p20"] < self.then["p20"] / self.copy_then["p80"] else ""

    def __str__(self) -> str:
        return f"×{self.ratio:.2f} for {self.name} at {self.dtype} {self.rows} × {self.vocab}"


def changes(then: Document, now: Document) -> list[Change]:
    """What was measured both times, in the order of now."""
    base = {_at(line): line for line in then["points"]}
    return [change for line in now["points"] if _at(line) in base for change in _changes_at(base[_at(line)], line)]


def _changes_at(then: Document, now: Document) -> Iterator[Change]:
    ours_then, ours_now = ({"ours": line["ours"]} | line.get("variants", {}) for line in (then, now))
    for name in ours_now:
        if name in ours_then:
            peers = (_fastest_peer(then), _fastest_peer(now)) if name == "ours" else ("", "")
            yield Change(*_at(now), name, ours_then[name], ours_now[name], then["copy"], now["copy"], peers)


def _at(line: Document) -> tuple[str, int, int]:
    point = line["point"]
    return point["dtype"], point["vocab"], point["rows"]


def _fastest_peer(line: Document) -> str:
    peers = line.get("peers", {})
    if not peers:
        return ""
    fastest = min(peers, key=lambda name: peers[name]["median"])
    return f"{line['ours']['median'] / peers[fastest]['median']:.2f} {fastest}"


# ---- what is told


def cells(change: Change) -> dict[str, str]:
    """A change as the table shows it: column -> text."""
    return {
        "dtype": change.dtype,
        "V": str(change.vocab),
        "rows": str(change.rows),
        "kernel": change.name,
        "then (20–80 %)": _spread(change.then),
        "now (20–80 %)": _spread(change.now),
        "now / then": f"{change.raw:.2f}",
        "by the copy": f"{change.ratio:.2f}",
        "then / fastest peer": change.peers[0],
        "now / fastest peer": change.peers[1],
        "": change.mark,
    }


def _spread(times: Times) -> str:
    return f"{times['median']:.1f} ({times['p20']:.1f}–{times['p80']:.1f})"


def remarks(then: Document, now: Document) -> list[str]:
    """What to know before the ratios are read, one line each."""
    told = []
    if (new := _machine(now)) != (old := _machine(then)):
        told.append(f"another device: measured on {new}, the base on {old}; read the ratios by the copy")
    told += [f"{name} {now[name]}, the base {then[name]}" for name in ("torch", "triton") if now.get(name) != then.get(name, now.get(name))]
    if now.get("floor") != then.get("floor", now.get("floor")):
        told.append(f"the copy is of {now.get('floor')}, the base's of {then['floor']}: ratios by the copy mean nothing")
    measured = {_at(line) for line in now["points"]}
    if left := [f"{d} {r} × {v}" for d, v, r in map(_at, then["points"]) if (d, v, r) not in measured]:
        told.append(
            f"{len(left)} of {len(then['points'])} points of the base not measured again: {', '.join(left[:3])}{' …' * (len(left) > 3)}"
        )
    return told


def _machine(document: Document) -> str:
    return f"{document['device']} ({document.get('arch', 'unknown architecture')})"


def verdict(operation: str, found: Sequence[Change]) -> str:
    """One line: what is slower than the base beyond the spreads."""
    if not found:
        return f"{operation}: nothing to compare, no point of the base was measured again"
    slower = [change for change in found if change.mark == "slower"]
    worst = f", most {max(slower, key=lambda c: c.ratio)}" if slower else ""
    faster = sum(change.mark == "faster" for change in found)
    head = f"{len(slower) or 'none'} of {len(found)} times slower than the base beyond the spreads{worst}"
    return f"{operation}: {head}; {faster} faster; median ×{median(c.ratio for c in found):.2f} by the copy"


def show(then: Document, now: Document, console: Console) -> None:
    """Print the remarks, the table and the verdict."""
    found = changes(then, now)
    for line in remarks(then, now):
        console.print(line, markup=False, soft_wrap=True)
    if found:
        show_table([cells(change) for change in found], console, [STYLES.get(change.mark, "") for change in found])
    console.print(verdict(now["operation"], found), markup=False, soft_wrap=True)


def show_table(rows: Sequence[dict[str, str]], console: Console, styles: Sequence[str] = ()) -> None:
    """Print rows of column -> text, as wide as they need."""
    table = Table(*(Column(name, no_wrap=True) for name in rows[0]), box=SIMPLE, padding=0)
    for row, style in zip(rows, styles or [""] * len(rows), strict=True):
        table.add_row(*map(Text, row.values()), style=style)
    table.width = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    console.print(table, crop=False)


# ---- files


def stem(operation: str, device: str) -> str:
    """What the files of a bench are called, without their ending."""
    return f"{operation}-{device.lower().removeprefix('nvidia ').replace(' ', '-')}"


def load(path: Path, operation: str = "") -> list[Document]:
    """The benches in a file, or in the files `<operation>-<device>.json` of a directory.

    Raises
    ------
    UsageError: it is missing, damaged or of another operation.
    """
    files = sorted(path.glob(f"{operation or '*'}-*.json")) if path.is_dir() else [path]
    found = [(file, _read(file)) for file in files]
    if path.is_dir():
        found = [(file, document) for file, document in found if file.stem == stem(document["operation"], document["device"])]
    if not found:
        name = operation or "OPERATION"
        raise UsageError(f"{path} holds no {name}-DEVICE.json; write one with: stabcheck bench {name} --out {path}")
    if operation and (other := found[0][1]["operation"]) != operation:
        raise UsageError(f"{path} is a bench of {other}, not of {operation}; name one of {operation}, or the directory that holds it")
    return [document for _, document in found]


def counterpart(bases: Sequence[Document], operation: str, device: str) -> Document | None:
    """The base of an operation: the one of this device, else the only one there is. Raises UsageError if it is not clear which."""
    there = [base for base in bases if base["operation"] == operation]
    chosen = [base for base in there if base["device"] == device] or there
    if len(chosen) > 1:
        names = ", ".join(base["device"] for base in chosen)
        raise UsageError(f"bases of {operation} are there for {names}, and none for {device}; name the file of one")
    return chosen[0] if chosen else None


def compare_files(base: Path, new: Path, operation: str, console: Console) -> None:
    """Show what was measured in `new` beside `base`: two files, or directories of them. Raises UsageError as `load` does."""
    bases, measured = load(base, operation), load(new, operation)
    pairs = [(then, now) for now in measured if (then := counterpart(bases, now["operation"], now["device"]))]
    names = [{document["operation"] for document in documents} for documents in (bases, measured)]
    if not pairs:
        ours, theirs = (", ".join(sorted(n)) for n in names)
        raise UsageError(f"{base} is a bench of {ours}, {new} of {theirs}; name two of one operation")
    for then, now in pairs:
        show(then, now, console)
    if alone := sorted(names[0] ^ names[1]):
        console.print(f"only in one of the two: {', '.join(alone)}", markup=False, soft_wrap=True)


def _read(path: Path) -> Document:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; name a file that stabcheck bench OPERATION --out DIR has written"
        ) from error
    except ValueError as error:  # no JSON, or no text
        raise UsageError(f"{path} is no JSON ({error}); measure it again: stabcheck bench OPERATION --out {path.parent}") from error
    if damage := _damage(document):
        raise UsageError(f"{path} is no bench, or is damaged: {damage}; measure it again: stabcheck bench OPERATION --out {path.parent}")
    return document  # type: ignore[no-any-return]


def _damage(document: Any) -> str:
    """What keeps parsed JSON from being a bench; nothing if it is one."""
    if not isinstance(document, dict) or not all(isinstance(document.get(name), str) for name in ("operation", "device")):
        return "it names no operation and device"
    if (schema := document.get("schema", SCHEMA)) != SCHEMA:
        return f"its schema is {schema!r} where {SCHEMA!r} is known"
    try:
        for line in document["points"]:
            hash(_at(line))
            for times in (line["copy"], line["ours"], *line.get("variants", {}).values(), *line.get("peers", {}).values()):
                if not all(0 < times[name] < inf for name in ("median", "p20", "p80")):
                    return "a time in it is not positive"
    except (KeyError, TypeError, AttributeError) as error:
        return f"a point of it lacks something ({type(error).__name__}: {error})"
    return ""
