"""The filtered probabilities' reference is right to fifty digits, takes the side a kernel took where rounding decides, and no other."""

from math import log

import exact
import mpmath
import pytest
import torch
from hypothesis import given, settings
from planted_sampling import DEFAULTS, LIBRARIES, PROBS, Row, filtered, first_finding, inf, kept, probs_of, put, returning, right_filter

from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import GPU, INTERPRETER, U
from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.operations.filters import FILTER_PRESETS
from stabcheck.strategies import recipes

OPERATION = operation(PROBS)
nan = float("nan")


def expect(batch, dtype="fp32", profile=GPU, **policies):
    under = DEFAULTS | {"zero_temperature": "greedy", "empty_row": "zeros"} | policies
    return OPERATION.reference(batch, Contract(by_name(dtype), FP32, profile, under))["probs"]


def of(*rows, **more):
    policies = {name: more.pop(name) for name in list(more) if name in OPERATION.policies}
    return expect(materialise(probs_of(*rows, **more)), **policies)


def holds(probs, recipe, law="accuracy", **declared):
    """Whether a kernel that returns these probabilities keeps the law."""
    return put(returning(torch.tensor(probs)), PROBS, law, **declared).examine(recipe).ok


# ---- the reference against 50 digits


def shares_of_bounds(batch, dtype):
    """Errors as shares of their bounds, of the rows where nothing is left to rounding."""
    e, policies = expect(batch, dtype), {name: DEFAULTS[name] for name in DEFAULTS}
    given = zip(*(batch.inputs[name].tolist() for name in ("temperature", "top_k", "top_p", "min_p")), strict=True)
    for row, (x, values) in enumerate(zip(batch.logits.double().tolist(), given, strict=True)):
        if exact.sane(x) and values[0] > 0 and not e.apart[row].any() and not e.free[row].any():
            filters = exact.Filters(x, *values)
            n = filters.kept(**policies)
            with mpmath.workdps(50):
                probs = [v / filters.running[n] for v in filters.e[:n]] + [mpmath.mpf(0)] * (len(x) - n)
            for place, column in enumerate(filters.order):
                yield exact.share_of_bound(probs[place], e.value[row, column].item(), e.bound[row, column].item())


@pytest.mark.parametrize("dtype", FORMATS)
def test_reference_is_exact_on_drawn_rows(dtype):
    shares = []

    @settings(max_examples=80, derandomize=True, database=None, deadline=None)
    @given(recipes(PROBS, dtype, max_vocab=11, max_rows=12))
    def audit(drawn):
        shares.extend(shares_of_bounds(materialise(drawn), dtype))

    audit()
    assert len(shares) > 300
    assert max(shares) < exact.AUDITED


def test_the_audit_notices_a_hundredth_of_a_bound():
    batch = materialise(probs_of([2.0, 1.0, 0.0], top_k=2))
    assert max(shares_of_bounds(batch, "fp32")) < exact.AUDITED
    e = expect(batch)
    assert exact.share_of_bound(mpmath.mpf(e.value[0, 0].item()), (e.value + 0.01 * e.bound)[0, 0].item(), e.bound[0, 0].item()) > 0.009


# ---- what follows from no arithmetic


def test_what_is_kept_is_renormalised_and_the_rest_is_0_exactly():
    e = of([log(4), log(4), log(2), 0.0], top_k=3)
    assert e.value[0].tolist() == pytest.approx([0.4, 0.4, 0.2, 0.0], abs=1e-7)
    assert e.value[0, 3].item() == e.bound[0, 3].item() == 0.0
    assert e.bound[0, :3].min() > 0


def test_masked_columns_are_0_exactly_though_every_filter_is_off():
    e = of([-inf, 0.0, 0.0])
    assert (e.value[0].tolist(), e.bound[0, 0].item()) == ([0.0, 0.5, 0.5], 0.0)


