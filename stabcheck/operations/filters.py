"""Filters of a sampler: which tokens top-k, top-p and min-p keep, exactly, and where rounding may decide either way.

Sorted by logit, the largest first, each filter keeps a prefix of the row, so what is kept is a count n, and the oracle is a pair of counts:

    top-k   n = k; compared on the logits themselves, so exact
    top-p   token j is kept iff the mass before it, C_j = Σ_{i<j} e_i / Σ_{i<b} e_i, is below p; b is the base, e_i = exp(z_i)
    min-p   token j is kept iff e_j ≥ min_p, i.e. z_j ≥ log min_p

C_j and e_j have an error in any kernel, so n lies in [least, most]: tokens before `least` must be kept, those from `most` on must be
dropped. Where the two are equal the input decides. A kernel's own n is read off its result, and everything else follows from it.

A filter that is off (k ≤ 0 or k ≥ V, p ≥ 1, min_p ≤ 0) has no rounding to decide: it must keep everything. The first token is always kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import MOST_ERROR, VACUOUS, Contract, log_error, quotient_error, rounded, scaled_overflow
from stabcheck.devices import FLUSH, U
from stabcheck.operations.base import Input
from stabcheck.operations.sorted_rows import Sorted
from stabcheck.operations.temperature_softmax import TEMPERATURES

FILTERS = 3  # each may renormalise what it leaves

# Policies of the filters, the default first.
ORDERS = ("top_k, top_p, min_p", "top_k & top_p, min_p", "min_p, top_k, top_p")  # "&": joint, top-p on the mass of the whole row
TIES = ("lowest_id", "keep_all")  # of the k-th value
NUCLEUS_TIES = ("lowest_id", "any_id", "keep_all")  # of the value that crosses p
CROSSING = ("kept", "dropped")  # the token that crosses p
FILTER_POLICIES = {"order": ORDERS, "top_k_ties": TIES, "top_p_ties": NUCLEUS_TIES, "crossing": CROSSING}

FILTER_PRESETS: Mapping[str, Mapping[str, str]] = {
    "hf": {"order": ORDERS[0], "top_k_ties": "keep_all", "top_p_ties": "any_id", "crossing": "kept"},
    "vllm": {"order": ORDERS[2], "top_k_ties": "keep_all", "top_p_ties": "any_id", "crossing": "kept"},
    "flashinfer": {"order": ORDERS[0], "top_k_ties": "keep_all", "top_p_ties": "keep_all", "crossing": "kept"},
    "flashinfer_joint": {"order": ORDERS[1], "top_k_ties": "keep_all", "top_p_ties": "keep_all", "crossing": "kept"},
}
"""What libraries do, as policies: transformers' logits warpers; vLLM's sampler, which applies min-p first and then sorts; FlashInfer's
pivots, in sequence (filter_apply_order="top_k_first") or joint."""

MERGED = "tokens are compared after a rounding that merges neighbours, of x/T or of probabilities. Compare the logits themselves"
FILTER_ERRORS = {"shift_first": "", "scale_first": MERGED}

FILTER_INPUTS = (
    Input("temperature", TEMPERATURES, ladder=True, under=("zero_temperature", "greedy", (0.0,) * 3), symbol="T"),
    Input(
        "top_k",
        (0, 1, 2, 3, 5, 50, 64, 65, 127, 128, 129, 1000, 5000, 20000, 40000, 130000, -1, 2**40, 2**31 + 2, 2**32 + 2),
        among=True,
    ),
    Input("top_p", (1.0, 0.9, 0.5, 0.1, 0.7, 0.82, 0.95, 0.999, 0.9999, 1 - 2.0**-17, 1 - 2.0**-24, 0.3, 1e-3, 1e-6, 2.0**-149, 0.0)),
    Input("min_p", (0.0, 0.1, 0.05, 0.5, 0.3, 1e-3, 1e-6, 1e-20, 1e-37, 2.0**-149, 1.0)),
)


@dataclass(frozen=True)
class Counts:
    """How many places are kept: `least` to `most`, [R] int64."""

    least: torch.Tensor
    most: torch.Tensor

    def __and__(self, other: Counts) -> Counts:
        return Counts(torch.minimum(self.least, other.least), torch.minimum(self.most, other.most))

    @property
    def undecided(self) -> torch.Tensor:
        """[R, 1] bool: rows in which rounding decides what is kept."""
        return (self.least != self.most)[:, None]


def kept_counts(rows: Sorted, batch: Batch, contract: Contract) -> Counts:
    """What the filters of each row keep, under the contract's policies."""
    policy, vocab = contract.policies, rows.x.shape[1]
    everything = torch.full_like(batch.inputs["top_k"], vocab)
    whole = Counts(everything, everything)
    k, min_p = _top_k(rows, batch.inputs["top_k"], contract), _min_p(rows, batch.inputs["min_p"].double(), contract)
    base = {ORDERS[0]: k, ORDERS[1]: whole, ORDERS[2]: k & min_p}[policy["order"]]
    nucleus = _top_p(rows, batch.inputs["top_p"].double(), base, contract)
    return _greedy(k & nucleus & min_p, batch, contract)


