"""Laws on what is kept, drawn and accepted hold for right kernels, and each of their comparisons has a kernel that breaks it."""

import planted_sampling as sampling
import pytest
import torch
from planted import CPU, LAWS, kernel
from planted_sampling import (
    DECLARED,
    NOISE,
    PROBS,
    RIGHT,
    SAMPLE,
    VERIFY,
    filtered,
    first_finding,
    inf,
    noise,
    probs_of,
    put,
    right_filter,
    right_sampler,
    rows_of,
    sampler,
    verifier,
)

from stabcheck.cases import Case
from stabcheck.choices import appended, in_pools, with_every_other_off, with_other_offs

EVERYWHERE = {"determinism", "graph_replay", "in_place", "isolation", "layout", "memory", "offsets64", "routes", "widening"}
ONLY = {
    PROBS: {"accuracy", "appended", "argmax", "finiteness", "keep_set", "masking", "no_op", "normalisation", "nucleus", "permutation"}
    | {"range", "shift_invariance"},
    SAMPLE: {"appended", "argmax", "exact_noise", "id_range", "keep_set", "masked_never_drawn", "no_op", "noise_keys", "slots"},
    VERIFY: {"accuracy", "coin_grid", "id_range", "masked_never_drawn"},
}
STATISTICS = {"draws", "losslessness", "pairs", "tail_mass"}  # on a GPU
HERE = [(name, operation) for operation in RIGHT for name in sorted(EVERYWHERE | ONLY[operation]) if not LAWS[name].gpu]


@pytest.mark.parametrize("operation", RIGHT)
def test_the_laws_that_say_something_about_an_operation_apply_to_it_and_no_other(operation):
    made = kernel(RIGHT[operation], operation)
    assert {name for name, law in LAWS.items() if law.applies(made)} - STATISTICS == EVERYWHERE | ONLY[operation]


@pytest.mark.parametrize(("name", "operation"), [(n, o) for n, o in HERE if n not in ("in_place", "routes")])
def test_a_right_kernel_keeps_the_law(name, operation):
    dtype = "fp32" if "fp32" in LAWS[name].dtypes else "bf16"
    examined = put(RIGHT[operation], operation, name, dtype, **DECLARED[operation])
    found = first_finding(examined, examples=18)
    assert found is None, found.text()
    assert examined.tally.total.compared


# ---- faults: law, operation, kernel, what the comparison that fails is called


def off_by(change):
    """Filters with their parameters changed."""
    return filtered(of_inputs=change)


def sampler_off_by(change):
    return lambda x, t, k, p, m, seed, position: right_sampler(x, *change(t, k, p, m), seed, position)


def base_of_min_p(mass, row, n):
    """p · D with D of the tokens above the mean."""
    return torch.where(row.z > -1, row.e, 0.0).sum(-1, keepdim=True).minimum(mass)


