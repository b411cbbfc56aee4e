"""What filters keep is what fifty digits say, and every two policies are told apart by a row of numbers."""

from collections import Counter
from itertools import combinations, product
from math import log

import exact
import planted_sampling as planted
import pytest
import torch
from hypothesis import given, settings
from planted_sampling import DEFAULTS, PROBS, SAMPLE, filtered, ids_of, inf, probs_of, put, sampler

from stabcheck.bounds import Contract
from stabcheck.devices import GPU, INTERPRETER
from stabcheck.expansion import materialise
from stabcheck.floats import FP32, by_name
from stabcheck.operations.filters import FILTER_POLICIES, FILTER_PRESETS, kept_counts, undefined
from stabcheck.operations.sorted_rows import sorted_rows
from stabcheck.strategies import recipes

COUNTED = {name: answers for name, answers in FILTER_POLICIES.items() if name != "top_p_ties"} | {"top_p_ties": ("lowest_id", "keep_all")}
EVERY = [dict(zip(COUNTED, answers, strict=True)) for answers in product(*COUNTED.values())]
TINY_T = 1e-25


def contract(dtype="fp32", profile=GPU, **policies):
    return Contract(by_name(dtype), FP32, profile, DEFAULTS | {"zero_temperature": "greedy", "empty_row": "zeros"} | policies)


def counted(batch, **policies):
    """[(least, most)] of each row."""
    under = contract(**policies)
    found = kept_counts(sorted_rows(batch, under), batch, under)
    return list(zip(found.least.tolist(), found.most.tolist(), strict=True))


def counts_of(*rows, **more):
    policies = {name: more.pop(name) for name in list(more) if name in FILTER_POLICIES}
    return counted(materialise(probs_of(*rows, **more)), **policies)


def exact_rows(batch):
    """(number, Filters) of the rows that no policy but those of filters rules."""
    given = zip(*(batch.inputs[name].tolist() for name in ("temperature", "top_k", "top_p", "min_p")), strict=True)
    for row, (x, values) in enumerate(zip(batch.logits.double().tolist(), given, strict=True)):
        if exact.sane(x) and values[0] >= 0:
            yield row, exact.Filters(x, *values)


# ---- the oracle against 50 digits


def audit(batch, policies, tally, of_reference=None):
    found = counted(batch, **(of_reference or policies))
    for row, filters in exact_rows(batch):
        n, (least, most) = filters.kept(**policies), found[row]
        assert least <= n <= most, (batch.logits[row].tolist(), batch.inputs, policies, n, least, most)
        ordinary = filters.t >= TINY_T and not 0 < filters.min_p < 2.0**-126
        if ordinary and not filters.near:
            assert least == most, (batch.logits[row].tolist(), batch.inputs, policies, n, least, most)
        tally["rows"] += ordinary
        tally["undecided"] += ordinary and least < most


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_must_and_what_may_be_kept_holds_what_50_digits_keep_under_every_policy(dtype):
    tally = Counter()

    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(recipes(PROBS, dtype, max_vocab=11, max_rows=4))
    def examine(drawn):
        for policies in EVERY:
            audit(materialise(drawn), policies, tally)

    examine()
    assert tally["rows"] > 500
    assert tally["undecided"] < 0.2 * tally["rows"]


def boundary_rows(seed):
    """Rows of few values and ties, with p and min-p at, and next to, shares and quotients that they have."""
    made = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, 5, (40, 10), generator=made).double()
    whole = weights.sum(-1)
    some = torch.randint(1, 10, (40,), generator=made)
    shares = weights.sort(descending=True).values.cumsum(-1).gather(1, some[:, None] - 1)[:, 0] / whole
    near = torch.tensor([1.0, 1 - 2.0**-20, 1 + 2.0**-20, 0.9, 1.1])[torch.arange(40) % 5]
    quotients = torch.tensor([0.0, 0.5, 0.25, 1.0, 1 / 3])[torch.arange(40) // 5 % 5]
    inputs = {"top_p": shares * near, "min_p": (quotients * near).clamp(max=1.0), "top_k": some * (torch.arange(40) % 3 == 0)}
    return probs_of(*weights.log().tolist(), **{name: values.tolist() for name, values in inputs.items()})


@pytest.mark.parametrize("policies", EVERY, ids=lambda p: ", ".join(p.values()))
def test_at_and_beside_every_boundary_too(policies):
    tally = Counter()
    for seed in range(2):
        audit(materialise(boundary_rows(seed)), policies, tally)
    assert 0 < tally["undecided"] < 0.8 * tally["rows"]  # two in five stand at a boundary of top-p, some at one of min-p


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, answers in COUNTED.items() for answer in answers[1:]])
def test_the_audit_notices_a_reference_of_another_policy(name, answer):
    batch = materialise(witness(*WITNESSES[name]))
    audit(batch, EVERY[0], Counter())
    with pytest.raises(AssertionError):
        audit(batch, EVERY[0], Counter(), EVERY[0] | {name: answer})


# ---- off, and the first token