def _top_k(rows: Sorted, k: torch.Tensor, contract: Contract) -> Counts:
    vocab = rows.x.shape[1]
    n = torch.where((k <= 0) | (k >= vocab), vocab, k)
    if contract.policies["top_k_ties"] == "lowest_id":
        return Counts(n, n)
    n = rows.end_of_ties(n)
    return Counts(n, rows.end_of_near(n, contract))


def _top_p(rows: Sorted, p: torch.Tensor, base: Counts, contract: Contract) -> Counts:
    """Places whose mass before them is below p for certain, or possibly.

    Mass before place j: the sum of j exponentials over the sum of the base, one division; or their comparison with p times that sum, one
    product. The errors of exponentials average with their weights. `crossing = dropped` looks at the mass including place j.
    """
    including = contract.policies["crossing"] == "dropped"
    before = rows.mass if including else rows.mass - rows.e
    error = rows.error if including else rows.error - rows.e * rows.kappa
    sides = []
    for n, sign in ((base.least, 1.0), (base.most, -1.0)):
        mass = rows.total(rows.mass, n)
        share = before / mass
        relative = torch.where(before > 0, error / before, 0.0) + rows.total(rows.error, n) / mass
        slack = share * torch.expm1(relative + 2 * rows.of_sum + FILTERS * quotient_error(contract)) + 2 * U * p[:, None]
        inside = (share + sign * slack <= p[:, None]) if including else (share + sign * slack < p[:, None])
        sides.append(_last(inside & (rows.places < n[:, None]), rows, contract.policies["top_p_ties"]))
    if contract.policies["top_p_ties"] == "keep_all":
        sides[1] = torch.minimum(rows.end_of_near(sides[1], contract), base.most)
    off = p >= 1
    return Counts(torch.where(off, base.least, sides[0]), torch.where(off, base.most, sides[1]))


def _min_p(rows: Sorted, min_p: torch.Tensor, contract: Contract) -> Counts:
    """exp(z), or a quotient of two probabilities, against min_p, or z against its logarithm; exp(z) = 1 exactly at the maximum."""
    floor = min_p.log()[:, None]
    slack = rows.reach + (contract.profile.exp + 2 * contract.profile.divide + 3) * U + log_error(floor, contract)
    slack = slack + torch.where(min_p < FLUSH, torch.inf, 0.0)[:, None] * (rows.z < 0)  # a subnormal min_p may be flushed to 0
    ties = "keep_all"
    least = _last((rows.z - slack > floor) | (rows.z == 0), rows, ties)
    most = _last((rows.z + slack >= floor) | (rows.z == 0), rows, ties)
    off = min_p <= 0
    return Counts(torch.where(off, rows.x.shape[1], least), torch.where(off, rows.x.shape[1], most))


def _last(inside: torch.Tensor, rows: Sorted, ties: str) -> torch.Tensor:
    """[R] the number of places up to the last one inside, at least one."""
    n = (inside * (rows.places + 1)).amax(-1).clamp(min=1)
    return rows.end_of_ties(n) if ties == "keep_all" else n


def _greedy(counts: Counts, batch: Batch, contract: Contract) -> Counts:
    """T = 0 keeps the first token alone."""
    if contract.policies.get("zero_temperature", "greedy") != "greedy":
        return counts
    zero = batch.inputs["temperature"] == 0
    return Counts(torch.where(zero, 1, counts.least), torch.where(zero, 1, counts.most))


