"""Simpler states: the passes of the domain shrinker. Each yields strictly simpler versions of a state, boldest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.operations.base import Operation
from stabcheck.recipe import Layout

FEW = 48  # stretches of equal columns, or distinct values, worth treating one by one


@dataclass(frozen=True)
class State:
    """Concrete rows: logits [k, V], inputs name -> [k], and how they lie in memory."""

    logits: torch.Tensor
    inputs: dict[str, torch.Tensor]
    layout: Layout
    seed: int
    options: tuple[tuple[str, Any], ...] = ()

    def rows(self, index: list[int]) -> State:
        return replace(self, logits=self.logits[index], inputs={k: v[index] for k, v in self.inputs.items()})

    def columns(self, kept: torch.Tensor, operation: Operation) -> State:
        batch, _ = operation.take_columns(Batch(self.logits, self.inputs, options=dict(self.options)), kept)
        return replace(self, logits=batch.logits, inputs=dict(batch.inputs))

    def with_input(self, name: str, value: float) -> State:
        return replace(self, inputs=self.inputs | {name: torch.full_like(self.inputs[name], value)})

    def with_values(self, logits: torch.Tensor) -> State:
        return replace(self, logits=logits)

    def stretches(self) -> list[tuple[int, int]]:
        """(start, stop) of runs of columns that are equal in every row."""
        changes = (self.logits[:, 1:] != self.logits[:, :-1]).any(0).nonzero().flatten().tolist()
        starts = [0, *(c + 1 for c in changes)]
        return list(zip(starts, [*starts[1:], self.logits.shape[1]], strict=True))


@dataclass(frozen=True)
class Hints:
    """What the passes know of the finding: its worst element, whether rows fail by themselves, how seeds ran, the operation."""

    row: int
    column: int
    row_local: bool
    seed_step: int
    operation: Operation


Pass = Callable[[State, Hints], Iterator[State]]


def fewer_rows(state: State, hints: Hints) -> Iterator[State]:
    """The failing row alone, or the first, which laws on one row take, with a neighbour where rows act on each other, or some left out."""
    n = state.logits.shape[0]
    if n < 2:
        return
    row = min(hints.row, n - 1)
    for alone in dict.fromkeys((row, 0)):
        yield replace(state.rows([alone]), seed=state.seed + alone * hints.seed_step)
    if not hints.row_local and n > 2:
        yield state.rows(list(range(max(row - 1, 0), row + 1)))
        yield state.rows(list(range(row, min(row + 2, n))))
    for start, stop in _spans(n):
        yield state.rows([*range(start), *range(stop, n)])


def plainer_layout(state: State, hints: Hints) -> Iterator[State]:
    """Contiguous, or without one of offset, column stride and padding."""
    layout = state.layout
    if not layout.contiguous:
        for plainer in (Layout(), replace(layout, offset=0), replace(layout, step=1), replace(layout, pad=min(layout.pad, 1))):
            if plainer != layout:
                yield replace(state, layout=plainer)


def few_columns(state: State, hints: Hints) -> Iterator[State]:
    """Only the column that shows the failure, and the likely culprits beside it."""
    last = state.logits.shape[1] - 1
    if last < 3:
        return
    row = state.logits[0].double().nan_to_num(nan=torch.inf)
    top, low, at = int(row.argmax()), int(row.argmin()), min(hints.column, last)
    sets = [{at}, {top}, {at, top}, {at, low}, {at, max(at - 1, 0)}, {at, min(at + 1, last)}, {0, at}, {at, top, low}, {0, at, top}]
    if named := hints.operation.column_input:
        target = int(state.inputs[named][0].clamp(0, last))
        sets += [{target}, {target, top}, {target, low}, {target, at}, {target, at, top}, {0, target}]
    for kept in sorted({frozenset(kept) for kept in sets}, key=lambda kept: (len(kept), sorted(kept))):
        yield state.columns(torch.tensor(sorted(kept), device=row.device), hints.operation)


def fewer_columns(state: State, hints: Hints) -> Iterator[State]:
    """Without a half, a quarter, … of the row, or of a stretch of equal columns; with as many asked for, or fewer by as many."""
    vocab, counted = state.logits.shape[1], _counted(state, hints)
    cuts = list(_spans(vocab, pieces=FEW))
    stretches = state.stretches()
    if len(stretches) <= 4 * FEW:
        cuts += [(stop - cut, stop) for start, stop in stretches for cut in _halves(stop - start)]
    index = torch.arange(vocab, device=state.logits.device)
    for start, stop in sorted(cuts, key=lambda c: c[0] - c[1]):
        if stop - start < vocab:
            fewer = state.columns(torch.cat([index[:start], index[stop:]]), hints.operation)
            yield fewer
            if counted and bool((state.inputs[counted] > stop - start).all()):
                yield replace(fewer, inputs=fewer.inputs | {counted: fewer.inputs[counted] - (stop - start)})


def _counted(state: State, hints: Hints) -> str | None:
    """The input that says how many of the columns, if it is in use."""
    vocab, inputs = state.logits.shape[1], state.inputs
    return next((s.name for s in hints.operation.inputs if s.among and bool(((inputs[s.name] > 0) & (inputs[s.name] < vocab)).all())), None)


def few_counted(state: State, hints: Hints) -> Iterator[State]:
    """Few columns, fewer of them asked for, and perhaps another share of the mass: one after the other, none of these may fail."""
    vocab, counted = state.logits.shape[1], _counted(state, hints)
    in_use = [s for s in hints.operation.inputs if bool((state.inputs[s.name] != s.default).any())]
    others = [s for s in in_use if isinstance(s.default, float) and not s.column and not s.ladder]
    for few in (3, 5):
        if counted and few < vocab:
            kept = [*range(few - 1), max(few - 1, min(hints.column, vocab - 1))]
            fewer = state.columns(torch.tensor(kept, device=state.logits.device), hints.operation)
            for count in range(1, len(kept)):
                lower = fewer.with_input(counted, count)
                yield lower
                yield from (lower.with_input(spec.name, value) for spec in others for value in spec.values)


def one_value(state: State, hints: Hints) -> Iterator[State]:
    """Stretches of columns set to 0, or to the row's first value."""
    logits, spans = state.logits, state.stretches()
    before = len(spans)
    if len(spans) > FEW:
        spans = list(_spans(logits.shape[1], pieces=FEW))
    spans.sort(key=lambda c: c[0] - c[1])
    for fill in (0.0, float(logits[0, 0])):
        for start, stop in [(0, logits.shape[1]), *spans]:
            changed = logits.clone()
            changed[:, start:stop] = fill
            if len(state.with_values(changed).stretches()) < before:
                yield state.with_values(changed)


