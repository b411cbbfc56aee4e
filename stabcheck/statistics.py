"""Laws on random kernels that do not flake: few bins that mean something, exact binomial regions, sample sizes from power.

A sampler draws n independent tokens from one row. Its tokens are counted in B ≤ 12 bins, and each count is Binomial(n, p_b) with p_b from
the fp64 reference. One *assertion* compares all counts at once. A correct kernel fails it with probability at most ALPHA: by Bonferroni
each bin has ALPHA/B, half in each tail. Nothing is asked of the joint law of the counts, so it holds for dependent bins as well.

A suite of 10^4 assertions alarms falsely less than once in 10^5 runs (`total_false_alarms`). A failure is confirmed with fresh noise at
CONFIRM times the draws: a false alarm survives that with probability ALPHA again, a real one then stands out √8 times as far.

Why no G-test or chi-square: their law is asymptotic, and expected counts that are fit for it in the middle (Cochran: 5) leave it far off in
a tail of 10^-9. It knows no interval of p, which kernels that compute in fp32 need, and no bin with p = 0; and its one number names no
bin. It would find an error spread evenly over all bins sooner, but the bins are chosen where errors of kernels gather. What neither
sees is an error inside one bin, which is the exact-noise oracle's to find.

Sources: C. Clopper and E. Pearson, Biometrika 26 (1934) (exact regions); O. J. Dunn, J. Amer. Statist. Assoc. 56 (1961) (Bonferroni);
NIST DLMF 8.17.5 (binomial tails as incomplete beta functions); J. L. Fleiss, Statistical Methods for Rates and Proportions, ch. 2
(sample size); W. G. Cochran, Biometrics 10 (1954) (validity of chi-square).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special

ALPHA = 1e-9  # probability that a correct kernel fails one assertion: one comparison, all its bins together
BETA = 1e-3  # probability of missing the effect that a sample was sized for
CONFIRM = 8  # a failure is confirmed with fresh noise at 8 times the draws

MOST_DRAWS = 2**33  # the tails are verified up to here
GROWTH = 1.01  # of a sample size that exact power finds too small
TIE = 2.0**-40  # probabilities this close are of equal logits: far above the rounding of fp64, far below one ulp of an fp32 logit near 1

BLOCKS, PARITIES = 3, 2
SEMANTIC = ("argmax", "head", "tail", "boundary", "first dropped", "other dropped")
ARGMAX, HEAD, TAIL, BOUNDARY, FIRST_DROPPED, OTHER_DROPPED = range(len(SEMANTIC))
REST = len(SEMANTIC)  # and above: what remains, by block and parity of the id
MOST_BINS = REST + BLOCKS * PARITIES
HEAD_SHARE = 0.5  # of the mass that the argmax leaves
TAIL_SHARE = 0.01  # of the same

Counts = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def at_least(k: ArrayLike, n: int, p: ArrayLike) -> Probabilities:
    """P(X ≥ k) = I_p(k, n − k + 1) for X ~ Binomial(n, p) (DLMF 8.17.5); 1 for k ≤ 0 and 0 for k > n.

    Small tails keep their relative precision: nothing is subtracted from 1 (10^-10 at n = 2^33, against the summed pmf in the tests).
    """
    k = np.asarray(k)
    inside = np.clip(k, 1, max(n, 1))
    tail = special.betainc(inside, n - inside + 1, p)
    return np.asarray(np.where(k <= 0, 1.0, np.where(k > n, 0.0, tail)))


def below(k: ArrayLike, n: int, p: ArrayLike) -> Probabilities:
    """P(X < k) = 1 − I_p(k, n − k + 1), computed as the complementary function and not by that subtraction."""
    k = np.asarray(k)
    inside = np.clip(k, 1, max(n, 1))
    tail = special.betaincc(inside, n - inside + 1, p)
    return np.asarray(np.where(k <= 0, 0.0, np.where(k > n, 1.0, tail)))


def acceptance(n: int, p_low: ArrayLike, p_high: ArrayLike, alpha: float) -> tuple[Counts, Counts]:
    """The smallest and the largest count that Binomial(n, p) is allowed, for every p in [p_low, p_high], elementwise.

    low is the largest k with P(X < k) ≤ alpha/2 under p_low, high the smallest k with P(X > k) ≤ alpha/2 under p_high. Binomials grow
    stochastically with p, so both tails are at most alpha/2 for every p between, and the region of one p (p_low = p_high) is exact: a
    count narrower on either side and that tail is above alpha/2. p = 0 allows 0 only, and p = 1 allows n only.

    The interval of p is what a correct kernel may realise, by the derived bounds of its probabilities; parts outside [0, 1] are cut off.
    The counts are found by bisection on the tails themselves, so they are as right as those, whatever quantile functions do.
    """
    least, most = np.clip(np.asarray(p_low, np.float64), 0.0, 1.0), np.clip(np.asarray(p_high, np.float64), 0.0, 1.0)
    if (wrong := np.atleast_1d(~(least <= most))).any():
        pair = [float(np.atleast_1d(side)[wrong][0]) for side in (least, most)]
        raise ValueError(f"p_low is {pair[0]} where p_high is {pair[1]}; pass p_low <= p_high everywhere, without NaN")
    low = _largest(n, least.shape, lambda k: below(k, n, least) <= alpha / 2)
    high = _largest(n, most.shape, lambda k: at_least(k, n, most) > alpha / 2)
    return low, high


def power(n: int, p: float, q: float, alpha: float) -> float:
    """Probability that a bin which really has probability q leaves the acceptance region of p: exact."""
    low, high = acceptance(n, p, p, alpha)
    return float(below(low, n, q) + at_least(high + 1, n, q))


def draws_needed(p: float, effect: float, alpha: float = ALPHA / MOST_BINS, beta: float = BETA) -> int:
    """Draws after which a bin of probability p that really has p + effect, or p − effect, is found with probability ≥ 1 − beta.

    alpha is the bin's own: ALPHA over the number of bins. Where one of p ± effect is no probability, only the other is asked for. The
    normal approximation is raised by 1 % until the exact power suffices. Power is a saw-tooth in n: at a few more draws it may fall short
    by a hair. Larger effects are found more often. With p known to a relative slack s, ask for draws_needed(p(1 + s), effect − p·s).
    """
    truths = [q for q in (p - effect, p + effect) if 0 <= q <= 1]
    if not (effect > 0 and truths):
        raise ValueError(f"effect is {effect} at p = {p}; pass one above 0 and at most {max(p, 1 - p)}, or p ± effect is no probability")
    n = max(_normal_draws(p, q, alpha, beta) for q in truths)
    while n <= MOST_DRAWS and min(power(n, p, q, alpha) for q in truths) < 1 - beta:
        n = math.ceil(n * GROWTH)
    if n > MOST_DRAWS:
        raise ValueError(f"an effect of {effect} at p = {p} takes {n:.3g} draws, more than 2^33; ask for a larger effect")
    return n


def total_false_alarms(assertions: int, alpha: float = ALPHA) -> float:
    """Largest probability that any of so many assertions fails for correct kernels (union bound: they need not be independent)."""
    return min(1.0, assertions * alpha)


@dataclass(frozen=True)
class Interval:
    """Counts and what is allowed of them, fp64, one entry a bin. Integers below 2^53: |observed − centre| ≤ half_width is exact."""

    observed: torch.Tensor
    expected: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @property
    def centre(self) -> torch.Tensor:
        """Not the expected count: the region of a rare bin leans upwards."""
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> torch.Tensor:
        """0 where a single count is allowed."""
        return (self.high - self.low) / 2

    @property
    def alarms(self) -> torch.Tensor:
        """Which bins are outside."""
        return (self.observed < self.low) | (self.observed > self.high)


def assertion(counts: torch.Tensor, n: int, p_low: torch.Tensor, p_high: torch.Tensor, alpha: float = ALPHA) -> Interval:
    """Holds the counts of n draws (of any shape: bins, or a table of pairs) against p in [p_low, p_high]; alpha is for all together."""
    if not counts.shape == p_low.shape == p_high.shape:
        raise ValueError(f"counts have shape {[*counts.shape]}, p_low {[*p_low.shape]}, p_high {[*p_high.shape]}; pass one of each per bin")
    low, high = acceptance(n, p_low.cpu().numpy(), p_high.cpu().numpy(), alpha / max(counts.numel(), 1))
    as_counts = (torch.from_numpy(bound).to(counts.device, torch.float64) for bound in (low, high))
    return Interval(counts.double(), (p_low.double() + p_high.double()).to(counts.device) * (n / 2), *as_counts)


def bin_ids(p: torch.Tensor, order: torch.Tensor, kept: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """A bin for every id [V] and the bins' names. p: fp64 [V], 0 where dropped; order: ids, likeliest first, of which `kept` are kept.

    Each bin is a place where samplers go wrong, and holds mass enough for few draws to tell:

    argmax          noise with a bounded tail, a temperature applied twice: wrong here first
    head            the next likeliest, up to half of the mass that the argmax leaves: temperature, top-p renormalisation
    tail            the least likely, at most 1 % of that mass: uniforms of 24 bits or less, Gumbel noise clamped by an epsilon
    boundary        the last one kept, rank kept − 1: `<` for `<=` in top-k, the token that crosses top-p; without filters the last of all
    first dropped   rank kept, p = 0: the same mistakes the other way
    other dropped   p = 0: a filter ignored, −inf drawn
    even/odd ids    the rest in 3 ranges of ids of about equal mass, each by parity: a tile forgotten or counted twice, lanes that share
                    their noise, ties collapsed on the lowest id

    Ranks among ties mean nothing: head and tail stop short of a group of ties they would split, so a uniform row is nearly all ranges and
    parities. Bins without ids are left out: 1 bin at V = 1, 12 at most.
    """
    if not 1 <= kept <= len(p):
        raise ValueError(f"kept is {kept} of {len(p)} tokens; a row keeps its argmax at least: pass 1 to {len(p)}")
    code = torch.empty_like(order)
    code[order] = _by_rank(p[order], kept)
    rest = (code == REST).nonzero()[:, 0]
    code[rest] += PARITIES * _block(p[rest]) + rest % PARITIES
    present = torch.bincount(code, minlength=MOST_BINS) > 0
    return (present.cumsum(0) - 1)[code], tuple(_name(c, code) for c in present.nonzero()[:, 0].tolist())


def bin_sums(values: torch.Tensor, labels: torch.Tensor, bins: int) -> torch.Tensor:
    """Values of ids [V] (probabilities, their bounds, counts) added up by bin [B]."""
    return torch.zeros(bins, dtype=values.dtype, device=values.device).index_add(0, labels, values)


def pair_table(first_labels: torch.Tensor, second_labels: torch.Tensor, bins: int) -> torch.Tensor:
    """Counts [B, B] of neighbouring draws, at positions 2i and 2i + 1, by the bins of the first and the second.

    No draw is in two pairs, so the pairs are independent, and each cell is Binomial(pairs, p_a·p_b) if the two are: hold it against the
    outer products of p_low and of p_high. Noise keyed alike for two positions, or a counter that overlaps, fills the diagonal.
    """
    return torch.bincount(first_labels * bins + second_labels, minlength=bins * bins).view(bins, bins)


def _largest(n: int, shape: tuple[int, ...], holds: Callable[[Counts], NDArray[np.bool_]]) -> Counts:
    """The largest k in 0..n, elementwise, for which a condition holds that holds for 0 and, once it fails, fails for all greater k."""
    low, high = np.zeros(shape, np.int64), np.full(shape, n + 1, np.int64)
    for _ in range(n.bit_length()):  # n + 1 ≤ 2^bits candidates
        middle = (low + high) // 2
        held = holds(middle)
        low, high = np.where(held, middle, low), np.where(held, high, middle)
    return low


def _normal_draws(p: float, q: float, alpha: float, beta: float) -> int:
    """n with |q − p|·n = z(alpha/2)·√(n·p(1 − p)) + z(beta)·√(n·q(1 − q)): the edge lies z(beta) deviations from the mean under q."""
    z_alpha, z_beta = -special.ndtri([alpha / 2, beta])
    deviations = z_alpha * math.sqrt(p * (1 - p)) + z_beta * math.sqrt(q * (1 - q))
    return max(1, math.ceil((deviations / abs(q - p)) ** 2)) if q != p else MOST_DRAWS + 1


def _by_rank(q: torch.Tensor, kept: int) -> torch.Tensor:
    """Bins by rank [V], of probabilities sorted downwards; REST for those to be told apart by id."""
    code = torch.full_like(q, OTHER_DROPPED, dtype=torch.int64)
    code[kept : kept + 1] = FIRST_DROPPED
    code[1 : kept - 1] = _head_or_tail(q[:kept])
    code[kept - 1] = BOUNDARY
    code[0] = ARGMAX
    return code


def _head_or_tail(q: torch.Tensor) -> torch.Tensor:
    """HEAD, TAIL or REST for the kept ranks between argmax and boundary: likelier than the first beyond the head, or less so than …"""
    inner, left = q[1:-1], q[1:].sum()
    heads = int((inner.cumsum(0) < HEAD_SHARE * left).sum()) + 1
    tails = int((inner.flip(0).cumsum(0) <= TAIL_SHARE * left).sum())
    beyond_head, before_tail = q[min(heads + 1, len(q) - 1)], q[max(len(q) - 2 - tails, 0)]
    code = torch.full_like(inner, REST, dtype=torch.int64)
    code[inner < before_tail * (1 - TIE)] = TAIL
    code[inner > beyond_head * (1 + TIE)] = HEAD
    return code


def _block(mass: torch.Tensor) -> torch.Tensor:
    """Which of BLOCKS ranges of equal mass the middle of each token's mass falls into, along the ids."""
    middle = mass.cumsum(0) - mass / 2
    return (BLOCKS * middle / mass.sum()).long().clamp(0, BLOCKS - 1)


def _name(code: int, codes: torch.Tensor) -> str:
    """As in SEMANTIC, or the parity with the first and the last id."""
    if code < REST:
        return SEMANTIC[code]
    ids = (codes == code).nonzero()
    return f"{'odd' if ids[0] % PARITIES else 'even'} ids {int(ids[0])}..{int(ids[-1])}"
