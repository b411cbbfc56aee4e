"""A draw is right if its id is kept, and with declared noise if no other kept id scores better by more than rounding."""

import mpmath
import planted_sampling as planted
import pytest
import torch
from exact import Filters, sane
from hypothesis import given, settings
from planted_sampling import DEFAULTS, NOISE, SAMPLE, first_finding, ids_of, inf, noise, put, returning, right_sampler, sampler

from stabcheck.bounds import Contract
from stabcheck.devices import GPU, U
from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.operations.filters import FILTER_PRESETS
from stabcheck.strategies import recipes

OPERATION = operation(SAMPLE)
nan = float("nan")


def expect(batch, dtype="fp32", variates=None, noise_error=0.0, **policies):
    under = Contract(by_name(dtype), FP32, GPU, DEFAULTS | policies, noise=variates, noise_error=noise_error)
    return OPERATION.reference(batch, under)["ids"]


def literal(*variates):
    """Noise with these variates for every row."""
    return lambda seed, position, vocab, role=0: torch.tensor(variates, dtype=torch.float64).expand(len(seed), vocab)


def passing(recipe, law="accuracy", ids=None, **declared):
    """Which ids a kernel may draw for every row of a recipe."""
    vocab, rows = recipe.vocab, recipe.total_rows
    law = "exact_noise" if declared.get("noise") and law == "accuracy" else "keep_set" if law == "accuracy" else law
    tried = range(-2, vocab + 2) if ids is None else ids
    return [i for i in tried if once(returning(torch.full((rows,), i)), recipe, law, **declared)]


def once(function, recipe, law, **declared):
    """Whether the first comparison of a law holds: the plain call with the reference."""
    examined = put(function, SAMPLE, law, **declared)
    outcome = examined.examine(recipe)
    return outcome.ok or "permuted" in outcome.witness().what


# ---- without noise: any id that is kept


@pytest.mark.parametrize(
    ("row", "inputs", "legal"),
    [
        ([0.0, 1.0, 2.0], {}, [0, 1, 2]),
        ([0.0, 1.0, 2.0], {"top_k": 2}, [1, 2]),
        ([0.0, 1.0, 2.0], {"min_p": 0.5}, [2]),
        ([0.0, 0.0, 0.0], {"top_p": 0.5}, [0, 1]),
        ([0.0, 0.0, 0.0], {"top_k": 1}, [0]),
        ([0.0, -inf, 0.0], {}, [0, 2]),
        ([0.0, -inf, -inf], {"top_k": 2}, [0]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.5}, [0, 1, 2]),  # the third is undecided
        ([0.0, 5.0, 5.0], {"temperature": 0.0}, [1]),
    ],
    ids=str,
)
def test_a_kept_id_is_legal_a_dropped_a_masked_one_and_one_out_of_range_are_not(row, inputs, legal):
    assert passing(ids_of(row, **inputs)) == legal


def test_any_of_several_ties_may_be_the_one_that_crosses_p_where_that_is_declared():
    made = ids_of([0.0, 0.0, 0.0, -9.0], top_p=0.5)
    assert passing(made) == [0, 1]
    assert passing(made, policies={"top_p_ties": "any_id"}) == [0, 1, 2]


@pytest.mark.parametrize("row", [[nan, 0.0], [inf, 0.0], [-inf, -inf]], ids=str)
def test_a_row_that_means_nothing_may_give_anything_and_no_other_row_may(row):
    both = ids_of(row, [3.0, -inf])
    assert passing(both, ids=[0, 1]) == [0]
    e = expect(materialise(both))
    assert e.free.tolist() == [True, False]


# ---- with noise: the argmax

# scores −log E of equal logits: 0, log 2, log 5
THREE = literal(1.0, 0.5, 0.2)
EQUAL = [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("row", "inputs", "legal"),
    [
        (EQUAL, {}, [2]),
        ([1.7, 0.0, 0.0], {}, [0]),
        ([1.5, 0.0, 0.0], {}, [2]),
        (EQUAL, {"top_k": 2}, [1]),
        ([0.0, 0.0, -inf], {}, [1]),
        ([3.4, 0.0, 0.0], {"temperature": 2.0}, [0]),
        ([3.0, 0.0, 0.0], {"temperature": 2.0}, [2]),
        ([0.0, 1.0, 1.0], {"temperature": 0.0}, [1]),
        (EQUAL, {"top_k": 1}, [0]),
    ],
    ids=str,
)
def test_the_best_score_of_what_is_kept_is_drawn_and_nothing_else(row, inputs, legal):
    assert passing(ids_of(row, **inputs), noise=THREE) == legal


