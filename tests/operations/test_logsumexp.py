"""The log-sum-exp's reference is right, and its bound lets every correct kernel pass and none that errs by twice as much."""

import math

import exact
import pytest
import torch
from hypothesis import given, settings
from planted import finding_of, inf, nan, trial
from planted_losses import LSE, lse

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import GPU, INTERPRETER, U
from stabcheck.expansion import materialise
from stabcheck.floats import BF16, FORMATS, FP32, by_name
from stabcheck.operations import operation
from stabcheck.strategies import recipes
from stabcheck.verdicts import Comparison, agreement


def expect(x, dtype="fp32", output=FP32, profile=GPU, **more):
    x = torch.as_tensor(x).to(by_name(dtype).torch)
    return operation(LSE).reference(Batch(x, {}), Contract(by_name(dtype), output, profile, **more))["lse"]


def fails(got, expected):
    return agreement(Comparison(got, expected.value, expected.bound)).tolist()


# ---- the reference against 50 digits


def worst_share(x, dtype="fp32"):
    expected = expect(x, dtype)
    rows = zip(torch.as_tensor(x).double().tolist(), expected.value.tolist(), expected.bound.tolist(), strict=True)
    return max((exact.share_of_bound(exact.logsumexp(row), *rest) for row, *rest in rows if exact.sane(row)), default=0.0)


NASTY = {
    "ties": [5.0] * 7,
    "the maximum cancels log d": [-(2.0**-1) - 0.19314718] * 2,
    "one-ulp neighbours at 1e4": [1e4, 1e4 + 2.0**-10, 1e4 - 2.0**-10],
    "subnormal": [2.0**-149, 0.0, -(2.0**-130)],
    "largest and smallest": [3.4028234663852886e38, -3.4028234663852886e38, 0.0],
    "all near the largest": [3.4028234663852886e38] * 5,
    "a common offset": [1e8 + 8 * k for k in range(5)],
    "terms below every format": [0.0, -87.3, -88.7, -104.0, -110.0, -745.0, -1000.0],
    "masked": [-inf, 0.0, -inf, -1.0],
    "one column": [123.456],
}


@pytest.mark.parametrize("name", NASTY)
def test_reference_is_exact_on_nasty_rows(name):
    assert worst_share(torch.tensor([NASTY[name]])) < exact.AUDITED


@pytest.mark.parametrize("dtype", FORMATS)
def test_reference_is_exact_on_drawn_rows(dtype):
    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(recipes(LSE, dtype, max_vocab=11, max_rows=16))
    def audit(drawn):
        assert worst_share(materialise(drawn).logits, dtype) < exact.AUDITED

    audit()


# ---- what follows from no arithmetic


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ([-inf, -inf], -inf),
        ([inf, 0.0], inf),
        ([inf, -inf], inf),
        ([inf, inf], inf),
        ([nan, 0.0], nan),
        ([nan, inf], nan),
        ([-inf, 7.0], 7.0),
    ],
    ids=str,
)
def test_infinities_and_nan_are_as_torch_has_them(row, value):
    expected = expect([row])
    assert str(expected.value.item()) == str(value)
    assert str(torch.logsumexp(torch.tensor([row]), -1).item()) == str(value)
    assert not fails(torch.tensor([value]), expected)[0]
    if abs(value) == inf:
        assert expected.bound.item() == 0.0
        assert fails(torch.tensor([-value]), expected) == [True]


def test_an_empty_batch_has_an_empty_reference():
    assert expect(torch.zeros(0, 3)).value.shape == (0,)


# ---- the bound


def test_the_bound_grows_with_the_logits_since_the_result_is_rounded_at_their_size():
    rows = torch.arange(8.0)[None]
    near, far = expect(rows).bound.item(), expect(rows + 1e8).bound.item()
    assert far - near == pytest.approx(1e8 * U, rel=1e-3)


def test_the_bound_is_a_rounding_where_one_column_makes_the_sum():
    assert expect([[1e8, 0.0]]).bound.item() == pytest.approx(1e8 * U, rel=1e-6)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("error_model", ["shift_first", "scale_first"])
