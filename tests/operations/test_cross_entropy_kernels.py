"""Kernels of a loss and what the laws say of them: right ones hold, torch's own are told what is theirs, unshifted ones are `unstable`."""

import pytest
import torch.nn.functional as F
from planted import finding_of, recipe_of, trial
from planted_losses import LOSS, loss, right_loss, unshifted_loss

from stabcheck.floats import FORMATS


def in_float(logits, target, reduction="mean", **options):
    """torch's own, with its fault about ignored rows of NaN mended."""
    index = options.get("ignore_index", -100)
    x = logits.float().masked_fill((target == index)[:, None], 0.0)
    return F.cross_entropy(x, target, reduction=reduction, **options)


TORCHS = {"options": {"lse_square_scale": (0.0,), "softcap": (0.0,)}, "policies": {"masked_smoothing": "inf"}}
LAWS_OF_A_LOSS = ("accuracy", "gradients", "finite_differences", "ignored_rows", "masking", "range", "bad_targets")


def test_a_mean_may_overflow_where_its_sum_does():
    made = recipe_of(LOSS, [0.0, -3.4e38], [0.0, -3.4e38], inputs={"target": 1})
    found = trial(in_float, "reductions", operation=LOSS, **TORCHS).examine(made)
    assert found.ok, found.witness()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("law", LAWS_OF_A_LOSS)
def test_torchs_own_is_right_in_fp32(law, dtype):
    found = finding_of(trial(in_float, law, dtype, LOSS, **TORCHS), examples=100 if dtype == "fp32" else 40)
    assert found is None, found.text()


def test_torchs_own_gives_an_ignored_row_of_nan_a_gradient_of_nan():
    """A finding, and true: the backward of log_softmax multiplies exp(NaN) with 0."""

    def plain(logits, target, reduction="mean", **options):
        return F.cross_entropy(logits.float(), target, reduction=reduction, **options)

    found = finding_of(trial(plain, "ignored_rows", operation=LOSS, **TORCHS))
    assert (found.kind, found.witness.what) == ("non-finite", "grad: ignored rows, every other of them NaN")


def test_torchs_own_in_bf16_takes_its_gradient_from_rounded_log_probabilities():
    """A finding, and true: log_softmax hands its bf16 result to the backward pass, so gradients err by 2^-9·|log p|."""

    def narrow(logits, target, reduction="mean", **options):
        return F.cross_entropy(logits, target, reduction=reduction, **options)

    found = finding_of(trial(narrow, "gradients", "bf16", LOSS, output="input", **TORCHS))
    assert found is not None


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_kernel_computed_in_fp64_keeps_the_bounds(dtype):
    found = finding_of(trial(right_loss, "accuracy", dtype, LOSS), examples=250 if dtype == "fp32" else 100)
    assert found is None, found.text()


FAR = recipe_of(LOSS, [1e5 + 2, 1e5 + 1, 1e5], inputs={"target": 1})


def test_a_kernel_that_forms_lse_minus_x_is_unstable_and_told_which_model_to_declare():
    examined = trial(unshifted_loss, operation=LOSS)
    outcome = examined.examine(FAR)
    assert (outcome.witness().kind, outcome.witness().model) == ("unstable", "unshifted")
    text = " ".join(examined.finding(FAR, outcome).text().split())
    assert "the loss is formed as lse − x_t, which rounds relative to the logits' common offset" in text
    assert 'or declare error_model="unshifted"' in text
    assert trial(unshifted_loss, operation=LOSS, error_model="unshifted").examine(FAR).ok


def test_a_kernel_that_forms_lse_minus_x_passes_every_law_once_it_declares_that():
    for law in ("accuracy", "shift_invariance", "range", "masking", "permutation"):
        found = finding_of(trial(unshifted_loss, law, operation=LOSS, error_model="unshifted"), examples=60)
        assert found is None, found.text()


def test_with_an_option_that_a_shift_changes_it_is_plainly_wrong():
    made = FAR.with_(options=(("lse_square_scale", 1e-2),))
    wrong = loss(of_loss=lambda values, q: values * 1.05)
    assert trial(wrong, operation=LOSS).examine(made).witness().kind == "wrong"