def test_near_ties_may_go_either_way_and_are_compared_with_no_other_call():
    near, far = literal(1.0, 1 + 2.0**-24, 2.0), literal(1.0, 1 + 2.0**-16, 2.0)
    assert passing(ids_of(EQUAL), noise=near) == [0, 1]
    assert passing(ids_of(EQUAL), noise=far) == [0]
    batch = materialise(ids_of(EQUAL))
    assert [bool(expect(batch, variates=of).apart) for of in (near, far)] == [True, False]


def test_noise_that_is_realised_less_exactly_allows_more():
    far = literal(1.0, 1 + 2.0**-16, 2.0)
    assert passing(ids_of(EQUAL), noise=far, noise_error=2.0**-12) == [0, 1]


def test_an_id_that_one_side_of_an_undecided_boundary_keeps_is_legal_only_if_it_beats_what_that_side_keeps():
    made = ids_of([0.0] * 4, top_p=0.5)  # two or three
    assert passing(made, noise=literal(1.0, 0.5, 0.2, 0.1)) == [1, 2]
    assert passing(made, noise=literal(1.0, 0.2, 0.5, 0.1)) == [1]


def test_the_reference_names_the_best_id_of_the_fewest_that_may_be_kept():
    e = expect(materialise(ids_of([0.0] * 4, top_p=0.5)), variates=literal(1.0, 0.5, 0.2, 0.1))
    assert (e.value.tolist(), e.bound.tolist(), e.apart.tolist()) == ([1.0], [0.0], [True])


def test_noise_at_the_ends_of_its_range_wins_and_loses_and_makes_no_nan():
    small, large = 2.0**-65, 45.0
    assert passing(ids_of(EQUAL), noise=literal(large, small, 1.0)) == [1]
    assert passing(ids_of([0.0, -1000.0, -1e30]), noise=literal(large, small, small)) == [0]


# ---- the reference against 50 digits


def winners(x, values, variates):
    """(the id drawn in 50 digits, by how much its score is the best), or None where a filter is at its boundary."""
    filters = Filters(x, *values)
    n = filters.kept(**DEFAULTS)
    with mpmath.workdps(50):
        scored = []
        for i in filters.order[:n]:
            if x[i] > -inf:
                z = mpmath.mpf(0) if not values[0] else (mpmath.mpf(x[i]) - max(x)) / mpmath.mpf(values[0])
                scored.append((z - mpmath.log(mpmath.mpf(variates[i])), i))
        scored.sort(reverse=True)
        gap = scored[0][0] - scored[1][0] if len(scored) > 1 else mpmath.inf
        wide = 40 * U * (1 + abs(scored[0][0]) + (abs(scored[1][0]) if len(scored) > 1 else 0))
    return scored[0][1], filters.near, bool(gap > wide)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_id_drawn_is_that_of_50_digits(dtype):
    seen = {"clear": 0, "close": 0}

    @settings(max_examples=150, derandomize=True, database=None, deadline=None)
    @given(recipes(SAMPLE, dtype, max_vocab=11, max_rows=8))
    def audit(drawn):
        batch = materialise(drawn)
        e, variates = expect(batch, dtype, noise), noise(batch.inputs["seed"], batch.inputs["position"], drawn.vocab).tolist()
        given_ = zip(*(batch.inputs[name].tolist() for name in ("temperature", "top_k", "top_p", "min_p")), strict=True)
        for row, (x, values) in enumerate(zip(batch.logits.double().tolist(), given_, strict=True)):
            if not sane(x) or e.free[row] or 0 < values[0] < 1e-25 or 0 < values[3] < 2.0**-126:
                continue
            id_, at_boundary, clear = winners(x, values, variates[row])
            seen["clear" if clear and not at_boundary else "close"] += 1
            if clear and not at_boundary:
                assert (e.value[row].item(), e.apart[row].item()) == (id_, False), (x, values, variates[row])

    audit()
    assert seen["clear"] > 100
    assert seen["close"] < 0.3 * seen["clear"]