def rounder_values(state: State, hints: Hints) -> Iterator[State]:
    """One distinct value at a time replaced by a rounder one; first all of them shifted so that the largest is 0."""
    logits = state.logits
    values = torch.unique(logits).double().tolist()
    if len(values) > FEW:
        return
    finite = [v for v in values if abs(v) < float("inf")]
    if len(finite) > 1 and finite[-1] != 0:
        shifted = (logits.double() - finite[-1]).to(logits.dtype)
        if sum(map(rank, torch.unique(shifted).double().tolist())) < sum(map(rank, values)):
            yield state.with_values(shifted)
    for value in sorted(values, key=rank, reverse=True):
        place = logits.isnan() if value != value else logits == value
        for rounder in _rounder(value):
            changed = torch.where(place, torch.tensor(rounder, dtype=logits.dtype, device=logits.device), logits)
            if rank(float(changed[place][0])) < rank(value):
                yield state.with_values(changed)


def plainer_inputs(state: State, hints: Hints) -> Iterator[State]:
    """One row's temperature (or another scalar) replaced by one that stands earlier in the operation's table; a column by a lower one."""
    for spec in hints.operation.inputs:
        current = state.inputs[spec.name]
        table = list(range(min(2, state.logits.shape[1]))) if spec.column else torch.tensor(spec.values, dtype=current.dtype).tolist()
        for k, now in enumerate(current.tolist()):
            for value in table[: table.index(now)] if now in table else table:
                changed = current.clone()
                changed[k] = value
                yield replace(state, inputs=state.inputs | {spec.name: changed})


def plainer_options(state: State, hints: Hints) -> Iterator[State]:
    """Without one of the options."""
    for k in range(len(state.options)):
        yield replace(state, options=state.options[:k] + state.options[k + 1 :])


PASSES: tuple[Pass, ...] = (
    plainer_options,
    few_columns,  # first, since what is tried then is small, whatever the batch was
    fewer_rows,
    plainer_layout,
    fewer_columns,
    few_counted,
    one_value,
    rounder_values,
    plainer_inputs,
)


def rank(value: float) -> float:
    """How hard a value is on the eye: 0, 1, -1, -inf, inf, NaN, then by digits."""
    simple = {0.0: 0, 1.0: 1, -1.0: 2, float("-inf"): 3, float("inf"): 4}
    if value != value:
        return 5
    if value in simple:
        return simple[value]
    text = f"{abs(value):.17g}"
    return 6 + len(text.rstrip("0").rstrip(".")) + 0.01 * len(text) + 0.5 * (value < 0)


def _rounder(value: float) -> list[float]:
    candidates = [0.0, 1.0, -1.0]
    if abs(value) < float("inf"):
        candidates += [float(f"{value:.{digits}g}") for digits in (1, 2, 3)]
        candidates += [float(round(value))] if abs(value) < 1e15 else []
    return [c for c in dict.fromkeys(candidates) if c != value]


def _halves(n: int) -> list[int]:
    """n, n/2, …, 1."""
    return [n, *_halves(n // 2)] if n else []


def _spans(n: int, pieces: int = 1 << 30) -> Iterator[tuple[int, int]]:
    """Spans of n/2, n/4, … places, no more than `pieces` of one size."""
    size = n // 2
    while size and n // size <= pieces:
        yield from ((start, min(start + size, n)) for start in range(0, n, size))
        size //= 2