def of_width(keep, row, k):
    """k off where it reaches V rounded up to a block, of any width but that of a power of two."""
    block = -(-row.x.shape[1] // 64) * 64
    return torch.where(((k > 0) & (k * 2 > block))[:, None], row.rank < (k[:, None] - 1).clamp(min=1), keep)


def ignoring_masks(ids, row, keep, score):
    """A coin below a thousandth gives the last id, masked or not."""
    return torch.where((score.amax(-1) < -0.5) & (row.x.amin(-1) == -inf), row.order[:, -1], ids)


def one_too_far(ids, row, keep, score):
    """Where all is -inf the search ends behind the row."""
    return torch.where(row.x[:, 0] == -inf, row.x.shape[1], ids)


def one_too_far_for_nan(ids, row, keep, score):
    return torch.where((row.x != row.x).any(-1), row.x.shape[1], ids)


def minus_one_without_a_temperature(x, t, *rest):
    return torch.where(t.isnan(), -1, right_sampler(x, t, *rest))


def last_of_the_largest(ids, row, keep, score):
    return torch.where(row.x == row.x[:, :1], row.order, 0).amax(-1)


def of_the_width(seed, position, vocab, role=0):
    return noise(seed, position + vocab, vocab, role)


def cut(t, k, p, m):
    return t, k, p, torch.where(m <= 0, 1e-20, m)


def k_in_32_bits(t, k, p, m):
    """2^40 becomes 0, which is off, and 2^40 + 5 would become 5; −2^63 becomes 0 and then 1."""
    return t, torch.where(k < -(2**31), 1, k), p, m


def negative_min_p(t, k, p, m):
    return t, k, p, m.abs()


def p_beyond_one(t, k, p, m):
    return t, k, torch.where(p > 1, 1 / p, p), m


def softmaxed(p, q):
    return (p - q).softmax(-1)


def not_normalised(weights, coin):
    """The coin against running sums, not against the coin's share of the whole."""
    passed = (weights.cumsum(-1) > coin[:, None]) & (weights > 0)
    last = ((weights > 0) * torch.arange(weights.shape[1])).amax(-1)
    return torch.where(passed.any(-1), passed.long().argmax(-1), last)


def at_the_coin(weights, coin):
    """Σ ≥ coin · whole where it should be larger: a coin of 0 gives the first id, masked or not."""
    return (weights.cumsum(-1) >= coin[:, None] * weights.sum(-1, keepdim=True)).long().argmax(-1)


def shifted_ids(ids, accepted, drafts):
    return ids.roll(1, -1)


def beyond_k(accepted, length):
    return torch.where(accepted == length, length + 1, accepted)


def minus_one_after(ids, accepted, drafts):
    return torch.where(torch.arange(ids.shape[1]) == accepted[:, None], -1, ids)


FIRST = torch.arange(64)
CAUGHT = {
    "accuracy": [
        (PROBS, filtered(of_probs=lambda p, row, keep: p * (1 + 1e-4)), ""),
        (PROBS, filtered(of_probs=lambda p, row, keep: torch.where(keep, row.z.softmax(-1), 0.0)), ""),
        (VERIFY, verifier(of_accepted=lambda a, length: (a - 1).clamp(min=0)), "accepted"),
        (VERIFY, verifier(draw=lambda w, c: w.argmax(-1)), "emitted"),
        (VERIFY, verifier(of_ids=lambda ids, a, d: ids.clamp(min=0)), "misplaced"),
    ],
    "appended": [
        (PROBS, filtered(of_keep=of_width), "appended"),
        (SAMPLE, sampler(of_the_width), "with columns of -inf appended, and without", NOISE | {"noise": of_the_width}),
    ],
    "argmax": [
        (PROBS, off_by(lambda t, k, p, m: (t, torch.where(k == 1, 2, k), p, m)), "top_k = 1 "),
        (PROBS, off_by(lambda t, k, p, m: (t, k, torch.where(p == 0, 1.0, p), m)), "top_p = 0 "),
        (PROBS, off_by(lambda t, k, p, m: (t.clamp(min=1e-3), k, p, m)), "temperature = 0 "),
        (SAMPLE, sampler(of_ids=last_of_the_largest), "top_k = 1 "),
    ],
    "coin_grid": [
        (VERIFY, verifier(lambda c, p, q: c < p), "accepting"),
        (VERIFY, verifier(lambda c, p, q: c * q + 1e-3 < p), "accepting"),
        (VERIFY, verifier(residual=softmaxed), "emitted: "),
        (VERIFY, verifier(draw=not_normalised), "the last"),
    ],
    "exact_noise": [
        (SAMPLE, sampler(of_ids=sampling.second_best), "id with the argmax of scores"),
        (SAMPLE, sampler(lambda s, p, v: noise(s, p, v).flip(-1)), "id with the argmax of scores"),
        (SAMPLE, sampler(sampling.low_half), ""),
        (SAMPLE, sampler(sampling.by_slot), ""),
        (SAMPLE, sampler(of_ids=sampling.as_value), ""),
        (SAMPLE, sampler(by_place=True), ""),
    ],
    "id_range": [
        (SAMPLE, sampler(of_ids=one_too_far), "logits all -inf"),
        (SAMPLE, sampler(of_ids=one_too_far_for_nan), "logits all nan"),
        (SAMPLE, minus_one_without_a_temperature, "every parameter NaN"),
        (SAMPLE, sampler(of_ids=lambda ids, *_: ids + 1), "with its limits"),
        (VERIFY, verifier(of_ids=minus_one_after), "emitted"),
        (VERIFY, verifier(of_accepted=lambda a, length: a - 1), "accepted"),
        (VERIFY, verifier(of_ids=shifted_ids), ""),
    ],
    "isolation": [
        (SAMPLE, right_sampler, "parameters from pools", {"pooled": sampling.pooled_by_slot}),
        (SAMPLE, right_sampler, "parameters from pools", {"pooled": sampling.pooled_but_for_the_seed}),
        (SAMPLE, sampler(lambda s, p, v: noise(s + s.sum(), p, v)), "rows between NaN rows"),
    ],
    "keep_set": [
        (PROBS, off_by(lambda t, k, p, m: (t, torch.where(k > 0, k + 1, k), p, m)), "kept (1) or dropped (0)"),
        (PROBS, filtered(of_min_p=lambda row, m: row.e > m), "kept (1) or dropped (0)"),
        (PROBS, filtered(of_mass=base_of_min_p), "kept (1) or dropped (0)"),
        (PROBS, filtered(of_keep=sampling.swapped), "kept (1) or dropped (0)"),
        (PROBS, filtered(order="top_k & top_p, min_p"), "kept (1) or dropped (0)"),
        (SAMPLE, sampler_off_by(lambda t, k, p, m: (t, torch.where(k > 0, k + 1, k), p, m)), "ids with those the filters keep"),
    ],
    "masked_never_drawn": [
        (SAMPLE, sampler(of_ids=ignoring_masks), "masked columns: 1 where"),
        (SAMPLE, lambda x, t, *rest: right_sampler((x.float() / t.clamp(min=1e-6)[:, None]).clamp(min=-1e30), t * 0 + 1, *rest), ""),
        (SAMPLE, lambda x, t, *rest: right_sampler(torch.where(t > 1e20, 0.0, 1.0)[:, None] * x.clamp(min=-3e38), t, *rest), "T = 1e30"),
        (VERIFY, verifier(lambda c, p, q: c * q <= p), "accepted: masked columns, coins of 0"),
        (VERIFY, verifier(draw=at_the_coin), "emitted: masked columns, coins of 0"),
    ],
    "no_op": [
        (PROBS, off_by(cut), "all filters off"),
        (PROBS, off_by(k_in_32_bits), "filters off by other values"),
        (PROBS, off_by(negative_min_p), "filters off by other values"),
        (PROBS, off_by(p_beyond_one), "filters off by other values"),
        (PROBS, off_by(sampling.switched_on_for_all), "rows without filters beside rows with them"),
    ],
    "noise_keys": [
        (SAMPLE, right_sampler, "(seed, position, role)", {"noise": sampling.of_the_sum}),
        (SAMPLE, right_sampler, "(seed, position, role)", {"noise": sampling.low_half}),
        (SAMPLE, right_sampler, "(seed, position, role)", {"noise": sampling.without_a_role}),
        (SAMPLE, right_sampler, "", {"noise": lambda s, p, v: noise(s, p.to(torch.int32), v)}),
    ],
    "normalisation": [(PROBS, filtered(of_probs=lambda p, row, keep: torch.where(keep, row.z.softmax(-1), 0.0)), "row sums")],
    "nucleus": [
        (PROBS, filtered(crossing="dropped"), "p with the mass kept"),
        (PROBS, off_by(lambda t, k, p, m: (t, k, torch.where(p < 1, p * 0.9, p), m)), "p with the mass kept"),
        (PROBS, off_by(lambda t, k, p, m: (t, k, torch.where(p < 1, p * 1.1, p), m)), "the mass without the least token"),
        (PROBS, filtered(of_keep=sampling.without_the_first), ""),
        (PROBS, filtered(of_keep=sampling.swapped), ""),
    ],
    "slots": [
        (SAMPLE, sampler(sampling.by_slot), ""),
        (SAMPLE, sampler(lambda s, p, v: noise(s, p + (FIRST[: len(s)] > 2), v)), ""),
        (SAMPLE, sampler(lambda s, p, v: noise(s, p + (FIRST[: len(s)] > 12), v)), "tempered, in 32 slots"),  # of batches of 12 rows
    ],
}
FAULTS = [(law, *fault, {}) if len(fault) == 3 else (law, *fault) for law, faults in CAUGHT.items() for fault in faults]


@pytest.mark.parametrize(("law", "operation", "function", "what", "declared"), FAULTS)
def test_the_law_catches_its_mistake(law, operation, function, what, declared):
    noisy = NOISE if operation == SAMPLE and law in ("exact_noise", "noise_keys") else {}
    found = first_finding(put(function, operation, law, **noisy | declared), examples=400)
    assert found is not None
    assert what in found.witness.what, found.text()


def test_every_new_law_is_broken_by_a_kernel_here():
    new = set.union(*ONLY.values()) - {"finiteness", "masking", "permutation", "range", "shift_invariance"}  # tests/test_laws.py
    assert new <= set(CAUGHT)


def test_a_smaller_token_kept_for_a_larger_one_is_found_where_the_mass_is_enough():
    found = put(filtered(of_keep=sampling.swapped), PROBS, "nucleus").examine(probs_of([1.0, 0.9, 0.8, 0.7], top_p=0.3))
    assert "the largest dropped with the least kept" in found.witness().what


def test_a_linear_search_is_found_by_one_huge_negative_column():
    made, linear = probs_of([3.0, 2.0, 1.0, 0.0], top_k=2), filtered(of_keep=sampling.linear_search)
    for law in ("accuracy", "keep_set", "no_op", "argmax"):
        assert put(linear, PROBS, law).examine(made).ok
    assert "columns of -1e+30 appended" in put(linear, PROBS, "appended").examine(made).witness().what
    assert put(right_filter, PROBS, "appended").examine(made).ok


# ---- the variations


def case_of(operation, recipe, function=None, **declared):
    return Case(kernel(function or RIGHT[operation], operation, **declared), CPU, recipe)


def test_filters_are_off_by_every_value_that_means_so():
    batch = with_other_offs(case_of(PROBS, rows_of(PROBS, *[[0.0, 1.0]] * 6, top_k=1, top_p=0.1, min_p=0.5)))
    assert set(batch.inputs["top_k"].tolist()) == {2, -1, 7, 2**40, -(2**63)}
    assert (batch.inputs["top_p"].min(), batch.inputs["min_p"].max()) == (1.0, 0.0)


@pytest.mark.parametrize("parity", [0, 1])
def test_every_other_row_is_off_and_the_others_on_whatever_they_had(parity):
    batch = with_every_other_off(case_of(PROBS, rows_of(PROBS, *[[0.0, 1.0]] * 4, top_k=[0, 1, 0, 1])), parity)
    on = [k > 0 and p < 1 and m > 0 for k, p, m in zip(*(batch.inputs[n].tolist() for n in ("top_k", "top_p", "min_p")), strict=True)]
    assert on == [row % 2 != parity for row in range(4)]


@pytest.mark.parametrize(
    ("row", "inputs", "value", "sharing"),
    [
        ([3.0, 2.0], {}, -inf, False),
        ([3.0, 2.0], {}, -1e30, False),
        ([3.0, 2.0], {"temperature": 1e28}, -1e30, True),
        ([-1e30, -1e30], {}, -1e30, True),
        ([3.0, -inf], {}, -1e30, True),  # as many as are masked may be kept by k
        ([3.0, 2.0], {"top_k": 2}, -inf, True),  # off before, on after
        ([3.0, 2.0], {"top_k": 1}, -inf, False),
    ],
    ids=str,
)
def test_columns_appended_have_no_share_but_where_they_are_told_to(row, inputs, value, sharing):
    wide, told = appended(case_of(PROBS, probs_of(row, **inputs)), value)
    assert told.tolist() == [sharing]
    assert wide.logits.shape[1] > 2 and bool((wide.logits[:, 2:] == torch.tensor(value)).all())


def test_pools_hold_each_rows_parameters_at_its_index_and_nothing_that_means_something_elsewhere():
    case = case_of(SAMPLE, rows_of(SAMPLE, *[[0.0, 1.0]] * 3, top_k=[1, 2, 3], seed=[5, 6, 7]))
    for _, (*pools, index) in in_pools(case):
        for values, pool in zip(case.batch.inputs.values(), pools, strict=True):
            assert pool[index].equal(values)
            rest = torch.ones(len(pool), dtype=torch.bool).index_fill(0, index, False)
            assert bool((pool[rest].isnan() if pool.is_floating_point() else pool[rest] == -7).all())
        assert index.tolist() != [0, 1, 2]
