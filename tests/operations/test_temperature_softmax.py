"""The reference is right, and its bound lets every correct kernel pass and none that errs by twice as much."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from planted import inf, nan

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import GPU, INTERPRETER, U
from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.operations.temperature_softmax import TEMPERATURES
from stabcheck.strategies import recipes
from stabcheck.verdicts import Comparison, agreement, summarise

LOG2_E = math.log2(math.e)
SOFTMAX = operation("temperature_softmax")
AUDITED = 2.0**-20  # of a tolerance
POLICIES = SOFTMAX.default_policies()


def expect(batch, output=FP32, profile=GPU, policies=POLICIES, **more):
    return SOFTMAX.reference(batch, Contract(FP32, output, profile, policies, **more))["probs"]


def batch_of(x, t, dtype="fp32"):
    return Batch(torch.as_tensor(x).to(by_name(dtype).torch), {"temperature": torch.as_tensor(t, dtype=torch.float32).expand(len(x))})


def comparison(got, expected):
    return Comparison(got, expected.value, expected.bound, expected.free)


def fails(got, expected):
    """[R, V] bool."""
    return agreement(comparison(got, expected))


# ---- the reference against 50 digits


def exact_softmax(x, t):
    with mpmath.workdps(50):
        m = max(x)
        e = [mpmath.mpf(0) if v == -inf else mpmath.exp((mpmath.mpf(v) - m) / mpmath.mpf(t)) for v in x]
        total = mpmath.fsum(e)
        return [v / total for v in e]


def worst_share(batch):
    """The reference's largest error as a share of the tightest tolerance, over rows that are not ruled by a policy."""
    expected, worst = expect(batch), 0.0
    rows = zip(
        batch.logits.double().tolist(), batch.inputs["temperature"].tolist(), expected.value.tolist(), expected.bound.tolist(), strict=True
    )
    for x, t, value, bound in rows:
        if t > 0 and -inf < max(x) < inf and all(v == v for v in x):
            for exact, got, allowed in zip(exact_softmax(x, t), value, bound, strict=True):
                error = abs(exact - mpmath.mpf(got))
                worst = max(worst, float(error / mpmath.mpf(allowed)) if allowed else inf * bool(error) if error else 0.0)
    return worst


NASTY = {
    "ties": ([5.0] * 7, 0.1),
    "one-ulp neighbours at 1e4": ([1e4, 1e4 + 2.0**-10, 1e4 - 2.0**-10], 1e-3),
    "smallest normal temperature": ([0.0, -1e-38, 1e-38, -3e-38], 1e-38),
    "subnormal temperature": ([0.0, -(2.0**-149), -(2.0**-140)], 2.0**-149),
    "subnormal logits": ([2.0**-149, 0.0, -(2.0**-130)], 1.0),
    "subnormal logits and temperature": ([2.0**-149, 0.0, 2.0**-148], 2.0**-149),
    "largest and smallest": ([3.4028234663852886e38, -3.4028234663852886e38, 0.0], 1.0),
    "largest and hot": ([3e38, 1e38, -3e38], 3e38),
    "a common offset": ([1e8 + 8 * k for k in range(5)], 4.0),
    "results below every format": ([0.0, -87.3, -88.7, -104.0, -110.0, -745.0, -1000.0], 1.0),
    "masked": ([-inf, 0.0, -inf, -1.0], 0.7),
    "cold": ([0.0, -1e-10, -1e-20], 1e-20),
    "one column": ([123.456], 0.3),
}


@pytest.mark.parametrize("name", NASTY)
def test_reference_is_exact_on_nasty_rows(name):
    x, t = NASTY[name]
    assert worst_share(batch_of([x], [t])) < AUDITED


@pytest.mark.parametrize("dtype", FORMATS)
def test_reference_is_exact_on_drawn_rows(dtype):
    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(recipes("temperature_softmax", dtype, max_vocab=11, max_rows=16))
    def audit(drawn):
        assert worst_share(materialise(drawn)) < AUDITED

    audit()


def test_the_audit_sees_a_reference_that_works_in_fp32():
    batch = batch_of([[0.0, -3.0, -20.0]], [0.7])
    p = torch.softmax(batch.logits / batch.inputs["temperature"][:, None], -1)
    errors = [
        abs(e - mpmath.mpf(g))
        for e, g in zip(exact_softmax(batch.logits[0].tolist(), batch.inputs["temperature"].item()), p[0].tolist(), strict=True)
    ]
    assert max(float(e) / b for e, b in zip(errors, expect(batch).bound[0].tolist(), strict=True)) > AUDITED


# ---- policies


def rows_of(x, t, **policies):
    expected = expect(batch_of(x, t), policies=POLICIES | policies)
    return expected.value.tolist(), expected.bound.tolist(), None if expected.free is None else expected.free.tolist()