def test_zero_temperature_is_one_hot_at_the_lowest_id_exactly_or_undefined():
    e = of([1.0, 3.0, 3.0], temperature=0.0)
    assert (e.value[0].tolist(), e.bound[0].tolist(), e.free.any().item()) == ([0.0, 1.0, 0.0], [0.0] * 3, False)
    assert of([1.0, 3.0, 3.0], temperature=0.0, zero_temperature="undefined").free.all()


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0.0), ("nan", nan)])
def test_a_row_of_minus_infinities_is_what_its_policy_says(policy, value):
    e = of([-inf, -inf], [0.0, 0.0], empty_row=policy)
    assert [str(v) for v in e.value[0].tolist()] == [str(value)] * 2
    assert e.value[1].tolist() == [0.5, 0.5]


def test_an_empty_batch_has_an_empty_reference():
    batch = materialise(probs_of([0.0, 1.0])).pick(slice(0, 0))
    assert expect(batch).value.shape == (0, 2)


@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
def test_three_renormalisations_each_as_wrong_as_documented_keep_the_bound_and_use_most_of_it(profile):
    columns = 400
    x = torch.linspace(0, -4, columns).tolist()
    batch = materialise(probs_of(x, top_k=300, top_p=0.9, min_p=1e-3, temperature=0.7))
    e = expect(batch, profile=profile)
    z = (batch.logits.double() - batch.logits.double().amax()) / batch.inputs["temperature"].double()
    wrong = torch.where(e.value > 0, (z + (3 + profile.divide + profile.log2e) * U * z.abs() + profile.exp * U).exp(), 0.0)
    sums = summation_error(columns, Contract(FP32, FP32, profile))
    got = wrong / (z.exp() * (e.value > 0)).sum() * (1 + 2 * sums) * (1 + 3 * (profile.divide + 1) * U)
    share = ((got - e.value).abs() / e.bound)[e.value > 0].max().item()
    assert 0.4 < share < 1


# ---- settling: where rounding decides, either side; nothing beyond it

HALF = probs_of([0.0, 0.0, 0.0, 0.0], top_p=0.5)  # the mass before the third is 0.5: two or three are kept
THIRD = 1 / 3


@pytest.mark.parametrize("law", ["accuracy", "keep_set", "normalisation", "nucleus", "finiteness", "range"])
@pytest.mark.parametrize("probs", [[0.5, 0.5, 0.0, 0.0], [THIRD, THIRD, THIRD, 0.0]], ids=["the fewer", "the more"])
def test_either_side_of_an_undecided_boundary_passes(law, probs):
    assert holds([probs], HALF, law)


@pytest.mark.parametrize(
    "probs",
    [[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, THIRD, THIRD, THIRD]],
    ids=["one short", "one beyond", "a hole", "the first dropped", "higher ids among ties"],
)
@pytest.mark.parametrize("law", ["accuracy", "keep_set"])
def test_what_no_rounding_gives_fails(law, probs):
    assert not holds([probs], HALF, law)


@pytest.mark.parametrize("probs", [[0.5, 0.5, 0.1, 0.0], [THIRD, THIRD, 0.2, 0.0], [0.25, 0.25, 0.25, 0.0], [0.5, 0.4, 0.0, 0.0]], ids=str)
def test_a_mass_that_is_not_renormalised_fails_whichever_side_was_taken(probs):
    assert not holds([probs], HALF)


def test_mass_beside_what_is_kept_fails_though_the_sum_is_one():
    assert not holds([[0.45, 0.45, 0.1, 0.0]], HALF)
    assert not holds([[0.5, 0.5 - 1e-4, 1e-4, 0.0]], HALF)


@pytest.mark.parametrize("probs", [[0.0, 0.5, 0.5, 0.0], [0.5, 0.0, 0.0, 0.5], [THIRD, 0.0, THIRD, THIRD]], ids=str)
def test_where_any_id_will_do_other_ties_of_the_crossing_value_pass(probs):
    any_id = {"policies": {"top_p_ties": "any_id"}}
    assert holds([probs], HALF, **any_id)
    assert holds([probs], HALF, "keep_set", **any_id)
    assert not holds([[1.0, 0.0, 0.0, 0.0]], HALF, **any_id)
    assert not holds([[0.25] * 4], HALF, **any_id)