def choosy(contract: Contract) -> bool:
    """Whether there may be tokens that nothing tells apart, of which the kernel chooses some."""
    return contract.policies["top_p_ties"] == "any_id" or contract.error_model != "shift_first"


def exchangeable(rows: Sorted, counts: Counts, contract: Contract) -> torch.Tensor:
    """[R, V] bool, by place: tokens of which some are kept and some dropped though nothing tells them apart: the kernel chooses which.

    Ties of the value that crosses p under the policy any_id; under scale_first, tokens that its rounding may merge.
    """
    found = torch.zeros_like(rows.places, dtype=torch.bool)
    if not choosy(contract):
        return found
    for n in (counts.least, counts.most):
        near = rows.near(n, contract)
        found = found | (near & (near & (rows.places >= n[:, None])).any(-1, keepdim=True))
    return found


def with_first(rows: Sorted, preference: torch.Tensor, counts: Counts, contract: Contract) -> Sorted:
    """The rows with exchangeable tokens at the boundary re-sorted, the largest `preference` [R, V] (0 to 1, by id) first."""
    if not choosy(contract):
        return rows
    level = rows.places.double()
    for n in (counts.least, counts.most):
        level = torch.where(rows.near(n, contract), (n - 1).double()[:, None], level)
    level = level - 0.5 * preference.gather(1, rows.order)  # places are whole numbers
    again = level.sort(stable=True, dim=-1).indices
    moved = {name: getattr(rows, name).gather(1, again) for name in ("order", "x", "z", "e", "kappa")}
    return replace(rows, **moved)


def probabilities(rows: Sorted, n: torch.Tensor, contract: Contract) -> tuple[torch.Tensor, torch.Tensor]:
    """(probabilities renormalised over the first n [R] places, their bounds), by id; exactly 0 beyond.

    rel_i = expm1(κ_i + Σ_j p_j κ_j + 2·summation + 3·quotient): each filter may divide by a sum of what it leaves.
    """
    mass, dropped = rows.total(rows.mass, n), (rows.places >= n[:, None]) | (rows.x == -torch.inf)
    shared = (rows.total(rows.error, n) / mass).nan_to_num(torch.inf) + 2 * rows.of_sum + FILTERS * quotient_error(contract)
    lost = (rows.reach.isinf() & ~dropped).any(-1, keepdim=True)  # a term of the sum may be anything
    relative = torch.where(lost, MOST_ERROR, rows.kappa + shared)
    vacuous = relative >= MOST_ERROR  # any value will do where the token is kept; its exact one may be below fp64
    p = torch.where(vacuous, (rows.e / mass).nan_to_num(0.0).clamp(min=FLUSH), rows.e / mass)
    bound = torch.where(vacuous, VACUOUS, rounded(p, torch.expm1(relative), contract))
    return rows.to_columns(p.masked_fill(dropped, 0.0)), rows.to_columns(bound.masked_fill(dropped, 0.0))


def undefined(batch: Batch, rows: Sorted, counts: Counts, contract: Contract) -> torch.Tensor:
    """[R, 1] bool: rows whose filters say nothing: NaN or +inf among the logits, T < 0 or NaN, T = 0 where that is undefined, or a boundary
    among different subnormal logits, which hardware that flushes its inputs sees as ties."""
    t = batch.inputs["temperature"]
    ordinary = (batch.logits < torch.inf).all(-1) & (t >= 0)
    if contract.policies.get("zero_temperature", "greedy") != "greedy":
        ordinary &= t > 0
    if contract.error_model == "scale_first":  # such a kernel promises nothing where its scaled logits may overflow
        ordinary &= ~scaled_overflow(batch.logits.double(), contract, torch.where(t == 0, 1.0, t.double())[:, None])[:, 0]
    small = rows.x.abs() < FLUSH
    distinct = rows.x.masked_fill(~small, -1.0).amax(-1) > rows.x.masked_fill(~small, 1.0).amin(-1)
    edges = [rows.total(rows.x, n)[:, 0].abs() < FLUSH for n in (counts.least, counts.most)]
    cut = counts.least < rows.x.shape[1]
    return (~ordinary | (distinct & cut & (edges[0] | edges[1])))[:, None]


def policies(**more: Any) -> dict[str, tuple[str, ...]]:
    """The policies of an operation with filters."""
    return {**FILTER_POLICIES, **more}
