"""The pieces alone, in anyone's own test."""

import pytest
import torch
import torch.nn.functional as F
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


# ---- several outputs, options and inputs that may be left out

TARGET = torch.tensor([1])
SMOOTH = {"label_smoothing": 0.1}


def loss_and_grad(**options):
    x = LOGITS.clone().requires_grad_()
    value = F.cross_entropy(x.double(), TARGET, reduction="none", **options).float()
    value.sum().backward()
    return {"loss": value.detach(), "grad": x.grad}


def test_several_outputs_are_given_by_name():
    stabcheck.assert_within_bound("cross_entropy", loss_and_grad(**SMOOTH), LOGITS, TARGET, options=SMOOTH)


@pytest.mark.parametrize("wrong", ["loss", "grad"])
def test_a_wrong_one_is_told_by_its_name_and_place(wrong):
    got = loss_and_grad()
    got[wrong] = got[wrong] * 1.05
    place = r"\(0, \d\)" if wrong == "grad" else "row 0"
    with pytest.raises(AssertionError, match=rf"elements of cross_entropy's {wrong} are wrong; the worst at {place}: got "):
        stabcheck.assert_within_bound("cross_entropy", got, LOGITS, TARGET)


def test_one_tensor_stands_for_the_first_output_and_one_name_for_its_own():
    got = loss_and_grad()
    stabcheck.assert_within_bound("cross_entropy", got["loss"], LOGITS, TARGET)
    stabcheck.assert_within_bound("cross_entropy", {"grad": got["grad"]}, LOGITS, TARGET)


def test_without_its_option_a_smoothed_loss_is_wrong():
    with pytest.raises(AssertionError, match="cross_entropy's loss"):
        stabcheck.assert_within_bound("cross_entropy", loss_and_grad(**SMOOTH), LOGITS, TARGET)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_reduction_is_judged_as_one_value(reduction):
    x, target = LOGITS.expand(3, 3), torch.tensor([0, -100, 2])
    value = F.cross_entropy(x.double(), target, reduction=reduction).float()
    stabcheck.assert_within_bound("cross_entropy", value, x, target, options={"reduction": reduction})
    with pytest.raises(AssertionError, match="1 of 1 elements"):
        stabcheck.assert_within_bound("cross_entropy", 1.05 * value, x, target, options={"reduction": reduction})


def with_option(name, value):
    return stabcheck.reference("cross_entropy", LOGITS, TARGET, options={name: value})


def test_inputs_left_out_at_the_end_have_their_defaults():
    plain = stabcheck.reference("cross_entropy", LOGITS, TARGET)["grad"].value
    assert plain.equal(stabcheck.reference("cross_entropy", LOGITS, TARGET, ONE)["grad"].value)
    assert stabcheck.reference("token_logprob", LOGITS, TARGET)["logprob"].value.equal(
        stabcheck.reference("token_logprob", LOGITS, TARGET, ONE)["logprob"].value
    )
    assert stabcheck.reference("temperature_softmax", LOGITS)["probs"].value.shape == (1, 3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stabcheck.reference("cross_entropy", LOGITS), r"takes logits \[R, V\], target \[R\]; target is missing"),
        (lambda: stabcheck.reference("token_logprob", LOGITS), "labels is missing"),
        (lambda: with_option("reduction", "avg"), "unknown reduction 'avg'; use one of none, sum, mean"),
        (lambda: with_option("smoothing", 0.1), "unknown option 'smoothing'; cross_entropy has ignore_index, label_smoothing"),
        (lambda: stabcheck.reference("logsumexp", LOGITS, options={"softcap": 1.0}), "unknown option 'softcap'; logsumexp has none"),
        (lambda: stabcheck.assert_within_bound("cross_entropy", {"los": ONE}, LOGITS, TARGET), "unknown output 'los'; .* has loss, grad"),
        (lambda: stabcheck.assert_within_bound("cross_entropy", {"grad": ONE}, LOGITS, TARGET), r"shape \[1\] .* not \[1, 3\]"),
    ],
    ids=["target", "labels", "reduction", "option", "no options", "output", "output shape"],
)
def test_wrong_use_of_losses_is_told(call, told):
    with pytest.raises(UsageError, match=told):
        call()


def test_what_a_policy_leaves_undefined_is_no_pass():
    with pytest.raises(AssertionError, match="nothing to compare"):
        stabcheck.assert_within_bound("temperature_softmax", torch.zeros_like(LOGITS), LOGITS, torch.zeros(len(LOGITS)))


def test_a_target_out_of_range_is_the_callers_mistake():
    with pytest.raises(stabcheck.UsageError, match="target is 7 in row 0"):
        stabcheck.assert_within_bound("cross_entropy", torch.zeros(1), LOGITS, torch.tensor([7]))


def test_a_tuple_of_outputs_is_taken_in_their_order():
    labels, temperature = torch.zeros(len(LOGITS), dtype=torch.int64), torch.ones(len(LOGITS))
    exact = stabcheck.reference("token_logprob", LOGITS, labels, temperature)
    right = tuple(exact[name].value.float() for name in ("logprob", "entropy"))
    stabcheck.assert_within_bound("token_logprob", right, LOGITS, labels, temperature)
    with pytest.raises(AssertionError, match="token_logprob's entropy"):
        stabcheck.assert_within_bound("token_logprob", (right[0], right[1] + 1), LOGITS, labels, temperature)


def test_an_option_given_as_an_argument_is_told_where_it_belongs():
    with pytest.raises(stabcheck.UsageError, match="options="):
        stabcheck.assert_within_bound("cross_entropy", torch.zeros(1), LOGITS, torch.tensor([0]), reduction="mean")