def test_any_id_is_among_ties_only():
    """Of 1, 0, 0 two are kept: the larger and one of the others."""
    recipe, any_id = probs_of([0.0, 1.0, 0.0], top_p=0.7), {"policies": {"top_p_ties": "any_id"}}
    large = 1 / (1 + torch.tensor(-1.0).exp().item())
    assert holds([[0.0, large, 1 - large]], recipe, **any_id)
    assert holds([[1 - large, large, 0.0]], recipe, **any_id)
    assert not holds([[0.5, 0.0, 0.5]], recipe, **any_id)
    assert not holds([[0.0, large, 1 - large]], recipe)


def test_where_ties_are_all_kept_two_of_three_fail():
    recipe, keep_all = probs_of([0.0, 0.0, 0.0], top_p=0.5), {"policies": {"top_p_ties": "keep_all"}}
    assert holds([[THIRD] * 3], recipe, **keep_all)
    assert not holds([[0.5, 0.5, 0.0]], recipe, **keep_all)


def test_what_was_decided_by_rounding_is_compared_with_no_other_call():
    e = of([0.0] * 4, [3.0, 0.0, 0.0, 0.0], top_p=[0.5, 0.5])
    assert e.incomparable.tolist() == [[True] * 4, [False] * 4]


def test_nan_is_no_side_to_take():
    assert not holds([[nan] * 4], HALF)


def test_a_probability_that_may_round_to_zero_is_no_token_dropped():
    made = probs_of([0.0, -103.5])  # exp(-103.5) is half the smallest subnormal number
    assert holds([[1.0, 0.0]], made)
    assert holds([[1.0, 0.0]], made, "keep_set")
    assert not holds([[1.0, 0.0]], probs_of([0.0, -80.0]), "keep_set")


# ---- kernels that are right


def renormalises_after_each(logits, t, k, p, min_p):
    """Three filters, each on the probabilities that the one before it left."""
    row, vocab = Row(logits, t), logits.shape[1]
    probs = row.z.softmax(-1)
    k, p, min_p = torch.where((k <= 0) | (k >= vocab), vocab, k)[:, None], p[:, None], min_p[:, None]
    probs = torch.where(row.rank < k, probs, 0.0)
    probs = probs / probs.sum(-1, keepdim=True)
    probs = torch.where((probs.cumsum(-1) - probs < p) | (p >= 1) | (row.rank == 0), probs, 0.0)
    probs = probs / probs.sum(-1, keepdim=True)
    probs = torch.where((probs >= min_p * probs[:, :1]) | (min_p <= 0), probs, 0.0)
    return finished(row, probs / probs.sum(-1, keepdim=True), logits, t)


def sums_from_the_small_end(logits, t, k, p, min_p):
    """transformers' order: drop what brings the ascending sum to 1 − p."""
    row, vocab = Row(logits, t), logits.shape[1]
    z = row.z.masked_fill(row.rank >= torch.where((k <= 0) | (k >= vocab), vocab, k)[:, None], -inf)
    tail = z.softmax(-1).flip(-1).cumsum(-1).flip(-1)
    z = z.masked_fill((tail <= 1 - p[:, None]) & (p < 1)[:, None] & (row.rank > 0), -inf)
    z = z.masked_fill((z < min_p.log()[:, None]) & (min_p > 0)[:, None] & (z < 0), -inf)
    return finished(row, z.softmax(-1), logits, t)


def in_fp64(logits, t, k, p, min_p):
    row = Row(logits, t)
    row.z = (row.x.double() - row.x[:, :1].double()) / torch.where(t == 0, 1.0, t).double()[:, None]
    row.e = row.z.exp()
    e = torch.where(kept(row, t, k, p.double(), min_p.double()), row.e, 0.0)
    return finished(row, (e / e.sum(-1, keepdim=True)).float(), logits, t)


