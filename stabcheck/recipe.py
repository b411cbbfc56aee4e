"""Recipes: small, pure, JSON-able descriptions of one adversarial batch.

A recipe holds a few archetype rows; `stabcheck.batches` expands each into `siblings` rows on the device. The same recipe
gives the same bits on every device, so a recipe is what Hypothesis shrinks, what a finding carries and what a reproducer stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from stabcheck.errors import UsageError
from stabcheck.floats import by_name, from_hex, to_hex

SCHEMA = "stabcheck-recipe/1"

VALUES = {"constant": 1, "palette": 4, "bell": 2, "ramp": 2, "bits": 0}  # how many values a background has; a literal, one for each count
BACKGROUNDS = ("constant", "palette", "bell", "ramp", "bits", "literal")
MASKS = ("none", "prefix", "suffix", "span", "every", "all_but", "all")
FANS = ("reseed", "rotate", "ladder", "scale")


@dataclass(frozen=True)
class Background:
    """What fills a row.

    kind      values                      meaning
    constant  (v,)                        every column v
    palette   (v0, v1, v2, v3)            one of four values, chosen by the column's hash
    bell      (centre, scale)             centre + scale × a bell-shaped variate of unit size, at most 4 in magnitude
    ramp      (start, step)               start + step × column
    bits      ()                          finite random bit patterns of the format
    literal   (v0, …), counts (n0, …)     v0 n0 times, then v1 n1 times, …
    """

    kind: str = "constant"
    values: tuple[float, ...] = (0.0,)
    counts: tuple[int, ...] = ()

    def __repr__(self) -> str:
        if self.kind == "literal":
            return "[" + ", ".join(f"{v:g} × {n}" if n > 1 else f"{v:g}" for v, n in zip(self.values, self.counts, strict=True)) + "]"
        return f"{self.kind}({', '.join(f'{v:g}' for v in self.values)})"


@dataclass(frozen=True)
class Mask:
    """Columns set to -inf: the first a; the last a; a..a+b; every a-th from b; all but a..a+b; all. Positions are taken modulo V."""

    kind: str = "none"
    a: int = 0
    b: int = 0


@dataclass(frozen=True)
class Row:
    """One archetype: background, then mask, then edits (index modulo V, value); `inputs` are the row's scalars, such as its temperature."""

    background: Background = Background()
    mask: Mask = Mask()
    edits: tuple[tuple[int, float], ...] = ()
    inputs: tuple[tuple[str, float | int], ...] = ()

    def input(self, name: str, default: float | int) -> float | int:
        """The row's scalar of that name; what a recipe leaves out has the operation's default."""
        return dict(self.inputs).get(name, default)


@dataclass(frozen=True)
class Layout:
    """How the logits lie in memory, in elements: column stride `step`, `pad` unused after each row, `offset` before the first."""

    pad: int = 0
    step: int = 1
    offset: int = 0

    @property
    def contiguous(self) -> bool:
        return self == Layout()


@dataclass(frozen=True, repr=False)
class Recipe:
    """One batch of len(rows) × siblings rows (siblings = 0: an empty batch) and `vocab` columns.

    Sibling 0 is the archetype itself; the others differ by `fan`: reseed (other random numbers), rotate (and the columns
    rotated), ladder (and T halved from one to the next, cycling over 32 steps), scale (and the background doubled, over 24).
    `options` are constants of the kernel's call that differ from the operation's defaults.
    """

    operation: str
    dtype: str
    vocab: int
    rows: tuple[Row, ...] = (Row(),)
    siblings: int = 1
    fan: str = "reseed"
    seed: int = 0
    layout: Layout = field(default_factory=Layout)
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        rows = "; ".join(_describe(r) for r in self.rows)
        extras = f", fan={self.fan}, seed={self.seed}" if self.siblings > 1 else ""
        extras += "" if self.layout.contiguous else f", {self.layout}"
        extras += "".join(f", {name}={value}" for name, value in self.options)
        return f"Recipe({self.operation}, {self.dtype}, {self.total_rows} × {self.vocab}: {rows}{extras})"

    @property
    def total_rows(self) -> int:
        return len(self.rows) * self.siblings

    @property
    def elements(self) -> int:
        return self.total_rows * self.vocab

    @property
    def id(self) -> str:
        """Six hex digits naming the recipe's content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:6]

    def with_(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, floats as hex."""
        return json.dumps(to_data(self), sort_keys=True)


