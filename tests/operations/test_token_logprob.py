"""The log-probability's and the entropy's reference is right, and its bound lets every correct kernel pass."""

import exact
import pytest
import torch
from hypothesis import given, settings
from planted import finding_of, inf, nan, recipe_of, trial
from planted_losses import LOGPROB, check, entropy_of, logprob, parts, unshifted_logprob, with_entropy

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import GPU, INTERPRETER, U
from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.strategies import recipes
from stabcheck.verdicts import Comparison, agreement

OPERATION = operation(LOGPROB)


def batch_of(x, labels, t=1.0, dtype="fp32"):
    x = torch.as_tensor(x).to(by_name(dtype).torch)
    inputs = {"labels": torch.as_tensor(labels).expand(len(x)), "temperature": torch.as_tensor(t, dtype=torch.float32).expand(len(x))}
    return Batch(x, inputs)


def expect(batch, dtype="fp32", output=FP32, profile=GPU, bad_target="error", **more):
    return OPERATION.reference(batch, Contract(by_name(dtype), output, profile, {"bad_target": bad_target}, **more))


def of(x, labels, t=1.0, **more):
    """{output: (values, bounds)} as lists."""
    return {name: (e.value.tolist(), e.bound.tolist()) for name, e in expect(batch_of(x, labels, t), **more).items()}


def fails(got, expected):
    return agreement(Comparison(torch.as_tensor(got), expected.value, expected.bound, expected.free)).tolist()


# ---- the reference against 50 digits


def worst_share(batch, dtype="fp32"):
    expected, worst = expect(batch, dtype), 0.0
    rows = zip(batch.logits.double().tolist(), batch.inputs["labels"].tolist(), batch.inputs["temperature"].tolist(), strict=True)
    for k, (x, label, t) in enumerate(rows):
        if exact.sane(x) and t > 0:
            for value, e in zip(exact.logprob(x, label, t), expected.values(), strict=True):
                worst = max(worst, exact.share_of_bound(value, e.value[k].item(), e.bound[k].item()))
    return worst


NASTY = {
    "ties": ([5.0] * 7, 3, 0.1),
    "one-ulp neighbours at 1e4": ([1e4, 1e4 + 2.0**-10, 1e4 - 2.0**-10], 2, 1e-3),
    "smallest normal temperature": ([0.0, -1e-38, 1e-38, -3e-38], 1, 1e-38),
    "subnormal temperature": ([0.0, -(2.0**-149), -(2.0**-140)], 1, 2.0**-149),
    "subnormal logits": ([2.0**-149, 0.0, -(2.0**-130)], 0, 1.0),
    "largest and smallest": ([3.4028234663852886e38, -3.4028234663852886e38, 0.0], 1, 1.0),
    "largest and hot": ([3e38, 1e38, -3e38], 2, 3e38),
    "a common offset": ([1e8 + 8 * k for k in range(5)], 0, 4.0),
    "terms below every format": ([0.0, -87.3, -88.7, -104.0, -110.0, -745.0, -1000.0], 6, 1.0),
    "masked": ([-inf, 0.0, -inf, -1.0], 3, 0.7),
    "a masked label": ([-inf, 0.0, -1.0], 0, 0.7),
    "cold": ([0.0, -1e-10, -1e-20], 2, 1e-20),
    "one column": ([123.456], 0, 0.3),
    "nearly certain": ([0.0, -80.0, -90.0, -100.0], 0, 1.0),
    "flat": ([1.0] * 1000, 999, 1e30),
}


@pytest.mark.parametrize("name", NASTY)
def test_reference_is_exact_on_nasty_rows(name):
    x, label, t = NASTY[name]
    assert worst_share(batch_of([x], [label], [t])) < exact.AUDITED


@pytest.mark.parametrize("dtype", FORMATS)
def test_reference_is_exact_on_drawn_rows(dtype):
    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(recipes(LOGPROB, dtype, max_vocab=11, max_rows=16))
    def audit(drawn):
        assert worst_share(materialise(drawn), dtype) < exact.AUDITED

    audit()


# ---- what follows from no arithmetic


@pytest.mark.parametrize("row", [[-inf, -inf], [nan, 0.0], [inf, 0.0], [inf, -inf]], ids=str)
def test_a_row_without_a_finite_maximum_is_nan_and_no_other(row):
    values = of([row, [0.0, 0.0]], [0, 0])
    assert [str(v[0][0]) for v in values.values()] == ["nan", "nan"]
    assert values["logprob"][0][1] == pytest.approx(-0.6931471805599453, abs=1e-16)


