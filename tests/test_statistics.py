"""Statistics of random kernels: regions are exact, a perfect sampler never alarms, and the faults that samplers have are found."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stabcheck.statistics import (
    ALPHA,
    BETA,
    MOST_BINS,
    acceptance,
    assertion,
    at_least,
    below,
    bin_ids,
    bin_sums,
    draws_needed,
    pair_table,
    power,
    total_false_alarms,
)

PER_BIN = ALPHA / 20  # finer than any assertion's share for one bin
SMALL = [(1, 0.3), (2, 0.5), (7, 0.01), (40, 0.9), (60, 1 / 3), (120, 0.5)]
LARGE = [(n, p) for n in (2**20, 10**9, 2**33) for p in (1e-9, 1e-6, 1e-3, 0.0964, 0.5, 0.999)]


def row(logits, kept=None):
    """(p, order, kept) of a row of logits; all but the `kept` likeliest dropped."""
    logits = torch.as_tensor(logits, dtype=torch.float64)
    order = logits.sort(descending=True, stable=True).indices
    kept = len(logits) if kept is None else kept
    masked = torch.full_like(logits, -torch.inf).index_put((order[:kept],), logits[order[:kept]])
    return masked.softmax(0), order, kept


def zipf(vocab=5000):
    """Logits of a row with a head and a long tail, in shuffled order."""
    ranks = torch.arange(1, vocab + 1, dtype=torch.float64)
    return (-1.2 * ranks.log())[torch.randperm(vocab, generator=torch.Generator().manual_seed(0))]


def draw(q, n, seed, size=None):
    """Counts of n draws from masses q."""
    q = np.asarray(q, np.float64)
    return torch.from_numpy(np.random.default_rng(seed).multinomial(n, q / q.sum(), size))


def named(p, order, kept):
    """Mass by the bin's name."""
    label, names = bin_ids(p, order, kept)
    return dict(zip(names, bin_sums(p, label, len(names)).tolist(), strict=True))


def alarms(truth, claimed, labels, bins, n, seed):
    """Whether n draws from the truth, binned, are outside of what is claimed."""
    truth, claimed = (bin_sums(masses, labels, bins) for masses in (truth, claimed))
    return bool(assertion(draw(truth, n, seed), n, claimed, claimed).alarms.any())


def exact_tail(k, n, p):
    """P(X ≥ k) in rational arithmetic, of the very double p."""
    p = Fraction(p)
    return sum((math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1)), Fraction(0))


def summed_tail(k, n, p, step):
    """P(X ≥ k) (step 1) or P(X ≤ k) (step -1) beyond the mode: pmf(k) in fifty digits times Σ of the products of its ratios."""
    if not 0 <= k <= n:
        return 0.0
    with mpmath.workdps(50):
        p, log = mpmath.mpf(p), mpmath.log
        ways = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
        pmf, odds = mpmath.exp(ways + k * log(p) + (n - k) * log(1 - p)), float(p / (1 - p))
    j = np.arange(k, np.clip(k + step * (20 * math.isqrt(n) + 100), -1, n + 1), step, dtype=np.float64)
    ratios = (n - j) / (j + 1) * odds if step > 0 else j / (n - j + 1) / odds
    return float(pmf) * (1 + np.cumprod(ratios).sum())


# --- acceptance regions


@pytest.mark.parametrize(("n", "p"), SMALL)
@pytest.mark.parametrize("alpha", [0.1, PER_BIN])
def test_regions_are_exact_in_rational_arithmetic(n, p, alpha):
    low, high = (int(side) for side in acceptance(n, p, p, alpha))
    half = Fraction(alpha) / 2
    assert 1 - exact_tail(low, n, p) <= half < 1 - exact_tail(low + 1, n, p)
    assert exact_tail(high + 1, n, p) <= half < exact_tail(high, n, p)


@pytest.mark.parametrize(("n", "p"), LARGE)
def test_regions_are_exact_at_a_billion_draws_and_a_false_alarm_in_10_to_the_10(n, p):
    low, high = (int(side) for side in acceptance(n, p, p, PER_BIN))
    assert summed_tail(low - 1, n, p, -1) <= PER_BIN / 2 < summed_tail(low, n, p, -1)
    assert summed_tail(high + 1, n, p, 1) <= PER_BIN / 2 < summed_tail(high, n, p, 1)


@pytest.mark.parametrize(("n", "p"), LARGE)
def test_tails_keep_ten_digits(n, p):
    low, high = (int(side) for side in acceptance(n, p, p, PER_BIN))
    assert float(at_least(high, n, p)) == pytest.approx(summed_tail(high, n, p, 1), rel=1e-10, abs=0)
    assert low == 0 or float(below(low, n, p)) == pytest.approx(summed_tail(low - 1, n, p, -1), rel=1e-10, abs=0)


