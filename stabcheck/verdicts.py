"""Verdicts: elementwise evidence of one property on one batch, and its summary in a single read-back from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

ANY_FINITE = torch.finfo(torch.float64).max  # as a bound: any finite value will do
KINDS = (
    "non-finite",
    "wrong",
    "unstable",
    "out of support",
    "order",
    "not deterministic",
    "memory",
    "crash",
    "hang",
    "unsupported",
)


@dataclass(frozen=True)
class Comparison:
    """got [R, V] held against expected [R, V] within bound [R, V] (0: bit for bit but for the sign of zero), wherever not free.

    kind:      what a failure is called; None: told from the values.
    explained: on demand, the elements whose error the scale-first error model explains; it tells `unstable` from `wrong`.
    what:      a few words on what was compared with what.
    aligned:   row i is row i of the batch.
    """

    got: torch.Tensor
    expected: torch.Tensor
    bound: torch.Tensor
    free: torch.Tensor | None = None
    kind: str | None = None
    explained: Callable[[], torch.Tensor] | None = None
    what: str = ""
    aligned: bool = True


@dataclass(frozen=True)
class Summary:
    """Counts of one or more comparisons: elements that fail, were compared, were left free, are ill-conditioned; worst error / bound."""

    failed: int = 0
    compared: int = 0
    free: int = 0
    ill: int = 0
    utilisation: float = 0.0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.failed + other.failed,
            self.compared + other.compared,
            self.free + other.free,
            self.ill + other.ill,
            max(self.utilisation, other.utilisation),
        )


def agreement(c: Comparison) -> tuple[torch.Tensor, torch.Tensor]:
    """Elementwise: (which elements fail, error / bound where both are finite and the bound is positive, else 0)."""
    got, expected = c.got.double(), c.expected.double()
    error = (got - expected).abs()
    good = (error <= c.bound) | (got == expected) | (got.isnan() & expected.isnan())
    if c.free is not None:
        good = good | c.free
        error = error.masked_fill(c.free, 0.0)
    used = torch.where(c.bound > 0, error / c.bound, 0.0).nan_to_num_(0.0, 0.0, 0.0)
    return ~good, used


def summarise(comparisons: Iterable[Comparison]) -> list[Summary]:
    """One Summary per comparison, read back from the device together."""
    counts, sizes = [], []
    for c in comparisons:
        size = c.got.numel()
        sizes.append(size)
        if not size:
            continue
        failed, used = agreement(c)
        expected = c.expected.double()
        ill = (c.bound >= expected.abs()) & (expected != 0) & (c.bound < ANY_FINITE)
        free = c.free.sum() if c.free is not None else failed.new_zeros(())
        if c.free is not None:
            ill = ill & ~c.free
        counts.append(torch.stack([failed.sum().double(), free.double(), ill.sum().double(), used.max()]))
    read = iter(torch.stack(counts).tolist() if counts else [])
    return [_summary(size, next(read)) if size else Summary() for size in sizes]


def _summary(size: int, row: list[float]) -> Summary:
    failed, free, ill, used = row
    return Summary(int(failed), size - int(free), int(free), int(ill), used)


@dataclass(frozen=True)
class Witness:
    """The element that shows a failure best, as plain numbers."""

    kind: str
    row: int
    column: int
    got: float
    expected: float
    bound: float
    failed_rows: int
    rows: int
    what: str

    def as_kind(self, kind: str) -> Witness:
        """The same element under another kind."""
        return replace(self, kind=kind)


def failing_rows(c: Comparison) -> torch.Tensor:
    """[R] bool: rows in which an element fails."""
    return agreement(c)[0].reshape(c.got.shape[0], -1).any(-1)


def witness(c: Comparison) -> Witness:
    """Pick the worst element of a failed comparison: non-finite first, then the largest error over bound."""
    failed, _ = agreement(c)
    got, expected, bound = (t.double().expand(failed.shape) for t in (c.got, c.expected, c.bound))
    severity = (got - expected).abs() / bound.clamp(min=2.0**-1000)
    severity = torch.where(failed, severity.nan_to_num(2.0**1001, 2.0**1000), -1.0)
    place = int(severity.argmax())
    row, column = divmod(place, max(failed[0].numel(), 1))
    values = [t.reshape(-1)[place].item() for t in (got, expected, bound)]
    return Witness(
        kind=c.kind or _kind(c, failed, got, expected),
        row=row,
        column=column,
        got=values[0],
        expected=values[1],
        bound=values[2],
        failed_rows=int(failing_rows(c).sum()),
        rows=failed.shape[0],
        what=c.what,
    )


def _kind(c: Comparison, failed: torch.Tensor, got: torch.Tensor, expected: torch.Tensor) -> str:
    if bool((failed & ~got.isfinite() & expected.isfinite()).any()):
        return "non-finite"
    if bool((failed & (expected == 0) & (c.bound == 0)).any()):
        return "out of support"
    if c.explained is not None and not bool((failed & ~c.explained()).any()):
        return "unstable"
    return "wrong"