OFF = {"top_k": (0, -1, 5, 6, 2**40, -(2**63)), "top_p": (1.0, 1.5, inf), "min_p": (0.0, -0.0, -1.0)}


@pytest.mark.parametrize("policies", EVERY, ids=lambda p: ", ".join(p.values()))
def test_a_filter_that_is_off_must_keep_everything(policies):
    row = [3.0, 3.0, -50.0, -1e30, -inf]
    for name, values in OFF.items():
        for value in values:
            assert counts_of(row, **{name: value}, **policies) == [(5, 5)], (name, value)


@pytest.mark.parametrize("policies", EVERY, ids=lambda p: ", ".join(p.values()))
def test_the_first_token_is_always_kept(policies):
    lone = {"top_k_ties": "lowest_id", "top_p_ties": "lowest_id"}
    for strict in ({"top_p": 0.0}, {"top_p": -1.0}, {"top_k": 1}, {"temperature": 0.0}):
        assert counts_of([5.0, 5.0, 5.0], **strict, **policies | lone) == [(1, 1)], strict
    assert counts_of([5.0, 5.0, 4.0], min_p=2.0, **policies) == [(2, 2)]  # exp(0) = 1 is the most there is


@pytest.mark.parametrize(
    ("k", "ties", "n"), [(1, "lowest_id", 1), (1, "keep_all", 1), (2, "lowest_id", 2), (2, "keep_all", 4), (4, "keep_all", 4)]
)
def test_ties_of_the_kth_value(k, ties, n):
    assert counts_of([9.0, 1.0, 1.0, 1.0, 0.0], top_k=k, top_k_ties=ties) == [(n, n)]


def test_minus_zero_and_zero_are_ties():
    assert counts_of([0.0, -0.0, -1.0], top_k=1, top_k_ties="keep_all") == [(2, 2)]


def test_tokens_that_are_masked_have_no_mass_and_are_kept_last():
    assert counts_of([-inf, 0.0, -inf, 0.0], top_p=0.75) == [(2, 2)]


# ---- where nothing is said


@pytest.mark.parametrize(
    ("row", "inputs", "free"),
    [
        ([0.0, 1.0], {}, False),
        ([float("nan"), 1.0], {}, True),
        ([inf, 1.0], {}, True),
        ([-inf, 1.0], {}, False),
        ([0.0, 1.0], {"temperature": -1.0}, True),
        ([0.0, 1.0], {"temperature": float("nan")}, True),
        ([0.0, 1.0], {"temperature": 0.0}, False),
        ([0.0, 2.0**-149], {"top_k": 1}, True),  # ties to hardware that flushes its inputs
        ([0.0, 2.0**-149], {}, False),
        ([0.0, 0.0], {"top_k": 1}, False),
    ],
    ids=str,
)
def test_a_row_of_no_meaning_is_free_and_no_other(row, inputs, free):
    under = contract()
    batch = materialise(probs_of(row, [1.0, 0.0], **{name: [value, 1] for name, value in inputs.items()}))
    rows = sorted_rows(batch, under)
    assert undefined(batch, rows, kept_counts(rows, batch, under), under)[:, 0].tolist() == [free, False]


# ---- every two policies


def of_shares(*shares):
    return [log(share) for share in shares]


# DESIGN's example: of the four kept by k the mass before the fourth is 0.8, or 0.94 of theirs
RENORMALISED = of_shares(0.35, 0.25, 0.2, 0.05, 0.03, 0.03, 0.03, 0.03, 0.03), {"top_k": 4, "top_p": 0.82, "min_p": 0.0}
MIN_P_FIRST = of_shares(0.4, 0.3, 0.06, 0.05, 0.05, 0.04, 0.04, 0.03, 0.03), {"top_k": 0, "top_p": 0.5, "min_p": 0.5}
TIES_AT_K = [5.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], {"top_k": 2, "top_p": 1.0, "min_p": 0.0}
TIES_AT_P = [3.0, 3.0, 3.0, 3.0, -9.0, -9.0, -9.0, -9.0, -9.0], {"top_k": 0, "top_p": 0.7, "min_p": 0.0}
CROSSES = of_shares(0.5, 0.3, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02), {"top_k": 0, "top_p": 0.7, "min_p": 0.0}
WITNESSES = {
    "order": (RENORMALISED, MIN_P_FIRST),
    "top_k_ties": (TIES_AT_K, CROSSES),
    "top_p_ties": (TIES_AT_P, CROSSES),
    "crossing": (CROSSES, RENORMALISED),
}
PAIRS = [(name, *pair) for name, answers in FILTER_POLICIES.items() for pair in combinations(answers, 2)]


def witness(*rows, of=probs_of):
    return of(*(row for row, _ in rows), **{name: [inputs[name] for _, inputs in rows] for name in ("top_k", "top_p", "min_p")})


def passes(function, recipe, law="accuracy", operation_name=PROBS, **policies):
    return put(function, operation_name, law, policies=policies).examine(recipe).ok


