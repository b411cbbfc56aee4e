"""Verdicts: elementwise evidence of one property on one batch, and its summary in a single read-back from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import torch

from stabcheck.floats import by_name, name_of

ANY_FINITE = torch.finfo(torch.float64).max  # as a bound: any finite value will do
EXPONENT_BITS = 0x7FF << 52  # of fp64
AT_ONCE = 1 << 18  # elements that are compared with all edges in one launch: a bool for each of both
ULPS = range(-3, 13)  # classes of errors: at most 2^k ulp
KINDS = ("non-finite", "wrong", "unstable", "out of support", "order", "not deterministic", "memory", "crash", "hang")


@dataclass(frozen=True)
class Comparison:
    """got held against expected within bound, wherever not free; all [R, V], [R], or of a reduction's shape [].

    bound:     as got; or one number for laws on structure: 0 (bit for bit but for the sign of zero) or ANY_FINITE.
    kind:      what a failure is called; None: told from the values.
    explanations: error model -> on demand, the elements whose error it explains; they tell `unstable` from `wrong`.
    what:      a few words on what was compared with what.
    aligned:   row i is row i of the batch.
    support:   an exact 0 means that there must be nothing: a failure there is "out of support".
    draws: how many random draws are counted in it; such a comparison fails by chance with probability `stabcheck.statistics.ALPHA`.
    reference: expected is the fp64 reference, so that the error in ulp of got's format says how accurate the kernel is.
    """

    got: torch.Tensor
    expected: torch.Tensor
    bound: torch.Tensor | float
    free: torch.Tensor | None = None
    kind: str | None = None
    explanations: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    what: str = ""
    aligned: bool = True
    support: bool = True
    draws: int = 0
    reference: bool = False


@dataclass(frozen=True)
class Summary:
    """Counts of one or more comparisons: elements that fail, were compared, were left free, are ill-conditioned; worst error / bound;
    random draws, and comparisons that may fail by chance; of well-conditioned elements held against the reference the worst error in ulp,
    and how many have one of at most 2^k ulp and above 2^(k−1), for k in ULPS (the first takes all below, the last all above)."""

    failed: int = 0
    compared: int = 0
    free: int = 0
    ill: int = 0
    utilisation: float = 0.0
    draws: int = 0
    chances: int = 0
    ulp: float = 0.0
    ulps: tuple[int, ...] = (0,) * len(ULPS)

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.failed + other.failed,
            self.compared + other.compared,
            self.free + other.free,
            self.ill + other.ill,
            max(self.utilisation, other.utilisation),
            self.draws + other.draws,
            self.chances + other.chances,
            max(self.ulp, other.ulp),
            tuple(map(int.__add__, self.ulps, other.ulps)),
        )


def agreement(c: Comparison) -> torch.Tensor:
    """[R, V] bool: which elements fail."""
    got, expected = c.got.double(), c.expected.double()
    good = ((got - expected).abs() <= c.bound) | (got == expected) | (got.isnan() & expected.isnan())
    return ~good if c.free is None else ~(good | c.free)


def summarise(comparisons: Iterable[Comparison]) -> list[Summary]:
    """One Summary per comparison, read back from the device together."""
    comparisons = list(comparisons)
    counted = [c for c in comparisons if c.got.numel()]
    rows = [_counts(c) for c in counted]
    flat = iter(torch.cat(rows).tolist() if rows else [])
    read = iter([[next(flat) for _ in range(len(row))] for row in rows])
    return [_summary(c, next(read)) if c.got.numel() else Summary() for c in comparisons]


def _counts(c: Comparison) -> torch.Tensor:
    """[4] fp64: elements plainly within their bound, ill-conditioned ones, free ones, worst error / bound; few launches, no read-back. Of a
    comparison with the reference the errors in ulp follow.

    An element is ill-conditioned where its bound exceeds its magnitude; there error / bound says nothing (a result flushed to zero uses up
    all of its bound) and is left out of the worst, as is an error over a bound of 0, which fails or is 0.
    """
    error = (c.got.double() - c.expected).abs_()
    within = error <= c.bound
    ill = torch.zeros_like(within) if isinstance(c.bound, float) else (c.bound > c.expected.abs()).expand(error.shape)
    counted, out = [within, ill], ill
    if c.free is not None:
        free = c.free.expand(error.shape)
        counted, out = [within | free, ill & ~free, free], ill | free
    in_ulps = [_ulps(error, c, out)] if c.reference and c.got.is_floating_point() else []
    used = error.div_(c.bound).masked_fill_(out, 0.0)
    counts = torch.stack(counted).reshape(len(counted), -1).sum(-1)
    if c.free is None:
        counts = torch.nn.functional.pad(counts, (0, 1))
    return torch.cat([counts, used.nan_to_num_(0.0, 0.0, 0.0).amax()[None], *in_ulps])  # cat takes the counts to fp64


def _ulps(error: torch.Tensor, c: Comparison, out: torch.Tensor) -> torch.Tensor:
    """[1 + len(ULPS)] fp64: the worst error, and how many reach no edge of each class; in units of 2^floor(log2 |expected|), of the least
    normal number where that is more: an ulp of got's format is 2^(1 − precision) of them. The bits of the exponent alone are that power."""
    fmt = by_name(name_of(c.got.dtype))
    unit = (c.expected.double().view(torch.int64) & EXPONENT_BITS).view(torch.float64).clamp_(min=2.0**fmt.emin)
    units = (error / unit).masked_fill_(out, torch.nan)
    edges = _edges(fmt.precision, str(error.device))
    parts = torch.split(units.reshape(1, -1), AT_ONCE, 1)
    within = torch.stack([(part <= edges).sum(-1) for part in parts]).sum(0)  # NaN is within nothing
    return torch.cat([units.nan_to_num_(0.0, 0.0, 0.0).amax()[None], within])