def to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-able data, floats as hex text."""
    return {
        "schema": SCHEMA,
        "operation": recipe.operation,
        "dtype": recipe.dtype,
        "vocab": recipe.vocab,
        "siblings": recipe.siblings,
        "fan": recipe.fan,
        "seed": recipe.seed,
        "layout": [recipe.layout.pad, recipe.layout.step, recipe.layout.offset],
        "rows": [_row_data(row) for row in recipe.rows],
        **({"options": [[name, to_hex(v) if isinstance(v, float) else v] for name, v in recipe.options]} if recipe.options else {}),
    }


def from_data(data: Any) -> Recipe:
    """Inverse of `to_data`. Raises UsageError naming what is missing, malformed or of another schema."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UsageError(f"recipe has schema {found!r}; this version of stabcheck reads {SCHEMA!r}: use the version that wrote it")
    try:
        recipe = Recipe(
            operation=str(data["operation"]),
            dtype=by_name(data["dtype"]).name,
            vocab=int(data["vocab"]),
            rows=tuple(_row(r) for r in data["rows"]),
            siblings=int(data["siblings"]),
            fan=_one_of(data["fan"], FANS),
            seed=int(data["seed"]),
            layout=Layout(*map(int, data["layout"])),
            options=tuple((str(k), _option(v)) for k, v in data.get("options", ())),
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as cause:
        if isinstance(cause, UsageError):
            raise
        raise UsageError(f"recipe is damaged ({type(cause).__name__}: {cause}); restore the file or run the suite again") from cause
    for problem in _problems(recipe):
        raise UsageError(f"recipe has {problem}; restore the file or run the suite again")
    return recipe


def _problems(recipe: Recipe) -> Iterator[str]:
    """What makes a recipe impossible to materialise."""
    layout = recipe.layout
    if recipe.vocab < 1 or recipe.siblings < 0 or not recipe.rows:
        yield f"vocab {recipe.vocab}, siblings {recipe.siblings}, {len(recipe.rows)} rows"
    if layout.step < 1 or layout.pad < 0 or layout.offset < 0:
        yield f"pad {layout.pad}, step {layout.step}, offset {layout.offset}"
    for row in recipe.rows:
        background, mask = row.background, row.mask
        if len(background.values) != VALUES.get(background.kind, len(background.counts)):
            yield f"a {background.kind} background of {len(background.values)} values"
        if background.kind == "literal" and (sum(background.counts) != recipe.vocab or min(background.counts, default=1) < 1):
            yield f"a literal row of {sum(background.counts)} columns but vocab is {recipe.vocab}, counts {list(background.counts)[:9]}"
        if mask.a < 0 or mask.b < 0:
            yield f"a mask at {mask.a}, {mask.b}"
        if [name for name, _ in row.inputs] != [name for name, _ in recipe.rows[0].inputs]:
            yield f"inputs {[name for name, _ in row.inputs]} in one row and others in the first"


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "background": [row.background.kind, [to_hex(v) for v in row.background.values], list(row.background.counts)],
        "mask": [row.mask.kind, row.mask.a, row.mask.b],
        "edits": [[i, to_hex(v)] for i, v in row.edits],
        "inputs": [[name, to_hex(v) if isinstance(v, float) else v] for name, v in row.inputs],
    }


def _row(data: Any) -> Row:
    kind, values, counts = data["background"]
    mask, a, b = data["mask"]
    return Row(
        background=Background(_one_of(kind, BACKGROUNDS), tuple(map(from_hex, values)), tuple(map(int, counts))),
        mask=Mask(_one_of(mask, MASKS), int(a), int(b)),
        edits=tuple((int(i), from_hex(v)) for i, v in data["edits"]),
        inputs=tuple((str(k), from_hex(v) if isinstance(v, str) else int(v)) for k, v in data["inputs"]),
    )


def _option(value: Any) -> Any:
    """An option's value: floats are hex text, other text stands for itself."""
    is_float = isinstance(value, str) and value.lstrip("-").startswith(("0x", "inf", "nan"))
    return from_hex(value) if is_float else value


def _one_of(value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
    return str(value)


def _describe(row: Row) -> str:
    parts = [repr(row.background)]
    if row.mask.kind != "none":
        parts.append(f"-inf {row.mask.kind}({row.mask.a}, {row.mask.b})")
    parts += [f"[{i}]={v:g}" for i, v in row.edits]
    parts += [f"{name}={value:g}" for name, value in row.inputs]
    return " ".join(parts)
