"""The pieces alone, in anyone's own test."""

import pytest
import torch
from planted import nan, right

import stabcheck
from stabcheck.errors import UsageError

LOGITS, ONE = torch.tensor([[0.0, 1.0, -3.0]]), torch.ones(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_right_result_passes(dtype):
    stabcheck.assert_within_bound("temperature_softmax", right(LOGITS.to(dtype), ONE), LOGITS.to(dtype), ONE)


def test_a_wrong_result_is_told_with_its_worst_element():
    with pytest.raises(
        AssertionError, match=r"3 of 3 elements of temperature_softmax are wrong; the worst at \(0, \d\): got .*, expected .*, bound"
    ):
        stabcheck.assert_within_bound("temperature_softmax", right(LOGITS, ONE) * 1.05, LOGITS, ONE)


def test_a_nan_is_told_as_such():
    with pytest.raises(AssertionError, match="non-finite"):
        stabcheck.assert_within_bound("temperature_softmax", right(LOGITS, ONE) * nan, LOGITS, ONE)


def test_the_reference_is_exact_and_says_how_far_a_kernel_may_be():
    exact = stabcheck.reference("temperature_softmax", LOGITS, ONE)["probs"]
    assert exact.value.dtype == torch.float64
    assert exact.value.sum().item() == pytest.approx(1, abs=1e-15)
    assert (exact.bound > 0).all() and (exact.bound < 1e-5).all()


def test_the_output_decides_the_bound():
    wide = stabcheck.reference("temperature_softmax", LOGITS, ONE)["probs"]
    narrow = stabcheck.reference("temperature_softmax", LOGITS, ONE, output=torch.bfloat16)["probs"]
    assert (narrow.bound > 100 * wide.bound).all()


def test_a_policy_is_declared():
    masked = torch.full((1, 2), -torch.inf)
    stabcheck.assert_within_bound("temperature_softmax", torch.zeros(1, 2), masked, ONE, policies={"empty_row": "zeros"})
    with pytest.raises(AssertionError):
        stabcheck.assert_within_bound("temperature_softmax", torch.zeros(1, 2), masked, ONE)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stabcheck.reference("softmx", LOGITS, ONE), "unknown operation 'softmx'"),
        (
            lambda: stabcheck.reference("temperature_softmax", LOGITS, ONE, ONE),
            r"takes logits \[R, V\], temperature \[R\]; got shapes \[1, 3\], \[1\], \[1\]",
        ),
        (lambda: stabcheck.reference("temperature_softmax", LOGITS, torch.ones(2)), r"got shapes \[1, 3\], \[2\]"),
        (lambda: stabcheck.reference("temperature_softmax", LOGITS[0], ONE), r"got shapes \[3\], \[1\]"),
        (lambda: stabcheck.reference("temperature_softmax", LOGITS.double(), ONE), "torch.float64 is not supported"),
        (
            lambda: stabcheck.reference("temperature_softmax", LOGITS, ONE, policies={"empty_row": "ones"}),
            "unknown policy empty_row='ones'",
        ),
        (lambda: stabcheck.reference("temperature_softmax", LOGITS, ONE, error_model="scaled"), "unknown error_model 'scaled'"),
        (lambda: stabcheck.assert_within_bound("temperature_softmax", torch.ones(1, 1), LOGITS, ONE), r"\[1, 1\]"),
        (lambda: stabcheck.reference("temperature_softmax", torch.zeros(1, 0), ONE), r"\[1, 0\]"),
    ],
    ids=["operation", "one input too many", "input shape", "one dimension", "dtype", "policy", "error model", "result shape", "no columns"],
)
def test_wrong_use_is_told(call, told):
    with pytest.raises(UsageError, match=told):
        call()


@pytest.mark.xfail(strict=True, reason="any other word is taken for sum")
def test_an_unknown_reduction_is_told():
    with pytest.raises(UsageError, match="reduction"):
        stabcheck.reference("cross_entropy", LOGITS, torch.zeros(1, dtype=torch.int64), options={"reduction": "avg"})
