"""Findings: a failure with an identity, its minimal recipe, and the one text in which every report tells it."""

from __future__ import annotations

import hashlib
import math
import textwrap
from dataclasses import dataclass, replace
from typing import Any

from stabcheck.floats import FP32, Format, by_name
from stabcheck.operations import operation
from stabcheck.operations.base import CODES, Operation
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.verdicts import ANY_FINITE, KINDS, Witness

SHOWN_VALUES = 8
WIDTH = 80


@dataclass(frozen=True)
class Finding:
    """What was found: kernel × property × dtype × kind, the smallest recipe known to show it, and its worst element."""

    kernel: str
    target: str
    property_name: str
    law: str
    dtype: str
    arch: str
    recipe: Recipe
    witness: Witness
    device: str = ""
    on: str = "cpu"  # the device's name in torch
    steps: int = 0
    shrunk_from: Recipe | None = None
    detail: str = ""
    files: tuple[str, ...] = ()
    others: tuple[Finding, ...] = ()  # distinct failures of the same trial

    @property
    def kind(self) -> str:
        return self.witness.kind

    @property
    def id(self) -> str:
        """Six hex digits of the identity: kernel, property, dtype, kind. The same bug keeps its id from run to run."""
        return hashlib.sha256(f"{self.target}|{self.kernel}|{self.property_name}|{self.dtype}|{self.kind}".encode()).hexdigest()[:6]

    def with_(self, **changes: Any) -> Finding:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def text(self) -> str:
        """The finding in a few lines, the same in terminal, JUnit, HTML and Markdown."""
        w = self.witness
        head = f"BROKEN  {self.property_name} · {self.kernel} · {self.dtype} · {self.arch}"
        lines = [f"{head:<71}  id {self.id}", *_wrapped("  law      ", self.law), f"  input    {describe(self.recipe)}"]
        if w.what:
            lines.append(f"  compared {w.what}")
        if self.detail:
            lines += _wrapped("  cause    ", self.detail)
        if not all(map(math.isnan, (w.got, w.expected, w.bound))):  # a fault has no numbers
            place = f"({w.row}, {w.column})" if w.column is not None else f"row {w.row}"
            lines.append(_columns(f"  got      {w.got:.9g} at {place}", f"expected {w.expected:.9g}", _bound(w)))
        if w.model:
            lines += _wrapped("  note     ", self._note(w.model))
        lines.append(_columns(f"  rows     {w.failed_rows} of {w.rows} {self.kind}", self._history()))
        if self.files:
            lines.append(f"  replay   {self.replay_command()}" + (f"\n  script   {self.files[1]}" if len(self.files) > 1 else ""))
        lines += [other.text() for other in self.others]
        return "\n".join(line.rstrip() for line in lines)

    def replay_command(self) -> str:
        """What to type; a kernel that is not stabcheck's own must be named, since replay imports nothing unasked."""
        place = self.target.partition(":")[0]
        return f"stabcheck replay {self.files[0]}" + ("" if place.startswith("stabcheck.kernels") else f" --kernels {place}")

    def data(self) -> dict[str, Any]:
        """JSON-able: identity, sizes and text."""
        return {
            "id": self.id,
            "kernel": self.kernel,
            "property": self.property_name,
            "dtype": self.dtype,
            "kind": self.kind,
            "rows": self.recipe.total_rows,
            "vocab": self.recipe.vocab,
            "steps": self.steps,
            "files": list(self.files),
            "replay": self.replay_command() if self.files else "",
            "text": self.text(),
        }

    def _note(self, model: str) -> str:
        known = f"within the {model} bound, and right once the maximum is subtracted beforehand: "
        return known + f'{operation(self.recipe.operation).error_models[model]}, or declare error_model="{model}"'

    def _history(self) -> str:
        if self.shrunk_from is None:
            return ""
        return f"shrunk from {self.shrunk_from.total_rows} × {self.shrunk_from.vocab} in {self.steps} steps"


class Broken(AssertionError):
    """A finding, raised. Each kind is a type of its own, so that Hypothesis keeps distinct bugs apart."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text())
        self.finding = finding


def _type_of(kind: str) -> type[Broken]:
    name = "".join(word.capitalize() for word in kind.replace("-", " ").split())
    return type(name, (Broken,), {"__doc__": f"A finding of kind {kind!r}."})


_TYPES = {kind: _type_of(kind) for kind in KINDS}


def broken(finding: Finding) -> Broken:
    """The exception of the finding's kind."""
    return _TYPES[finding.kind](finding)


def _bound(w: Witness) -> str:
    if w.bound == ANY_FINITE:
        return "any finite value" if math.isfinite(w.expected) else ""
    return "" if math.isnan(w.bound) else f"bound {w.bound:.2g}"


def _columns(first: str, second: str, third: str = "") -> str:
    """Aligned where they fit, and apart where they do not."""
    return f"{first:<36}  {second:<22}  {third}"


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * len(label)
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def describe(recipe: Recipe) -> str:
    """The input in one line: sizes, options, inputs, and logits when they are few."""
    size = f"V = {recipe.vocab}" if recipe.total_rows == 1 else f"{recipe.total_rows} rows, V = {recipe.vocab}"
    fmt, op = by_name(recipe.dtype), operation(recipe.operation)
    rows = [_row(row, fmt, op) for row in recipe.rows[:3]]
    options = "".join(f", {name} = {value}" for name, value in recipe.options)
    layout = "" if recipe.layout.contiguous else f", {recipe.layout}"
    more = "" if len(recipe.rows) <= 3 else f" | … {len(recipe.rows) - 3} more"
    return f"{size}{options}, " + " | ".join(rows) + more + layout


def _row(row: Row, fmt: Format, op: Operation) -> str:
    given = [(spec, row.input(spec.name, spec.default)) for spec in op.inputs]
    shown = [(spec, v) for k, (spec, v) in enumerate(given) if k == 0 or v != spec.default]  # the first always, others if unusual
    codes = {spec.name: CODES if spec.column else {} for spec in op.inputs}
    scalars = [f"{spec.symbol or spec.name} = {FP32.text(v) if isinstance(v, float) else codes[spec.name].get(v, v)}" for spec, v in shown]
    extras = [] if row.mask.kind == "none" else [f"-inf {row.mask.kind}({row.mask.a}, {row.mask.b})"]
    extras += [f"x[{i}] = {fmt.text(v)}" for i, v in row.edits]
    return ", ".join([*scalars, f"logits = {_values(row.background, fmt)}", *extras])


def _values(background: Background, fmt: Format) -> str:
    if background.kind != "literal":
        return repr(background)
    parts = [fmt.text(v) + (f" × {n}" if n > 1 else "") for v, n in zip(background.values, background.counts, strict=True)]
    return "[" + ", ".join(parts[:SHOWN_VALUES]) + (", …]" if len(parts) > SHOWN_VALUES else "]")