# ---- kernels that are right


def races(logits, t, k, p, min_p, seed, position):
    """exp(z)/E in place of z − log E, the ids in 32 bits."""
    row = planted.Row(logits, t)
    keep = planted.kept(row, t, k, p, min_p) & (row.x > -inf)
    quotient = row.e / noise(seed, position, logits.shape[1]).float().gather(1, row.order)
    score = torch.where(keep, quotient, -1.0).nan_to_num(-1.0)
    return (planted.best(score, row.order) if len(logits) else torch.zeros(0)).to(torch.int32)


def adds_gumbel_noise(logits, t, k, p, min_p, seed, position):
    """z + G, G = −log E rounded to fp32."""
    row = planted.Row(logits, t)
    keep = planted.kept(row, t, k, p, min_p) & (row.x > -inf)
    gumbel = -noise(seed, position, logits.shape[1]).log().float()
    score = torch.where(keep, row.z + gumbel.gather(1, row.order), -inf).nan_to_num(-inf, neginf=-inf)
    return planted.best(score, row.order) if len(logits) else torch.zeros(0, dtype=torch.int64)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("function", [right_sampler, races, adds_gumbel_noise], ids=lambda f: f.__name__)
def test_a_correct_kernel_draws_the_argmax_whatever_its_algorithm(function, dtype):
    found = first_finding(put(function, SAMPLE, "exact_noise", dtype, **NOISE), examples=60 if dtype == "fp32" else 20)
    assert found is None, found.text()


@pytest.mark.parametrize("law", ["keep_set", "exact_noise"])
@pytest.mark.parametrize("name", ["flashinfer", "flashinfer_joint"])
def test_a_correct_kernel_under_a_librarys_preset_keeps_the_law(name, law):
    policies = FILTER_PRESETS[name]
    found = first_finding(put(sampler(**policies), SAMPLE, law, policies=policies, **NOISE), examples=60)
    assert found is None, found.text()


def test_ids_of_the_wrong_type_are_told():
    outcome = put(returning(torch.zeros(1)), SAMPLE, "keep_set").examine(ids_of([0.0]))
    assert "returned torch.float32" in outcome.fault.detail
    assert put(returning(torch.zeros(1, dtype=torch.int32)), SAMPLE, "keep_set").examine(ids_of([0.0])).ok


# ---- where any id will do, and where x/T overflows

ANY_ID = {"policies": {"top_p_ties": "any_id"}}


def test_the_best_of_the_ties_that_a_kernel_kept_is_legal_whichever_these_are():
    """Of four ties two or three are kept, here the highest ids; the best score, id 0, is not among them."""
    made = literal(0.1, 1.0, 0.5, 0.6)
    recipe = ids_of([0.0] * 4, top_p=0.4)
    assert passing(recipe, noise=made) == [0]
    assert passing(recipe, noise=made, **ANY_ID) == [0, 2, 3]  # id 1 is worse than every other it could be kept with


@pytest.mark.parametrize("law", ["exact_noise", "appended"])
def test_a_kernel_that_keeps_the_highest_ids_of_ties_keeps_the_law_where_any_will_do(law):
    found = first_finding(put(sampler(top_p_ties="any_id"), SAMPLE, law, **NOISE | ANY_ID), examples=150)
    assert found is None, found.text()


def test_a_row_whose_x_over_t_overflows_is_free_where_that_is_declared():
    def scales_first(x, t, *rest):
        return right_sampler(x.float() / torch.where(t == 0, 1.0, t)[:, None], torch.where(t == 0, 0.0, 1.0), *rest)

    made = ids_of([-inf, 3e38, 1.0], temperature=0.5)
    assert put(scales_first, SAMPLE, "masked_never_drawn", error_model="scale_first").examine(made).ok
    assert put(scales_first, SAMPLE, "keep_set", error_model="scale_first").examine(made).ok
