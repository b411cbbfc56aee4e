"""Filter mutants, and the correct filters they are made of: torch's operations on sorted rows, as many a sampler has them.

The largest logit comes first, and of equal ones the lowest id. Top-k, top-p on what is left, and min-p each keep a prefix of that:

    e_i = exp((x_i - m)/T)    W = Σ e_i over the k first    kept: i < k with Σ_{j<i} e_j < p·W and e_i ≥ min_p, but at least the first

What is subtracted is the maximum made finite, so a row of -inf has e = 0 and no probability above 0. T = 0 keeps the first.
"""

from collections.abc import Callable
from functools import partial

import torch

from stabcheck.kernels.mutants.skeleton import mutant

mutant = partial(mutant, operation="filtered_probs")
LEAST = -3.4028234663852886e38


def by_value(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values in fp32, ids), sorted."""
    return (logits.float() + 0.0).contiguous().sort(dim=-1, descending=True, stable=True)


def exponents(values: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(x - m)/T of sorted rows, as if T were 1 where it is 0."""
    return (values - values[:, :1].clamp(min=LEAST)) / torch.where(temperature == 0, 1.0, temperature)[:, None]


def exactly_k(values: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """[R] k, or V where there is no limit."""
    vocab = values.shape[1]
    return torch.where((top_k <= 0) | (top_k >= vocab), vocab, top_k)


def those_left(n: torch.Tensor, vocab: int) -> torch.Tensor:
    return n


def mass_before(before: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return before


def counts_of(
    values: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    *,
    first: Callable[..., torch.Tensor] = exactly_k,  # how many places top-k keeps
    base: Callable[..., torch.Tensor] = those_left,  # how many places have the mass that top-p is a share of
    mass: Callable[..., torch.Tensor] = mass_before,  # what top-p compares
) -> torch.Tensor:
    """[R] how many places of sorted rows are kept."""
    places = torch.arange(values.shape[1], device=values.device)
    n, e, p = first(values, top_k), exponents(values, temperature).exp(), top_p[:, None]
    whole = torch.where(places < base(n, values.shape[1])[:, None], e, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
    before = e.cumsum(-1, dtype=torch.float64) - e
    kept = (p >= 1) | (mass(before, e) < p * whole)
    count = (kept & (e >= min_p[:, None]) & (places < n[:, None])).sum(-1)
    return torch.where(temperature == 0, 1, count.clamp(min=1))


def filtered_probs(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, **slots: Callable
) -> torch.Tensor:
    """The correct kernel, but for what is put into its slots."""
    values, order = by_value(logits)
    counts = counts_of(values, temperature, top_k, top_p, min_p, **slots)
    kept = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    e = torch.where(kept, exponents(values, temperature).exp(), 0.0)
    p = torch.where(e > 0, e / e.sum(-1, keepdim=True, dtype=torch.float64), 0.0).float()
    return torch.empty_like(p).scatter_(1, order, p)


@mutant("SA1", killed_by=("keep_set",), vocab=8)
def measures_top_p_on_the_whole_row(logits, temperature, top_k, top_p, min_p):
    """Measures top-p as a share of the whole row's mass although top-k came first, and keeps too many (TokenSpeed #280)."""
    return filtered_probs(logits, temperature, top_k, top_p, min_p, base=lambda n, vocab: torch.full_like(n, vocab))


@mutant("SA6", killed_by=("no_op",), rows=2, vocab=2)
def takes_no_min_p_for_a_small_one(logits, temperature, top_k, top_p, min_p):
    """Beside a row with min-p, takes 0 for 1e-20: a token 47 units below the maximum is lost (TokenSpeed #280)."""
    stand_in = torch.where((min_p > 0).any(), min_p.clamp(min=1e-20), min_p)
    return filtered_probs(logits, temperature, top_k, top_p, stand_in)


@mutant("SA8", killed_by=("nucleus",), vocab=2)
def drops_the_token_that_crosses(logits, temperature, top_k, top_p, min_p):
    """Drops the token that crosses p, and what is kept does not reach it (the sampling set)."""
    return filtered_probs(logits, temperature, top_k, top_p, min_p, mass=lambda before, e: before + e)


def _at_least(values: torch.Tensor, bar: torch.Tensor) -> torch.Tensor:
    """[R] the number of values that are at least `bar` [R]."""
    return (values >= bar[:, None]).sum(-1)


def _kth(values: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """[R] the n-th value."""
    return values.gather(1, n[:, None] - 1)[:, 0]


def _k_and_its_ties(values: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    return _at_least(values, _kth(values, exactly_k(values, top_k)))


@mutant("SA15", killed_by=("keep_set",), vocab=2)
def keeps_all_ties_of_the_kth(logits, temperature, top_k, top_p, min_p):
    """Keeps every token that ties with the k-th, where the contract says k tokens, and ties are many in bf16 (the sampling set)."""
    return filtered_probs(logits, temperature, top_k, top_p, min_p, first=_k_and_its_ties)


def _by_pivot(values: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """[R] how many are at least `low`, when the interval that has the k-th value was halved 18 times; of mere ties no more than k."""
    k = exactly_k(values, top_k)
    low, high = torch.where(values > -torch.inf, values, torch.inf).amin(-1), values[:, 0]
    for _ in range(18):
        pivot = torch.maximum(0.5 * low + 0.5 * high, torch.nextafter(low, high))  # of neighbours, the upper one
        enough = _at_least(values, pivot) >= k
        low, high = torch.where(enough, pivot, low), torch.where(enough, high, pivot)
    found = _at_least(values, low)
    exact = (found < k) | (_kth(values, found.clamp(min=1)) == _kth(values, k))
    return torch.where(exact, k, found)


@mutant("SA16", killed_by=("keep_set",), vocab=4)
def gives_the_pivot_search_18_steps(logits, temperature, top_k, top_p, min_p):
    """Halves the range of the logits 18 times in search of the k-th: one of -1e30 leaves the others unresolved (the sampling set)."""
    return filtered_probs(logits, temperature, top_k, top_p, min_p, first=_by_pivot)