def test_a_masked_label_is_minus_infinity_exactly_and_its_entropy_is_that_of_the_others():
    values = of([[-inf, 0.0, 0.0]], [0])
    assert values["logprob"] == ([-inf], [0.0])
    assert values["entropy"][0][0] == pytest.approx(0.6931471805599453, abs=1e-15)


def test_one_column_has_logprob_and_entropy_0():
    values = of([[1e4]], [0], 1e-3)
    assert (values["logprob"][0], values["entropy"][0]) == ([0.0], [0.0])


def test_0_log_0_is_0():
    assert of([[0.0, -inf, -1e30]], [0])["entropy"][0] == [0.0]


@pytest.mark.parametrize("bad", [-1, 2, 100, -100])
def test_a_label_out_of_range_is_free_by_default_and_nan_if_declared(bad):
    free = expect(batch_of([[0.0, 1.0], [0.0, 1.0]], [0, bad]))
    assert [e.free.tolist() for e in free.values()] == [[False, True]] * 2
    nan_row = expect(batch_of([[0.0, 1.0], [0.0, 1.0]], [0, bad]), bad_target="nan")
    assert all(e.value.isnan().tolist() == [False, True] and e.free is None for e in nan_row.values())


@pytest.mark.parametrize("t", [0.0, -1.0, nan])
def test_a_temperature_that_is_no_temperature_is_free_in_its_row_only(t):
    assert all(e.free.tolist() == [True, False] for e in expect(batch_of([[0.0, 1.0]] * 2, 0, [t, 1.0])).values())


@pytest.mark.parametrize("error_model", ["unshifted", "scale_first"])
def test_a_kernel_that_declares_x_over_t_promises_nothing_where_that_overflows(error_model):
    free = expect(batch_of([[3e38, 0.0], [0.0, 0.0]], 0, 0.1), error_model=error_model)["logprob"].free
    assert free is not None and free.tolist() == [True, False]


def test_nor_where_only_its_product_with_log2_e_overflows_if_it_scales_first():
    free = {
        model: expect(batch_of([[3e38, 0.0], [2e38, 0.0]], 0), error_model=model)["entropy"].free for model in ("unshifted", "scale_first")
    }
    assert {model: rows.tolist() for model, rows in free.items()} == {"unshifted": [False, False], "scale_first": [True, False]}


def test_a_difference_that_overflows_before_it_is_divided_may_be_infinite():
    made = recipe_of(LOGPROB, [3e38, -1e38], inputs={"labels": 1, "temperature": 2.0})
    assert trial(shifted, operation=LOGPROB).examine(made).ok


def test_a_shift_may_take_x_over_t_beyond_fp32_where_that_is_declared():
    def scales_first(x, labels, t):
        x = x.float() / t[:, None]
        return logprob(x, labels, torch.ones_like(t))

    made = recipe_of(LOGPROB, [0.0, -1e-39], inputs={"labels": 0, "temperature": 1e-39})
    assert trial(scales_first, "shift_invariance", operation=LOGPROB, error_model="scale_first").examine(made).ok


def test_an_entropy_that_rounds_relative_to_the_logits_may_be_negative_where_that_is_declared():
    off = with_entropy(lambda values, x: values - 1e-3)
    made = recipe_of(LOGPROB, [50000.0], inputs={"labels": 0})
    assert trial(off, "accuracy", operation=LOGPROB, error_model="unshifted").examine(made).ok
    assert trial(off, "range", operation=LOGPROB, error_model="unshifted").examine(made).ok


def test_an_empty_batch_has_an_empty_reference():
    assert {e.value.shape for e in expect(batch_of(torch.zeros(0, 3), [])).values()} == {(0,)}


# ---- the bound


def test_the_bound_does_not_grow_with_a_common_offset():
    x = torch.arange(8.0)[None] * 16  # fp32 has steps of 16 at 2^27
    near, far = of(x, [2], 3.0), of(x + 2.0**27, [2], 3.0)
    for name in near:
        assert far[name][0] == pytest.approx(near[name][0], rel=1e-12)
        assert far[name][1] == pytest.approx(near[name][1], rel=1e-9)


def test_the_bound_of_an_unshifted_kernel_does():
    x = torch.arange(8.0)[None] * 16  # fp32 has steps of 16 at 2^27
    near, far = of(x, [2], 3.0), of(x + 2.0**27, [2], 3.0, error_model="unshifted")
    assert far["logprob"][1][0] > 1e5 * near["logprob"][1][0]
    assert far["logprob"][1][0] == pytest.approx((4 + 2) * U * 2 * 2.0**27 / 3, rel=1e-3)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("error_model", list(OPERATION.error_models))