def test_the_bound_is_a_number_wherever_the_value_is(dtype, error_model):
    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(recipes(LSE, dtype, max_vocab=64, max_rows=64))
    def examine(drawn):
        expected = expect(materialise(drawn).logits, dtype, by_name(dtype), error_model=error_model)
        assert (expected.bound[~expected.value.isnan()] >= 0).all()

    examine()


@pytest.mark.parametrize("columns", [2, 40, 3000])
@pytest.mark.parametrize("profile", [GPU, INTERPRETER], ids=lambda p: p.name)
def test_a_kernel_that_errs_as_much_as_documented_in_every_step_keeps_the_bound_and_uses_most_of_it(columns, profile):
    x = torch.randn(1, columns, generator=torch.Generator().manual_seed(1)) * 5
    expected, wide = expect(x, profile=profile), x.double()
    z = wide - wide.amax()
    terms = (z + (1 + profile.log2e) * U * z.abs() + profile.exp * U).exp()
    log_d = (terms.sum() * (1 + summation_error(columns, Contract(FP32, FP32, profile)))).log()
    got = (wide.amax() + log_d * (1 + profile.log * U)) * (1 + U * wide.amax().sign())
    assert 0.5 < ((got - expected.value).abs() / expected.bound).item() < 1 + 1e-6  # products of errors


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_error_of_twice_the_bound_fails_and_one_within_it_does_not(dtype):
    expected = expect([[0.0, -1.0, 3.0], [1e4, 0.0, 0.0]], dtype, by_name(dtype))
    for sign in (1, -1):
        assert fails(expected.value + sign * 2 * expected.bound, expected) == [True, True]
        assert fails(expected.value + sign * 0.99 * expected.bound, expected) == [False, False]


def test_a_result_that_may_overflow_its_format_may_be_infinite_but_not_nan():
    expected = expect([[65504.0, 65504.0]], "fp16", by_name("fp16"))
    assert fails(torch.tensor([inf]), expected) == [False]
    assert fails(torch.tensor([nan]), expected) == [True]


def test_a_narrow_output_is_rounded_once_more():
    assert expect([[3.0, 1.0]], output=BF16).bound > 1000 * expect([[3.0, 1.0]]).bound


# ---- scaling first


@pytest.mark.parametrize("x", [3e38, -3e38])
def test_a_row_that_overflows_once_scaled_by_log2_e_is_free_when_scaling_comes_first(x):
    rows = [[x, x], [0.0, -inf]]
    assert expect(rows, error_model="scale_first").free.tolist() == [True, False]
    assert expect(rows).free is None


@pytest.mark.parametrize("row", [[FP32.max / math.log2(math.e) * (1 - 2.0**-20)], [inf, 0.0], [inf, 3e38], [-inf, -inf]], ids=str)
def test_a_row_next_to_that_overflow_and_one_of_infinities_are_judged(row):
    expected = expect([row], error_model="scale_first")
    assert expected.free.tolist() == [False]
    assert fails(torch.tensor([nan]), expected) == [True]


# ---- kernels of torch itself


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("law", ["accuracy", "shift_invariance", "masking", "permutation", "layout"])
def test_torchs_own_is_right(law, dtype):
    found = finding_of(trial(lambda x: torch.logsumexp(x.float(), -1), law, dtype, LSE))
    assert found is None, found.text()


def test_a_maximum_rounded_to_the_narrow_format_is_found_and_one_in_fp32_is_not():
    def rounds_the_maximum(x):
        m = (x.float().amax(-1, keepdim=True) * 1.001).to(x.dtype)  # some constant of the narrow format near it
        return (m.double() + (x.double() - m.double()).exp().sum(-1, keepdim=True).log())[:, 0].to(x.dtype).float()

    assert finding_of(trial(lse, dtype="bf16", operation=LSE)) is None
    assert finding_of(trial(rounds_the_maximum, dtype="bf16", operation=LSE)) is not None