@pytest.mark.parametrize(("policy", "value"), [("nan", nan), ("zeros", 0.0)])
def test_a_row_of_minus_infinities_is_what_the_policy_says(policy, value):
    values, bounds, _ = rows_of([[-inf, -inf], [0.0, 0.0]], [1.0, 1.0], empty_row=policy)
    assert [str(v) for v in values[0]] == [str(value)] * 2
    assert bounds[0] == [0.0, 0.0]
    assert values[1] == [0.5, 0.5]


@pytest.mark.parametrize("policy", ["nan", "zeros"])
def test_a_row_of_minus_infinities_at_zero_temperature_is_what_the_policy_says_of_it(policy):
    values, bounds, _ = rows_of([[-inf, -inf]], [0.0], empty_row=policy, zero_temperature="greedy")
    assert [str(v) for v in values[0]] == [{"nan": "nan", "zeros": "0.0"}[policy]] * 2
    assert bounds == [[0.0, 0.0]]


@pytest.mark.parametrize("bad", [nan, inf])
def test_nan_or_infinity_makes_its_row_nan_and_no_other(bad):
    values, _, free = rows_of([[0.0, bad, -inf], [0.0, 0.0, -inf]], [1.0, 1.0])
    assert all(v != v for v in values[0])
    assert values[1] == [0.5, 0.5, 0.0]
    assert free is None or free[0] == [False] * 3


def test_zero_temperature_is_free_by_default_in_its_row_only():
    _, _, free = rows_of([[0.0, 1.0], [0.0, 1.0]], [0.0, 1.0])
    assert free == [[True, True], [False, False]]


def test_zero_temperature_is_exactly_one_hot_at_the_first_maximum_when_greedy():
    values, bounds, free = rows_of([[0.0, 7.0, 7.0]], [0.0], zero_temperature="greedy")
    assert (values, bounds, free) == ([[0.0, 1.0, 0.0]], [[0.0] * 3], [[False] * 3])


@pytest.mark.parametrize("row", [[-inf, -inf], [nan, 0.0], [inf, 0.0]], ids=str)
def test_greedy_has_no_say_in_a_row_without_a_finite_maximum(row):
    values, _, _ = rows_of([row], [0.0], zero_temperature="greedy")
    assert all(v != v for v in values[0])


@pytest.mark.parametrize("t", [nan, -1.0])
def test_a_temperature_that_is_no_temperature_is_free(t):
    assert rows_of([[0.0, 1.0]], [t], zero_temperature="greedy")[2] == [[True, True]]


def test_a_masked_column_is_exactly_zero():
    values, bounds, _ = rows_of([[0.0, -inf]], [1.0])
    assert (values, bounds[0][1]) == ([[1.0, 0.0]], 0.0)


def test_an_empty_batch_has_an_empty_reference():
    assert expect(batch_of(torch.zeros(0, 3), [])).value.shape == (0, 3)


# ---- the bound: no false alarm, not vacuous


def shift_first(x, t):
    """A correct kernel of one pass per step, in fp32."""
    x = x.float()
    e = ((x - x.amax(-1, keepdim=True)) / t[:, None]).exp()
    return e / e.sum(-1, keepdim=True)


def online(x, t, tile=1024):
    """A correct kernel with a running maximum and sum over tiles, in fp32."""
    x, t = x.float(), t[:, None]
    m, d = torch.full((len(x), 1), -inf), torch.zeros(len(x), 1)
    for part in x.split(tile, dim=1):
        larger = torch.maximum(m, part.amax(-1, keepdim=True))
        d = d * ((m - larger) / t).exp() + ((part - larger) / t).exp().sum(-1, keepdim=True)
        m = larger
    return ((x - m) / t).exp() / d