@pytest.mark.parametrize(("name", "one", "other"), PAIRS)
def test_two_rows_decide_between_every_two_answers_of_a_policy(name, one, other):
    recipe = witness(*WITNESSES[name])
    found = [counted(materialise(recipe), **{name: answer}) for answer in (one, other)]
    assert all(least == most for rows in found for least, most in rows)
    assert passes(filtered(**{name: one}), recipe, **{name: one})
    assert passes(filtered(**{name: other}), recipe, **{name: other})
    assert not passes(filtered(**{name: other}), recipe, **{name: one})
    if (one, other) != ("lowest_id", "any_id"):
        assert found[0] != found[1]
        assert not passes(filtered(**{name: one}), recipe, **{name: other})


@pytest.mark.parametrize(("name", "one", "other"), PAIRS)
def test_the_keep_set_tells_them_apart_too(name, one, other):
    recipe = witness(*WITNESSES[name])
    assert passes(filtered(**{name: one}), recipe, "keep_set", **{name: one})
    assert not passes(filtered(**{name: other}), recipe, "keep_set", **{name: one})


def test_the_ids_that_a_renormalised_nucleus_keeps_of_designs_example():
    assert counts_of(RENORMALISED[0], **RENORMALISED[1]) == [(3, 3)]
    assert counts_of(RENORMALISED[0], **RENORMALISED[1], order="top_k & top_p, min_p") == [(4, 4)]


PRESET_ROWS = (RENORMALISED, MIN_P_FIRST, TIES_AT_K, TIES_AT_P, CROSSES)


@pytest.mark.parametrize("one", FILTER_PRESETS)
@pytest.mark.parametrize("other", FILTER_PRESETS)
def test_a_kernel_passes_under_its_librarys_preset_and_under_no_other(one, other):
    """any_id lets pass what keeps the lowest ids, and no more than that."""
    assert passes(filtered(**FILTER_PRESETS[one]), witness(*PRESET_ROWS), **FILTER_PRESETS[other]) == (one == other)


@pytest.mark.parametrize("name", FILTER_PRESETS)
def test_a_preset_answers_every_policy_and_the_default_is_told_from_it(name):
    assert FILTER_PRESETS[name].keys() == FILTER_POLICIES.keys()
    assert not passes(planted.right_filter, witness(*PRESET_ROWS), **FILTER_PRESETS[name])


# ---- a sampler sees the same keep-sets


def drawing_last(**how):
    """Draws the token of least probability of those it keeps, the highest id of several."""

    def least(ids, row, keep, score):
        return torch.where(keep, row.order, -1).gather(1, (keep * row.rank).amax(-1, keepdim=True))[:, 0]

    return sampler(of_ids=least, **how)


@pytest.mark.parametrize(
    ("name", "larger", "smaller"),
    [
        ("order", "top_k & top_p, min_p", "top_k, top_p, min_p"),
        ("order", "top_k, top_p, min_p", "min_p, top_k, top_p"),
        ("top_k_ties", "keep_all", "lowest_id"),
        ("top_p_ties", "keep_all", "lowest_id"),
        ("top_p_ties", "any_id", "lowest_id"),
        ("crossing", "kept", "dropped"),
    ],
)
def test_a_sampler_that_draws_the_last_token_kept_shows_which_policy_it_has(name, larger, smaller):
    recipe = witness(*WITNESSES[name], of=ids_of)
    assert passes(drawing_last(**{name: larger}), recipe, "keep_set", SAMPLE, **{name: larger})
    assert passes(drawing_last(**{name: smaller}), recipe, "keep_set", SAMPLE, **{name: smaller})
    assert not passes(drawing_last(**{name: larger}), recipe, "keep_set", SAMPLE, **{name: smaller})


# ---- the slack is what it says


@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
@pytest.mark.parametrize("crossing", ["kept", "dropped"])
def test_p_at_a_share_is_undecided_and_a_millionth_beside_it_is_not(profile, crossing):
    under = contract(profile=profile, crossing=crossing)
    batch = materialise(probs_of(*[[0.0] * 4] * 3, top_p=[0.5, 0.5 + 1e-5, 0.5 - 1e-5]))
    found = kept_counts(sorted_rows(batch, under), batch, under)
    more = crossing == "kept"
    assert list(zip(found.least.tolist(), found.most.tolist(), strict=True)) == (
        [(2, 3), (3, 3), (2, 2)] if more else [(1, 2), (2, 2), (1, 1)]
    )


def test_min_p_at_a_quotient_is_undecided_a_millionth_beside_it_is_not_and_at_the_maximum_never():
    half = log(0.5)
    assert counts_of(*[[0.0, half]] * 3, [0.0, 0.0], min_p=[0.5, 0.5 + 1e-5, 0.5 - 1e-5, 1.0]) == [(1, 2), (1, 1), (2, 2), (2, 2)]


def test_a_subnormal_min_p_may_be_flushed():
    assert counts_of([0.0, -1000.0], min_p=2.0**-149) == [(1, 2)]