def finished(row, probs, logits, t):
    one_hot = (row.rank == 0).float()
    probs = row.by_id(torch.where((t == 0)[:, None], one_hot, probs))
    return probs.masked_fill((logits == -inf).all(-1, keepdim=True), 0.0)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("function", [right_filter, renormalises_after_each, sums_from_the_small_end, in_fp64], ids=lambda f: f.__name__)
@pytest.mark.parametrize("law", ["accuracy", "keep_set"])
def test_a_correct_kernel_keeps_the_law_whatever_its_algorithm(function, dtype, law):
    found = first_finding(put(function, PROBS, law, dtype), examples=50 if dtype == "fp32" else 15)
    assert found is None, found.text()


@pytest.mark.parametrize("policies", [*FILTER_PRESETS.values(), {"crossing": "dropped"}, {"top_k_ties": "keep_all"}], ids=str)
@pytest.mark.parametrize("law", ["accuracy", "keep_set"])
def test_a_correct_kernel_of_any_policy_keeps_the_law(policies, law):
    found = first_finding(put(filtered(**policies), PROBS, law, policies=policies), examples=30)
    assert found is None, found.text()


# ---- kernels of libraries, which divide by T first or compare probabilities

FALSE_ALARMS = ["accuracy", "nucleus", "permutation", "appended", "masking"]
MERGING = {"error_model": "scale_first"}


def of_library(name, law):
    return put(LIBRARIES[name], PROBS, law, policies=FILTER_PRESETS[name], name=name, **MERGING)


@pytest.mark.parametrize("law", ["accuracy", "finiteness"])
@pytest.mark.parametrize("name", ["hf", "vllm"])
def test_a_kernel_that_declares_x_over_t_promises_nothing_where_that_overflows(name, law):
    assert of_library(name, law).examine(probs_of([3e38], temperature=0.5)).ok


def test_nor_where_only_its_product_with_log2_e_overflows():
    beyond, below = (probs_of([x], temperature=1.0) for x in (3e38, 2e38))
    assert [holds([[nan]], made, **MERGING) for made in (beyond, below)] == [True, False]
    assert not holds([[nan]], beyond)


@pytest.mark.parametrize("law", ["accuracy", "keep_set"])
@pytest.mark.parametrize("inputs", [{"top_p": 0.1}, {"top_k": 1}], ids=str)
def test_where_ties_are_kept_so_are_tokens_that_declared_rounding_merges(law, inputs):
    made = probs_of([2.0**-126, 0.0], **inputs)  # both have probability 1/2
    assert of_library("flashinfer", law).examine(made).ok


@pytest.mark.parametrize("name", ["flashinfer", "flashinfer_joint"])
def test_a_nucleus_that_keeps_ties_may_reach_far_beyond_p(name):
    assert of_library(name, "nucleus").examine(probs_of([0.0, 0.0], top_p=0.3)).ok


@pytest.mark.parametrize("law", ["appended", "masking", "permutation"])
def test_which_of_the_ties_at_the_boundary_is_kept_is_compared_with_no_other_call_where_any_will_do(law):
    kernel, made = filtered(top_p_ties="any_id"), probs_of([0.0] * 9, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 0.0], top_p=0.75)
    examined = put(kernel, PROBS, law, policies={"top_p_ties": "any_id"})
    assert all(examined.examine(made.with_(seed=seed)).ok for seed in range(6))


@pytest.mark.parametrize(("x", "t"), [([2.0**25 - 62, 2.0**25 - 64], 3e-3), ([2.0**27 - 64, 2.0**27 - 72], 1e-4)], ids=["667", "80000"])
def test_what_rounding_of_x_over_t_merges_is_no_error_however_far_apart_it_is(x, t):
    """x/T has steps of 1024, and of 2^17."""
    assert of_library("hf", "accuracy").examine(probs_of(x, temperature=t)).ok


@pytest.mark.parametrize("law", [*FALSE_ALARMS, "keep_set", "range", "shift_invariance"])
def test_the_kernels_of_libraries_keep_the_laws_under_their_presets(law):
    for name in LIBRARIES:
        found = first_finding(of_library(name, law), examples=40)
        assert found is None, found.text()