def test_the_bound_is_a_number_wherever_the_value_is(dtype, error_model):
    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(recipes(LOGPROB, dtype, max_vocab=64, max_rows=64))
    def examine(drawn):
        for e in expect(materialise(drawn), dtype, by_name(dtype), error_model=error_model).values():
            assert (e.bound[~e.value.isnan()] >= 0).all()

    examine()


def test_error_models_are_each_looser_than_the_one_before():
    batch = batch_of(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 100, 3, 0.7)
    bounds = [expect(batch, error_model=model)["logprob"].bound for model in OPERATION.error_models]
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[0] < bounds[2]).all()


@pytest.mark.parametrize("columns", [2, 40, 3000])
@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
def test_a_kernel_that_errs_as_much_as_documented_in_every_step_keeps_the_bound_and_uses_most_of_it(columns, profile):
    """Every exponent too large, their sum and its logarithm too, the label's exponent too small: the errors add up."""
    x = torch.randn(1, columns, generator=torch.Generator().manual_seed(1)) * 5
    batch = batch_of(x, [0], [0.9])
    expected, t = expect(batch, profile=profile)["logprob"], batch.inputs["temperature"].double()[:, None]
    z = (x.double() - x.double().amax()) / t
    a = 2 + profile.divide + profile.log2e
    terms = (z + a * U * z.abs() + profile.exp * U).exp()
    log_d = (terms.sum() * (1 + summation_error(columns, Contract(FP32, FP32, profile)))).log() * (1 + profile.log * U)
    got = (z[0, 0] - a * U * z[0, 0].abs() - log_d) * (1 + U)
    assert 0.5 < ((got - expected.value).abs() / expected.bound).item() < 1


@pytest.mark.parametrize("name", ["logprob", "entropy"])
def test_an_error_of_twice_the_bound_fails_and_one_within_it_does_not(name):
    expected = expect(batch_of([[0.0, -1.0, 3.0], [1e4, 0.0, 1e4]], 1, 0.7))[name]
    for sign in (1, -1):
        assert fails(expected.value + sign * 2 * expected.bound, expected) == [True, True]
        assert fails(expected.value + sign * 0.99 * expected.bound, expected) == [False, False]


# ---- kernels in fp32


def shifted(x, labels, t):
    """Correct, in fp32, as a GPU kernel would have it."""
    check(labels, x.shape[1])
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    e = z.exp()
    d = e.sum(-1, keepdim=True)
    return (z.gather(1, labels[:, None]) - d.log())[:, 0], entropy_of(z, e / d, d.log())


def by_log_softmax(x, labels, t):
    check(labels, x.shape[1])
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    logp = torch.log_softmax(z, -1)
    return logp.gather(1, labels[:, None])[:, 0], logprob(x, labels, t)[1]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("function", [shifted, by_log_softmax, logprob], ids=lambda f: f.__name__)
def test_a_correct_kernel_keeps_the_bound(function, dtype):
    found = finding_of(trial(function, "accuracy", dtype, LOGPROB), examples=200 if dtype == "fp32" else 80)
    assert found is None, found.text()


def sums_p_log_p(x, labels, t):
    """−Σ p·log p: both signs nowhere, but log p of tiny p loses what z keeps; right."""
    check(labels, x.shape[1])
    _, z, p, log_d = parts(x, t.double()[:, None])
    return logprob(x, labels, t)[0], -torch.where(p == 0, 0.0, p * (z - log_d)).sum(-1).float()


def test_an_entropy_of_another_form_keeps_its_range_and_its_bound():
    for law in ("accuracy", "range"):
        assert finding_of(trial(sums_p_log_p, law, operation=LOGPROB)) is None


FAR = recipe_of(LOGPROB, [1e5 + 2, 1e5 + 1, 1e5], inputs={"labels": 1, "temperature": 0.3})


def test_a_kernel_that_forms_lse_minus_x_is_unstable_and_told_which_model_to_declare():
    examined = trial(unshifted_logprob, operation=LOGPROB)
    outcome = examined.examine(FAR)
    assert (outcome.witness().kind, outcome.witness().model) == ("unstable", "unshifted")
    text = " ".join(examined.finding(FAR, outcome).text().split())
    assert 'lse − x/T, which rounds relative to the logits. Form (x − m)/T − log d, or declare error_model="unshifted"' in text
    assert trial(unshifted_logprob, operation=LOGPROB, error_model="unshifted").examine(FAR).ok


def test_a_kernel_that_is_wrong_near_zero_too_is_not_called_unstable():
    def wrong(x, labels, t):
        values, entropy = unshifted_logprob(x, labels, t)
        return values * 1.05, entropy

    assert trial(wrong, operation=LOGPROB).examine(FAR).witness().kind == "wrong"
