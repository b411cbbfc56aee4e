"""Regimes: which adversarial conditions a run really exercised, counted in rows. A regime never drawn is a visible gap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from stabcheck.floats import Format, by_name
from stabcheck.operations import operation
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.recipe import Recipe, Row

BELL = 4.0  # a bell's values are at most so many scales from its centre
Rule = Callable[[Recipe, Row, Format], bool]


def _values(row: Row) -> list[float]:
    return [*row.background.values, *(v for _, v in row.edits)]


def _finite(row: Row) -> list[float]:
    return [v for v in _values(row) if abs(v) < float("inf")]


def _temperature(row: Row) -> float:
    return float(row.input("temperature", 1.0))


def _target(recipe: Recipe, row: Row) -> int:
    return int(row.input(operation(recipe.operation).column_input, 0))


def _upstream(row: Row) -> float:
    return float(row.input("upstream", 1.0))


def _filters(row: Row) -> int:
    """How many filters are on, as far as the row tells without its vocabulary."""
    return (row.input("top_k", 0) > 0) + (row.input("top_p", 1.0) < 1) + (row.input("min_p", 0.0) > 0)


def _neighbours(row: Row, fmt: Format) -> bool:
    table = row.background.values
    return row.background.kind == "palette" and any(a != b and a == fmt.neighbour(b) for a in table for b in table)


def _huge(recipe: Recipe, row: Row, fmt: Format) -> bool:
    reach = BELL if row.background.kind == "bell" else 1.0
    return any(reach * abs(v) >= min(1e4, fmt.max) for v in _finite(row)) or row.background.kind == "bits"


REGIMES: dict[str, Rule] = {
    "huge magnitudes": _huge,
    "exp's cliffs": lambda r, row, f: any(87 <= abs(v) <= 111 for v in _finite(row)),
    "subnormal logits": lambda r, row, f: any(0 < abs(v) < f.tiny for v in _finite(row)) or row.background.kind == "bits",
    "ties": lambda r, row, f: r.vocab > 1 and row.background.kind in ("constant", "palette"),
    "one-ulp neighbours": lambda r, row, f: r.vocab > 1 and _neighbours(row, f),
    "random bit patterns": lambda r, row, f: row.background.kind == "bits",
    "-inf prefix": lambda r, row, f: row.mask.kind == "prefix",
    "-inf suffix": lambda r, row, f: row.mask.kind == "suffix",
    "-inf blocks": lambda r, row, f: row.mask.kind == "span",
    "-inf every k-th": lambda r, row, f: row.mask.kind == "every",
    "-inf all but a few": lambda r, row, f: row.mask.kind == "all_but",
    "-inf everywhere": lambda r, row, f: row.mask.kind == "all" and not row.edits,
    "NaN": lambda r, row, f: any(v != v for v in _values(row)),
    "+inf": lambda r, row, f: float("inf") in _values(row),
    "odd V": lambda r, row, f: r.vocab % 2 == 1,
    "V = 1": lambda r, row, f: r.vocab == 1,
    "V = 2^k ± 1": lambda r, row, f: r.vocab > 8 and any((v & (v - 1)) == 0 for v in (r.vocab - 1, r.vocab + 1)),
    "V ≥ 32000": lambda r, row, f: r.vocab >= 32000,
    "one row": lambda r, row, f: r.total_rows == 1,
    "≥ 64 rows": lambda r, row, f: r.total_rows >= 64,
    "padded rows": lambda r, row, f: r.layout.pad > 0,
    "column stride": lambda r, row, f: r.layout.step > 1,
    "base offset": lambda r, row, f: r.layout.offset > 0,
}
INPUT_REGIMES: dict[str, dict[str, Rule]] = {
    "temperature": {
        "T < 1e-2": lambda r, row, f: 0 < _temperature(row) < 1e-2 or (r.fan == "ladder" and r.siblings > 8),
        "subnormal T": lambda r, row, f: 0 < _temperature(row) < 2.0**-126,
        "T = 0": lambda r, row, f: _temperature(row) == 0,
        "mixed T": lambda r, row, f: len({_temperature(x) for x in r.rows}) > 1 or (r.fan == "ladder" and r.siblings > 1),
    },
    "target": {
        "target at the maximum": lambda r, row, f: _target(r, row) == LARGEST,
        "target at the minimum": lambda r, row, f: _target(r, row) == SMALLEST,
        "target edited": lambda r, row, f: any(i % r.vocab == _target(r, row) for i, _ in row.edits),
        "ignored row": lambda r, row, f: _target(r, row) == IGNORED,
        "every row ignored": lambda r, row, f: all(_target(r, x) == IGNORED for x in r.rows),
    },
    "upstream": {
        "zero upstream": lambda r, row, f: _upstream(row) == 0,
        "huge upstream": lambda r, row, f: abs(_upstream(row)) >= 1e4,
        "mixed upstream": lambda r, row, f: len({_upstream(x) for x in r.rows}) > 1,
    },
}
INPUT_REGIMES |= {
    "top_k": {
        "k = 1": lambda r, row, f: row.input("top_k", 0) == 1,
        "1 < k < V": lambda r, row, f: 1 < row.input("top_k", 0) < r.vocab,
        "k > 128": lambda r, row, f: 128 < row.input("top_k", 0) < r.vocab,
        "k ≥ V": lambda r, row, f: row.input("top_k", 0) >= r.vocab,
    },
    "top_p": {
        "top-p": lambda r, row, f: 0 < row.input("top_p", 1.0) < 1,
        "top-p = 0": lambda r, row, f: row.input("top_p", 1.0) == 0,
    },
    "min_p": {
        "min-p": lambda r, row, f: row.input("min_p", 0.0) > 0,
        "no filter": lambda r, row, f: not _filters(row),
        "all filters": lambda r, row, f: _filters(row) == 3,
        "filters in some rows only": lambda r, row, f: len({_filters(x) > 0 for x in r.rows}) > 1,
    },
    "seed": {"seed beyond 32 bits": lambda r, row, f: not 0 <= row.input("seed", 0) < 2**32},
    "position": {"position beyond 32 bits": lambda r, row, f: row.input("position", 0) + r.siblings > 2**32},
    "coin": {
        "coin of 0": lambda r, row, f: row.input("coin", 0.5) == 0,
        "coin next to 1": lambda r, row, f: row.input("coin", 0.5) > 0.9999,
    },
    "draft": {
        "draft at the maximum": lambda r, row, f: row.input("draft", 0) == LARGEST,
        "draft at the minimum": lambda r, row, f: row.input("draft", 0) == SMALLEST,
    },
}
INPUT_REGIMES["labels"] = {name: rule for name, rule in INPUT_REGIMES["target"].items() if "ignored" not in name}
EMPTY = "no rows"


@lru_cache(maxsize=16)
def rules(operation_name: str) -> dict[str, Rule]:
    """The regimes of an operation: those of the logits, of its inputs, and each value of its options that is not the default."""
    op = operation(operation_name)
    found = dict(REGIMES)
    for spec in op.inputs:
        meaningless = () if spec.under or 0.0 in spec.values else ("T = 0",)
        found |= {name: rule for name, rule in INPUT_REGIMES.get(spec.name, {}).items() if name not in meaningless}
    for option in op.options:
        found |= {f"{option.name} = {v}": _option_rule(option.name, v) for v in option.values[1:]}
    return found


def _option_rule(name: str, value: Any) -> Rule:
    return lambda recipe, row, fmt: dict(recipe.options).get(name) == value


def names(operation_name: str) -> tuple[str, ...]:
    """Every regime of an operation."""
    return (*rules(operation_name), EMPTY)


def regimes(recipe: Recipe) -> Counter[str]:
    """Rows of the recipe in each regime; an empty batch counts once, as EMPTY."""
    if not recipe.siblings:
        return Counter({EMPTY: 1})
    fmt = by_name(recipe.dtype)
    found: Counter[str] = Counter()
    for row in recipe.rows:
        for name, rule in rules(recipe.operation).items():
            if rule(recipe, row, fmt):
                found[name] += recipe.siblings
    return found


def magnitude(recipe: Recipe) -> int:
    """floor(log10 of the largest finite |logit| a recipe may hold), at least -1: 38 for the largest of fp32 and of random bit patterns."""
    fmt = by_name(recipe.dtype)
    reach = [abs(v) * (BELL if row.background.kind == "bell" else 1.0) for row in recipe.rows for v in _finite(row)]
    bits = [fmt.max for row in recipe.rows if row.background.kind == "bits"]
    largest = min(max([*reach, *bits], default=0.0), fmt.max)
    return max(-1, math.floor(math.log10(largest))) if largest else -1