def scale_first(x, t):
    x = x.float() / t[:, None]
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def random_batches(dtype, rows=100, seed=0):
    """Rows of every spread, offset and drawn temperature, 100 at a time."""
    generator = torch.Generator().manual_seed(seed)
    for columns in (1, 2, 3, 17, 128, 1000, 1025, 5000):
        for spread, offset in ((1.0, 0.0), (10.0, 100.0), (0.1, -1e4), (1e3, 0.0)):
            x = torch.randn(rows, columns, generator=generator) * spread + offset
            x[:, 1::7] = torch.where(torch.rand(rows, 1, generator=generator) < 0.2, -inf, x[:, 1::7])
            t = torch.tensor(TEMPERATURES)[torch.randint(len(TEMPERATURES) - 2, (rows,), generator=generator)]
            yield batch_of(x, t, dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kernel", [shift_first, online], ids=lambda k: k.__name__)
def test_a_correct_kernel_keeps_the_bound_and_comes_near_it(kernel, dtype):
    fmt, worst = by_name(dtype), 0.0
    for batch in random_batches(dtype):
        got = kernel(batch.logits, batch.inputs["temperature"]).to(fmt.torch)
        (summary,) = summarise([comparison(got, expect(batch, fmt, INTERPRETER))])
        assert not summary.failed
        worst = max(worst, summary.utilisation)
    assert 0.05 < worst < 1


@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
@pytest.mark.parametrize(("columns", "spread"), [(2, 1.0), (40, 5.0), (3000, 1.0), (3000, 20.0)])
def test_a_kernel_that_errs_as_much_as_documented_in_every_step_keeps_the_bound_and_uses_most_of_it(columns, spread, profile):
    """All errors conspire against column 0: its numerator is too large, all others too small, in exact arithmetic otherwise."""
    contract = Contract(FP32, FP32, profile)
    logits = torch.randn(1, columns, generator=torch.Generator().manual_seed(1)) * spread
    logits[0, 0] = logits.max() - 3
    batch = batch_of(logits, [0.9])
    x, t = batch.logits.double(), batch.inputs["temperature"].double()[:, None]
    z, sign = (x - x.amax()) / t, torch.ones(columns).double().neg()
    sign[0] = 1.0
    kappa = (1 + profile.divide + profile.log2e) * U * z.abs() + profile.exp * U
    e = (z + sign * kappa).exp()
    got = e / (e.sum() * (1 - summation_error(columns, contract))) * (1 + profile.divide * U)
    expected = expect(batch, FP32, profile)
    assert 0.5 < (got - expected.value).abs()[0, 0] / expected.bound[0, 0] < 1


@pytest.mark.parametrize("error_model", ["shift_first", "scale_first"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_bound_is_a_number_wherever_the_value_is(dtype, error_model):
    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(recipes("temperature_softmax", dtype, max_vocab=64, max_rows=64))
    def examine(drawn):
        expected = expect(materialise(drawn), by_name(dtype), error_model=error_model)
        numbers = ~expected.value.isnan()
        assert expected.bound[numbers].isfinite().all()
        assert (expected.bound[numbers] >= 0).all()

    examine()


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_error_of_twice_the_bound_fails_and_one_within_it_does_not(dtype):
    batch = batch_of([[0.0, -1.0, 3.0, -30.0]], [0.7], dtype)
    expected = expect(batch, by_name(dtype))
    assert fails(expected.value + 2 * expected.bound, expected).all()
    assert fails(expected.value - 2 * expected.bound, expected).all()
    assert not fails(expected.value + 0.99 * expected.bound, expected).any()


def test_the_bound_of_a_single_column_is_two_exponentials_a_division_and_a_product():
    expected = expect(batch_of([[1e4]], [1e-3]))
    assert expected.value.item() == 1.0
    assert expected.bound.item() == pytest.approx((2 * 4 + 4 + 1) * U, rel=1e-3)


def test_scaling_first_breaks_the_first_bound_and_keeps_the_second():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2)) * 3 + 1e5
    batch = batch_of(x, torch.linspace(0.3, 1.7, 50))
    got = scale_first(batch.logits, batch.inputs["temperature"])
    assert fails(got, expect(batch, profile=INTERPRETER)).any()
    assert not fails(got, expect(batch, profile=INTERPRETER, error_model="scale_first")).any()


def test_scaling_first_is_no_excuse_for_other_errors():
    batch = batch_of([[0.0, 1.0]], [1.0])
    wrong = torch.tensor([[0.28, 0.72]])
    assert fails(wrong, expect(batch, error_model="scale_first")).all()


def scale_first_in_base_2(x, t):
    z = x.float() / t[:, None] * LOG2_E
    e = torch.exp2(z - z.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


@pytest.mark.parametrize(("largest", "t"), [(3e38, 1.0), (-3e38, 1.0), (3e28, 1e-10), (3.4e38, 1.2)])
def test_a_row_that_overflows_only_once_scaled_by_log2_e_is_free_when_scaling_comes_first(largest, t):
    assert abs(largest) / t < FP32.max
    batch = batch_of([[largest], [0.0]], [t, t])
    got, expected = scale_first_in_base_2(batch.logits, batch.inputs["temperature"]), expect(batch, error_model="scale_first")
    assert got.isnan().tolist() == expected.free.tolist() == [[True], [False]]
    assert not fails(got, expected).any()
    assert fails(got, expect(batch)).tolist() == [[True], [False]]


@pytest.mark.parametrize("t", [1.0, 1e-10, 1.2])
def test_a_row_next_to_that_overflow_is_judged_when_scaling_comes_first(t):
    batch = batch_of([[FP32.max / LOG2_E * float(torch.tensor(t)) * (1 - 2.0**-20)]], [t])
    expected = expect(batch, error_model="scale_first")
    assert not fails(scale_first_in_base_2(batch.logits, batch.inputs["temperature"]), expected).any()
    assert fails(torch.tensor([[nan]]), expected).all()


def test_a_subnormal_logit_that_may_be_flushed_at_a_subnormal_temperature_leaves_the_whole_row_open():
    logits = torch.tensor([[-(2.0**-133), 0.0]], dtype=torch.bfloat16)  # flushed, or misread by an interpreter: ties
    batch = Batch(logits, {"temperature": torch.tensor([2.0**-149])})
    contract = Contract(FORMATS["bf16"], FORMATS["bf16"], GPU, operation("temperature_softmax").default_policies())
    exact = operation("temperature_softmax").reference(batch, contract)["probs"]
    assert exact.value.tolist() == [[0.0, 1.0]] and bool((exact.bound >= 0.5).all())