@lru_cache(maxsize=16)
def _edges(precision: int, device: str) -> torch.Tensor:
    """[len(ULPS), 1] fp64: 2^k ulp in those units; the last class takes all that is finite."""
    edges = [2.0 ** (k + 1 - precision) for k in ULPS[:-1]]
    return torch.tensor([*edges, ANY_FINITE], dtype=torch.float64, device=device)[:, None]


def _summary(c: Comparison, row: list[float]) -> Summary:
    within, ill, free, worst, *ulps = row
    size = c.got.numel()
    failed = 0 if within == size else int(agreement(c).sum())  # NaN that should be NaN, say, is looked at only now
    sizes = failed, size - int(free), int(free), int(ill)
    if not ulps:
        return Summary(*sizes, 0.0 if c.draws else worst, c.draws, int(c.draws > 0))
    below = [0, *map(int, ulps[1:])]
    classes = tuple(b - a for a, b in pairwise(below))
    return Summary(*sizes, worst, ulp=ulps[0] * 2.0 ** (by_name(name_of(c.got.dtype)).precision - 1), ulps=classes)


@dataclass(frozen=True)
class Witness:
    """The element that shows a failure best, as plain numbers."""

    kind: str
    row: int
    column: int | None  # None: there is one value per row
    got: float
    expected: float
    bound: float
    failed_rows: int
    rows: int
    what: str
    model: str = ""  # the error model that explains an `unstable` result

    def as_kind(self, kind: str) -> Witness:
        """The same element under another kind."""
        return replace(self, kind=kind)


def failing_rows(c: Comparison) -> torch.Tensor:
    """[R] bool: rows in which an element fails; a reduction is one row."""
    return agreement(c).reshape(c.got.shape[0] if c.got.ndim else 1, -1).any(-1)


def witness(c: Comparison) -> Witness:
    """Pick the worst element of a failed comparison: non-finite first, then the largest error over bound."""
    failed = agreement(c)
    wide = (torch.as_tensor(t, dtype=torch.float64, device=failed.device) for t in (c.got, c.expected, c.bound))
    got, expected, bound = (t.expand(failed.shape) for t in wide)
    severity = (got - expected).abs() / bound.clamp(min=2.0**-1000)
    severity = torch.where(failed, severity.nan_to_num(2.0**1001, 2.0**1000), -1.0)
    place = int(severity.argmax())
    row, column = divmod(place, max(failed.shape[1], 1)) if failed.ndim > 1 else (place, None)
    kind, model = (c.kind, "") if c.kind else _kind(c, failed, got, expected)
    values = [t.reshape(-1)[place].item() for t in (got, expected, bound)]
    return Witness(
        kind=kind,
        row=row,
        column=column,
        got=values[0],
        expected=values[1],
        bound=values[2],
        failed_rows=int(failing_rows(c).sum()),
        rows=failed.shape[0] if failed.ndim else 1,
        what=c.what,
        model=model,
    )


def _kind(c: Comparison, failed: torch.Tensor, got: torch.Tensor, expected: torch.Tensor) -> tuple[str, str]:
    """(the kind of a failure, and the error model that explains it if it is `unstable`)."""
    if bool((failed & ~got.isfinite() & expected.isfinite()).any()):
        return "non-finite", ""
    if c.support and bool((failed & (expected == 0) & (c.bound == 0)).any()):
        return "out of support", ""
    for model, explained in c.explanations.items():
        if not bool((failed & ~explained()).any()):
            return "unstable", model
    return "wrong", ""
