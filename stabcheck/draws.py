"""Many draws from one row, counted in a few bins: what the laws with statistics compare (`stabcheck.statistics` has the mathematics).

The row is expanded with stride 0, so a million draws cost the memory of one row; draw i has the seed of the assertion and position i. Seeds
are made of the row and the recipe: each candidate of the shrinker has fresh noise, and a replay has the same noise again. What fails is
drawn anew at 8 times as many positions of another seed, and only what fails there too is told.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import slope, summation_error
from stabcheck.cases import Case
from stabcheck.choices import OFF, with_all
from stabcheck.devices import U
from stabcheck.floats import FP32
from stabcheck.operations.filters import Counts, exchangeable, kept_counts, probabilities, undefined
from stabcheck.operations.sorted_rows import Sorted, sorted_rows
from stabcheck.registry import Function
from stabcheck.statistics import ALPHA, CONFIRM, MOST_BINS, Interval, assertion, bin_ids, bin_sums, draws_needed, pair_table
from stabcheck.verdicts import Comparison

EFFECT = 0.01  # total variation that each assertion is sized to find, wherever the mass lies
ELEMENTS_AT_ONCE = 1 << 29  # of logits read by one launch
COPIED_AT_ONCE = 1 << 26  # where the kernel takes no row stride of 0
TEMPERED = 4.0  # units from the mean of a row to its maximum, at the temperature that spreads its mass
LARGEST_SCORE = 45.0  # |z − log E| of a draw: E lies in 2^-65 … 45


Measure = Callable[[int, int], tuple[torch.Tensor, int]]


@dataclass(frozen=True)
class Bins:
    """A partition of the ids of a row [V] into bins, the last for what is no id, and what a correct kernel may give each [B]."""

    labels: torch.Tensor
    names: tuple[str, ...]
    low: torch.Tensor
    high: torch.Tensor

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """The bin of each id drawn."""
        vocab = len(self.labels)
        return torch.where((ids >= 0) & (ids < vocab), self.labels[ids.clamp(0, vocab - 1)], len(self.names) - 1)

    def counts(self, ids: torch.Tensor) -> torch.Tensor:
        """[B] how many fell into each."""
        return torch.bincount(self.of(ids), minlength=len(self.names))


@lru_cache(maxsize=8)
def usual_size(cells: int = MOST_BINS + 1) -> int:
    """Draws that find EFFECT in a cell of any share, of as many as there may be."""
    return draws_needed(0.5, EFFECT, ALPHA / cells)


def make_bins(value: torch.Tensor, low: torch.Tensor, high: torch.Tensor, order: torch.Tensor, kept: int) -> Bins:
    """Bins of a row from its probabilities by id [V], each within [low, high], and its order."""
    labels, names = bin_ids(value, order, kept)
    low, high = (torch.cat([bin_sums(side, labels, len(names)), side.new_zeros(1)]).clamp(0.0, 1.0) for side in (low, high))
    return Bins(labels, (*names, "no id"), *of_one_whole(low, high, (len(labels) + MOST_BINS) * 2.0**-53))


def of_one_whole(low: torch.Tensor, high: torch.Tensor, rounding: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The same limits [B] of shares that sum to one, none wider than the others leave it; `rounding` is the fp64 sums' own.

    Bounds are relative: a head of nearly all the mass is known through its small tail far better than by its own.
    """
    return torch.maximum(low, 1 - rounding - (high.sum() - high)), torch.minimum(high, 1 + rounding - (low.sum() - low))


def bins_of(case: Case, row: Batch) -> Bins | None:
    """The bins of one row [1, V], None where its draws mean nothing: undefined, or a single token.

    A probability is realised within its bound, renormalised over the fewest or the most tokens kept, and by scores with errors of
    their own: of the logarithm of E, of the sum of the two, and what the kernel declares for E.
    """
    rows = sorted_rows(row, case.contract)
    counts = kept_counts(rows, row, case.contract)
    if bool(undefined(row, rows, counts, case.contract)) or int(counts.most) == 1 or bool(rows.x[0, 0] == -torch.inf):
        return None
    if bool(exchangeable(rows, counts, case.contract).any()):
        return None  # which of some tokens are kept is the kernel's choice
    value, low, high = _realised(case, rows, counts)
    return make_bins(value, low, high, rows.order[0], max(1, min(int(counts.least), int((rows.e[0] > 0).sum()))))