def test_a_probability_of_zero_or_one_allows_one_count_only():
    low, high = acceptance(2**33, np.array([0.0, 1.0]), np.array([0.0, 1.0]), PER_BIN)
    assert low.tolist() == high.tolist() == [0, 2**33]


def test_no_draws_allow_no_counts():
    assert [int(side) for side in acceptance(0, 0.3, 0.3, PER_BIN)] == [0, 0]


def test_an_interval_of_p_takes_low_from_its_lower_end_and_high_from_its_upper_end():
    low, high = acceptance(10**6, [0.2, 0.9], [0.3, 1.1], PER_BIN)
    assert low.tolist() == acceptance(10**6, [0.2, 0.9], [0.2, 0.9], PER_BIN)[0].tolist()
    assert high.tolist() == acceptance(10**6, [0.3, 1.0], [0.3, 1.0], PER_BIN)[1].tolist()


@pytest.mark.parametrize("p_high", [0.1, math.nan])
def test_an_interval_of_p_that_is_none_is_named(p_high):
    with pytest.raises(ValueError, match=rf"p_low is 0.2 where p_high is {p_high}; pass p_low <= p_high"):
        acceptance(10, [0.0, 0.2], [0.0, p_high], ALPHA)


# --- sample sizes


@pytest.mark.parametrize(("n", "p", "q"), [(40, 0.5, 0.9), (100, 0.1, 0.35), (60, 1.0, 0.99), (60, 0.0, 0.01)])
def test_power_is_exact(n, p, q):
    low, high = (int(side) for side in acceptance(n, p, p, 0.01))
    assert power(n, p, q, 0.01) == pytest.approx(float(1 - exact_tail(low, n, q) + exact_tail(high + 1, n, q)), rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("p", "effect"), [(0.5, 0.01), (0.0964, 0.00675), (1e-6, 2e-7), (1e-9, 1e-6), (1e-3, 1.0 - 1e-3), (1.0, 1e-4), (0.0, 1e-4)]
)
def test_draws_needed_suffice_and_are_few(p, effect):
    n = draws_needed(p, effect)
    truths = [q for q in (p - effect, p + effect) if 0 <= q <= 1]
    assert min(power(n, p, q, ALPHA / MOST_BINS) for q in truths) >= 1 - BETA
    assert n < 8 or min(power(n // 2, p, q, ALPHA / MOST_BINS) for q in truths) < 1 - BETA


@pytest.mark.parametrize(("p", "effect"), [(0.5, 0.0), (0.5, 0.6), (0.5, -0.1), (0.5, math.nan)])
def test_an_effect_that_no_bin_can_have_is_refused(p, effect):
    with pytest.raises(ValueError, match=f"effect is {effect} at p = 0.5; pass one above 0 and at most 0.5"):
        draws_needed(p, effect)


@pytest.mark.parametrize("effect", [1e-6, 1e-30])
def test_an_effect_too_small_for_any_run_is_refused(effect):
    with pytest.raises(ValueError, match="draws, more than 2\\^33; ask for a larger effect"):
        draws_needed(0.5, effect)


def test_false_alarms_of_a_suite_add_up():
    assert total_false_alarms(10_000) == pytest.approx(1e-5)
    assert total_false_alarms(3 * 10**9) == 1.0


# --- bins

LOGITS = st.sampled_from([0.0, 0.0, 1.0, -1.0, 3.0, -20.0, 14.0, -800.0])


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(st.lists(LOGITS, min_size=1, max_size=40), st.data())
def test_bins_are_a_partition(logits, data):
    p, order, kept = row(logits, data.draw(st.integers(1, len(logits))))
    label, names = bin_ids(p, order, kept)
    assert label.shape == p.shape and label.dtype == torch.int64
    assert label.unique().tolist() == [*range(len(names))]  # every bin has ids, and every id a bin
    assert len({*names}) == len(names) <= MOST_BINS
    dropped = {names[b] for b in label[order[kept:]].tolist()}
    assert dropped == {*("first dropped", "other dropped")[: len(logits) - kept]}
    assert names[label[order[0]]] == "argmax"
    assert kept == 1 or names[label[order[kept - 1]]] == "boundary"


@settings(derandomize=True, max_examples=100, deadline=None, database=None)
@given(st.integers(2, 60), st.integers(0, 10**6))
def test_head_and_tail_hold_their_shares(vocab, seed):
    logits = 3 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, order, kept = row(logits)
    label, names = bin_ids(p, order, kept)
    left = 1 - float(p.max())
    bins = {name: p[label == b] for b, name in enumerate(names)}
    assert float(bins.get("tail", torch.zeros(1)).sum()) <= 0.01 * left
    if "head" in bins:
        assert bins["head"].sum() - bins["head"].min() < 0.5 * left  # without its last token it is short of half


@pytest.mark.parametrize(
    ("logits", "kept", "names"),
    [
        ([0.0], 1, ["argmax"]),
        ([0.0, 1.0], 2, ["argmax", "boundary"]),
        ([0.0, 1.0], 1, ["argmax", "first dropped"]),
        ([2.0, 1.0, 0.0], 3, ["argmax", "head", "boundary"]),
        ([0.0, 0.0, 0.0], 3, ["argmax", "boundary", "odd ids 1..1"]),
        ([2.0, 1.0, 0.0], 1, ["argmax", "first dropped", "other dropped"]),
    ],
)
def test_small_rows_have_the_bins_they_can(logits, kept, names):
    assert [*bin_ids(*row(logits, kept))[1]] == names


def test_a_row_with_everything_has_twelve_bins():
    logits = zipf()
    logits[::2] += 1e-9  # evens and odds interleave in likelihood
    masses = named(*row(logits, 2000))
    assert len(masses) == MOST_BINS
    assert 0.45 < masses["head"] / (1 - masses["argmax"]) < 0.65
    blocks = [mass for name, mass in masses.items() if " ids " in name]
    assert len(blocks) == 6 and min(blocks) > 0.2 * max(blocks)


def test_a_uniform_row_is_ranges_and_parities():
    masses = named(*row(torch.zeros(128256)))
    blocks = [mass for name, mass in masses.items() if " ids " in name]
    assert [*masses][:2] == ["argmax", "boundary"] and len(masses) == 8
    assert blocks == pytest.approx([1 / 6] * 6, rel=1e-3)


def test_a_head_does_not_split_ties_and_their_rounding_does_not_make_them_different():
    logits = torch.zeros(100, dtype=torch.float64)
    logits[7] = 3.0
    p, order, kept = row(logits)
    p = p * (1 + 2.0**-51 * torch.arange(100).remainder(3).double())  # as vector and scalar lanes of exp may differ
    assert {*bin_ids(p, order, kept)[1]}.isdisjoint({"head", "tail"})


def test_ranges_of_ids_share_the_mass():
    names = bin_ids(*row(torch.zeros(8)))[1]
    assert names == ("argmax", "boundary", *(f"{'odd' if i % 2 else 'even'} ids {i}..{i}" for i in (2, 1, 4, 3, 6, 5)))


def test_keeping_no_token_is_refused():
    p, order, _ = row([0.0, 1.0])
    with pytest.raises(ValueError, match="kept is 0 of 2 tokens; a row keeps its argmax at least: pass 1 to 2"):
        bin_ids(p, order, 0)


# --- what is found, and what is not

ROWS = {
    "zipf": row(zipf()),
    "zipf, top 50": row(zipf(), 50),
    "gap 14": row([14.0] + [0.0] * 128255),
    "uniform": row(torch.zeros(1000)),
    "one token": row([0.0]),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_perfect_sampler_never_alarms(name):
    p, order, kept = ROWS[name]
    label, names = bin_ids(p, order, kept)
    masses = bin_sums(p, label, len(names))
    interval = assertion(torch.zeros(len(names)), 10**6, masses, masses)
    counts = draw(masses, 10**6, seed=1, size=1000)
    assert ((counts - interval.centre).abs() <= interval.half_width).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gain", ["tail", "boundary"])
def test_one_percent_of_the_mass_taken_from_the_head_is_found(seed, gain):
    p, order, kept = ROWS["zipf"]
    label, names = bin_ids(p, order, kept)
    masses = bin_sums(p, label, len(names))
    head, other = names.index("head"), names.index(gain)
    q = p.clone()
    q[label == head] *= 1 - 0.01 / masses[head]
    q[label == other] *= 1 + 0.01 / masses[other]
    assert (q - p).abs().sum() / 2 == pytest.approx(0.01)
    n = draws_needed(float(masses[head]), 0.01, ALPHA / len(names))
    assert alarms(q, p, label, len(names), n, seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_deficit_of_seven_percent_in_the_tail_behind_a_gap_of_14_is_found(seed):
    p, order, kept = ROWS["gap 14"]
    label, names = bin_ids(p, order, kept)
    behind = p < p.max()
    tail = float(p[behind].sum())
    assert tail == pytest.approx(0.0964, abs=5e-5)
    n = draws_needed(tail, 0.07 * tail, ALPHA / len(names))
    assert n < 300_000
    assert alarms(torch.where(behind, 0.93 * p, p + 0.07 * tail), p, label, len(names), n, seed)


FAULTS = {
    "ties collapse on the lowest id": lambda v, q: q.index_fill(0, v[1:], 0.0),
    "a tenth of the draws collapse on the lowest id": lambda v, q: torch.where(v == 0, 0.1, 0.9 * q),
    "odd ids are drawn 5 % more often": lambda v, q: q * (1 + 0.05 * (v % 2)),
    "the last tile is forgotten": lambda v, q: q * (v < len(v) - 24),
    "the second tile is counted twice": lambda v, q: q * (1 + ((v >= 64) & (v < 128))),
    "every pair of ids draws its lower one": lambda v, q: q * (v % 2 == 0),
    "the last id is never drawn": lambda v, q: q * (v < len(v) - 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_by_position_are_found_in_a_uniform_row(fault):
    p, order, kept = ROWS["uniform"]
    label, names = bin_ids(p, order, kept)
    assert alarms(FAULTS[fault](torch.arange(len(p)), p), p, label, len(names), 10**6, seed=3)


@pytest.mark.parametrize(("lost", "gained"), [(49, 50), (50, 49)], ids=["one token too many", "one token too few"])
def test_one_draw_of_a_dropped_token_and_a_lost_boundary_are_found(lost, gained):
    p, order, kept = ROWS["zipf, top 50"]
    label, names = bin_ids(p, order, kept)
    masses = bin_sums(p, label, len(names))
    counts = draw(p, 10**6, seed=4)
    if lost == 49:
        counts[order[lost]] -= 1
        counts[order[gained]] += 1
    else:
        counts[order[gained]], counts[order[0]] = 0, counts[order[0]] + counts[order[gained]]
    found = assertion(bin_sums(counts, label, len(names)), 10**6, masses, masses).alarms
    assert [name for name, alarm in zip(names, found, strict=True) if alarm] == ["first dropped" if lost == 49 else "boundary"]


def test_slack_of_the_probabilities_is_not_an_alarm():
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    n, q = 2**33, p * torch.tensor([1 + 1e-3, 1 - 1e-3 / 3], dtype=torch.float64)
    counts = draw(q, n, seed=5)
    assert assertion(counts, n, p, p).alarms.all()
    assert not assertion(counts, n, p * (1 - 2e-3), p * (1 + 2e-3)).alarms.any()


def test_an_interval_tells_what_was_expected():
    p = torch.tensor([0.0, 1e-3, 1 - 1e-3], dtype=torch.float64)
    interval = assertion(torch.tensor([1, 10, 9990]), 10_000, p, p)
    assert interval.expected.tolist() == pytest.approx([0, 10, 9990])
    assert interval.alarms.tolist() == [True, False, False]
    assert [*interval.centre - interval.half_width] == [*interval.low] and [*interval.centre + interval.half_width] == [*interval.high]
    assert interval.half_width[0] == 0 and interval.low.dtype == torch.float64


def test_the_bins_of_an_assertion_share_its_false_alarm():
    p = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    interval = assertion(torch.zeros(2, 2), 10**6, p, p)
    low, high = acceptance(10**6, p.numpy(), p.numpy(), ALPHA / 4)
    assert interval.low.tolist() == low.tolist() and interval.high.tolist() == high.tolist()


def test_counts_of_another_shape_than_the_bins_are_refused():
    with pytest.raises(ValueError, match=r"counts have shape \[3\], p_low \[2\], p_high \[2\]; pass one of each per bin"):
        assertion(torch.zeros(3), 1, torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("repeated", [0.0, 0.02], ids=["independent", "one in fifty repeats its neighbour"])
def test_neighbours_that_share_their_noise_are_found_on_the_diagonal(repeated):
    rng, pairs, p = np.random.default_rng(6), 200_000, torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    first, second = rng.choice(4, (2, pairs), p=p.numpy())
    second = np.where(rng.random(pairs) < repeated, first, second)
    table = pair_table(torch.from_numpy(first), torch.from_numpy(second), 4)
    found = assertion(table, pairs, torch.outer(p, p), torch.outer(p, p)).alarms
    assert table.sum() == pairs and int(table[0, 1]) == int(((first == 0) & (second == 1)).sum())
    assert bool(found.diagonal().any()) == bool(repeated)
    assert repeated or not found.any()