def _realised(case: Case, rows: Sorted, counts: Counts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[V] by id: probability, and the least and the most a correct kernel may give."""
    contract = case.contract
    of_scores = 2 * (contract.noise_error + (contract.profile.log + 4) * U * LARGEST_SCORE)
    sides = [probabilities(rows, n, contract) for n in (counts.least, counts.most)]
    bounds = [bound + p * of_scores for p, bound in sides]
    low = torch.minimum(sides[0][0] - bounds[0], sides[1][0] - bounds[1])
    high = torch.maximum(sides[0][0] + bounds[0], sides[1][0] + bounds[1])
    return sides[0][0][0], low[0].clamp(min=0.0), high[0]


def rows_to_draw(case: Case) -> Iterator[tuple[str, Batch]]:
    """The first row as it is, and at the temperature at which its mass is spread."""
    if not case.batch.logits.numel():
        return
    row = case.batch.pick(slice(0, 1))
    yield "the first row", row
    yield "the first row, tempered", tempered(row)


def tempered(batch: Batch) -> Batch:
    """The batch at the temperatures at which many tokens of a row may win."""
    return batch.with_inputs(temperature=spread(batch.logits).float() / TEMPERED)


def spread(logits: torch.Tensor) -> torch.Tensor:
    """[R] the distance from the mean of the finite logits to the largest, 1 where there is none, or where x − m overflows in fp32."""
    x = logits.double()
    finite = x.isfinite()
    mean = torch.where(finite, x, 0.0).sum(-1) / finite.sum(-1).clamp(min=1)
    most, least = torch.where(finite, x, -torch.inf).amax(-1), torch.where(finite, x, torch.inf).amin(-1)
    return torch.where((most > mean) & (most - least <= FP32.max), most - mean, 1.0)


def seed_of(case: Case, row: Batch, fresh: int) -> int:
    """The seed of an assertion: of the recipe, the row and how often it was drawn before."""
    text = f"{case.recipe.to_json()} {row.digest()} {fresh}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def expanded(case: Case, row: Batch, size: int) -> Batch:
    """The row `size` times, with stride 0 if the kernel takes that."""
    inputs = {name: values.expand(size).contiguous() for name, values in row.inputs.items()}
    logits = row.logits.expand(size, -1) if case.kernel.strides else row.logits.repeat(size, 1)
    return replace(row, logits=logits, inputs=inputs, known={})


def draw(case: Case, row: Batch, n: int, seed: int, first: int = 0) -> torch.Tensor:
    """[n] the ids of n draws from one row, at positions first, first + 1, …"""
    at_once = max(1, (ELEMENTS_AT_ONCE if case.kernel.strides else COPIED_AT_ONCE) // row.logits.shape[1])
    ids = []
    for start in range(0, n, at_once):
        many = expanded(case, row, min(at_once, n - start))
        positions = torch.arange(first + start, first + start + len(many.logits), device=many.logits.device)
        ids.append(case.run(many.with_inputs(seed=torch.full_like(positions, seed), position=positions))["ids"].long())
    return torch.cat(ids)


def drawing(case: Case, row: Batch, bins: Bins) -> Measure:
    """Draws from one row, counted in its bins."""
    return lambda size, fresh: (bins.counts(draw(case, row, size, seed_of(case, row, fresh))), size)


def confirmed(measure: Measure, low: torch.Tensor, high: torch.Tensor, n: int) -> tuple[Interval, int, int]:
    """(counts against their regions, of how many draws they are, all draws made): those of n draws, or of 8 n fresh ones if these alarm.

    measure: (draws, how often it was drawn before) -> (counts [B …], of how many).
    """
    made = 0
    for fresh, size in enumerate((n, CONFIRM * n)):
        counts, of = measure(size, fresh)
        interval, made = assertion(counts, of, low, high), made + size
        if not bool(interval.alarms.any()):
            break
    return interval, of, made


def told(interval: Interval, made: int, names: tuple[str, ...], what: str) -> Comparison:
    """An assertion as a comparison, which names the bin that is furthest out."""
    if bool(interval.alarms.any()):
        distance = (interval.observed - interval.centre).abs() - interval.half_width
        worst = int(distance.flatten().argmax())
        allowed = f"{interval.low.flatten()[worst]:.0f} to {interval.high.flatten()[worst]:.0f}"
        what = f"{what}: {names[worst]} {interval.observed.flatten()[worst]:.0f} times, {allowed} allowed"
    counts, centre, half = (t.flatten() for t in (interval.observed, interval.centre, interval.half_width))
    return Comparison(counts, centre, half, what=what, aligned=False, draws=made)


def law_of_draws(case: Case) -> Iterator[Comparison]:
    """Counts of ids by bin, of each row to draw."""
    for what, row in rows_to_draw(case):
        if (bins := bins_of(case, row)) is None:
            continue
        interval, drawn, made = confirmed(drawing(case, row, bins), bins.low, bins.high, usual_size())
        yield told(interval, made, bins.names, f"{drawn} draws from {what}")


def pair_independence(case: Case) -> Iterator[Comparison]:
    """Pairs of draws at neighbouring positions, and at neighbouring seeds: counts by the bins of both against products of probabilities."""
    for _, row in list(rows_to_draw(case))[1:]:
        if (bins := bins_of(case, row)) is None:
            continue
        names = tuple(f"({a}, {b})" for a in bins.names for b in bins.names)
        for how in ("positions", "seeds"):

            def measure(size: int, fresh: int, how: str = how, row: Batch = row, bins: Bins = bins) -> tuple[torch.Tensor, int]:
                seed = seed_of(case, row, 2 + 2 * fresh + (how == "seeds"))
                if how == "positions":
                    first, second = bins.of(draw(case, row, 2 * size, seed)).view(size, 2).unbind(1)
                else:
                    first, second = (bins.of(draw(case, row, size, seed ^ flip)) for flip in (0, 1))
                return pair_table(first, second, len(bins.names)), size

            low, high = (torch.outer(side, side) for side in (bins.low, bins.high))
            interval, drawn, made = confirmed(measure, low, high, usual_size(len(names)))
            yield told(interval, 2 * made, names, f"{drawn} pairs of neighbouring {how}")


def same_draws(case: Case, route: Function, what: str) -> Iterator[Comparison]:
    """Draws of the batch, tempered and unfiltered, on two routes of a kernel that declares no noise: how many rows differ, and may.

    Both add the same noise to scores that may differ by rounding, so ids differ only where the two best scores are closer than that, δ. The
    gap of the two best scores under Gumbel noise has P(gap < δ) ≤ 1 − e^{−δ}: given the winner of weight p, the gap exceeds δ with
    probability 1/(p + (1 − p)e^δ). Where ids come from an inverse CDF instead, they differ where the uniform lies within the error of a
    sum of one of V boundaries. Siblings have positions of their own, so they are independent; archetypes may share theirs.
    """
    if not case.batch.logits.numel():
        return
    batch = tempered(with_all(case, case.batch, **OFF))
    decided = (batch.logits < torch.inf).all(-1) & (batch.logits > -torch.inf).any(-1)
    differ = ((case.run(batch, route)["ids"] != case.run(batch)["ids"]) & decided).sum().double()[None]
    delta = 2 * (slope(case.contract, batch.inputs["temperature"]) + case.contract.profile.log + 4) * U * LARGEST_SCORE
    near = -math.expm1(-delta) + 2 * case.recipe.vocab * summation_error(case.recipe.vocab, case.contract)
    archetypes, rows = len(case.recipe.rows), len(batch.logits)
    share = torch.full_like(differ, min(near, 1.0))
    most = archetypes * assertion(differ, case.recipe.siblings, torch.zeros_like(differ), share, ALPHA / archetypes).high
    what = f"{what}: rows of {rows} whose ids differ"
    yield Comparison(differ, most / 2, most / 2, kind="wrong", what=what, aligned=False, draws=rows)
