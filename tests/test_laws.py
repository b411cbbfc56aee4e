"""Every law holds for a right kernel and catches the mistake it is there for."""

from dataclasses import replace

import planted
import planted_losses as losses
import pytest
import test_choices
import torch
from planted import CPU, LAWS, SOFTMAX, Layout, finding_of, inf, kernel, recipe, recipe_of, right, right_in_place, trial
from planted_losses import LOGPROB, LOSS, LSE, loss, lse, with_entropy, with_logprob

RIGHT = {SOFTMAX: right, LSE: lse, LOGPROB: losses.logprob, LOSS: losses.right_loss}
DECLARED = {SOFTMAX: {"in_place": right_in_place, "routes": {"only": right}}}
EVERYWHERE = {"accuracy", "determinism", "finiteness", "isolation", "layout", "masking", "memory", "permutation", "shift_invariance"}
EVERYWHERE |= {"graph_replay", "offsets64", "in_place", "routes", "widening"}
ONLY = {
    SOFTMAX: {"monotone", "normalisation", "range"},
    LSE: set(),
    LOGPROB: {"range", "bad_targets"},
    LOSS: {"range", "bad_targets", "gradients", "finite_differences", "ignored_rows", "reductions"},
}
CAUGHT = [
    ("accuracy", SOFTMAX, planted.one_percent_flatter),
    ("accuracy", LSE, lambda x: lse(x) + 1e-3),
    ("accuracy", LOGPROB, with_logprob(lambda values, x, labels, t: values * (1 + 1e-4))),
    ("accuracy", LOGPROB, with_entropy(lambda values, x: values * (1 + 1e-4))),
    ("accuracy", LOSS, loss(of_loss=lambda values, q: values * (1 + 1e-4))),
    ("accuracy", LOSS, loss(of_grad=lambda grad, q: grad * (1 + 1e-4))),
    ("accuracy", LOSS, losses.gradient_without_softcap),
    ("accuracy", LOSS, losses.takes_upstream_for_granted),
    ("bad_targets", LOGPROB, losses.reads_the_label_modulo_v),
    ("bad_targets", LOGPROB, losses.reads_the_next_row),
    ("bad_targets", LOSS, losses.takes_bad_targets),
    ("bad_targets", LOGPROB, losses.takes_labels_for_32_bits),
    ("bad_targets", LOSS, losses.narrows_targets),
    ("bad_targets", LOSS, losses.always_ignores_minus_100),
    ("bad_targets", LOSS, losses.raises_without_a_word),
    ("determinism", SOFTMAX, planted.shaky),
    ("determinism", LOSS, loss(of_grad=lambda grad, q: grad * next(planted.SHAKE))),
    ("determinism", LOSS, loss(of_mean=lambda total, q: losses.mean_of(total, q) * next(planted.SHAKE))),
    ("finite_differences", LOSS, losses.gradient_without_softcap),
    ("finite_differences", LOSS, loss(of_grad=losses.smoothed_over_all)),
    ("finiteness", SOFTMAX, planted.overflows),
    ("finiteness", LSE, lambda x: x.float().exp().sum(-1).log()),
    ("finiteness", LOSS, loss(of_grad=lambda grad, q: grad / (q.upstream != 0)[:, None])),
    ("gradients", LOSS, losses.gradient_twice_in_row_1),
    ("gradients", LOSS, losses.takes_upstream_for_granted),
    ("ignored_rows", LOSS, losses.multiplies_ignored_rows_with_0),
    ("ignored_rows", LOSS, losses.adds_the_neighbours_ignored_loss),
    ("isolation", SOFTMAX, planted.shares_the_maximum),
    ("isolation", LOSS, loss(of_grad=lambda grad, q: grad + 0.0 * q.logits.sum())),
    ("layout", SOFTMAX, planted.ignores_strides),
    ("layout", LSE, lambda x: lse(x.as_strided(x.shape, (x.shape[1], 1)))),
    ("layout", LOGPROB, losses.steps_by_1_through_labels),
    ("layout", LOSS, losses.target_wrong_if_strided),
    ("layout", LOSS, losses.target_wrong_if_expanded),
    ("layout", LOSS, losses.upstream_wrong_if_strided),
    ("layout", LOSS, losses.upstream_wrong_if_expanded),
    ("masking", SOFTMAX, planted.clamps_from_below),
    ("masking", LSE, lambda x: lse(x.clamp(min=-1e4))),
    ("masking", LOGPROB, with_entropy(lambda values, x: values + 1e-3 * (x == -inf).any(-1))),
    ("memory", SOFTMAX, planted.scribbles_on_its_input),
    ("memory", LOSS, loss(of_grad=losses.overwrites_the_logits)),
    ("memory", LOSS, loss(of_grad=losses.forgets_its_last_column)),
    ("memory", LOSS, loss(of_grad=losses.writes_past_its_end)),
    ("memory", LOSS, loss(of_mean=losses.mean_past_a_buffer)),
    ("memory", LOSS, loss(of_grad=losses.under_the_mean(losses.overwrites_the_logits))),
    ("monotone", SOFTMAX, planted.reversed_rows),
    ("normalisation", SOFTMAX, planted.five_percent_too_much),
    ("permutation", SOFTMAX, planted.weighs_the_first_column_twice),
    ("permutation", LOGPROB, with_logprob(lambda values, x, labels, t: values * torch.where(labels == 0, 1.001, 1.0))),
    ("permutation", LOSS, loss(of_grad=lambda grad, q: grad * torch.linspace(1, 1.01, grad.shape[1]))),
    ("range", SOFTMAX, lambda x, t: right(x, t) + 1e-3),
    ("range", LOGPROB, with_logprob(lambda values, x, labels, t: torch.where(values == 0, 1e-9, values))),
    ("range", LOGPROB, with_entropy(lambda values, x: torch.where(values == 0, -1e-9, values))),
    ("range", LOGPROB, with_entropy(lambda values, x: values * 1.001)),
    ("range", LOSS, losses.slightly_negative),
    ("reductions", LOSS, losses.divides_by_all_rows),
    ("reductions", LOSS, losses.adds_the_neighbours_ignored_loss),
    ("shift_invariance", SOFTMAX, planted.overflows),
    ("shift_invariance", LSE, lambda x: lse(x.clamp(max=1e4))),
    ("shift_invariance", LOGPROB, losses.unshifted_logprob),
    ("shift_invariance", LOSS, losses.unshifted_loss),
]
HERE = [name for name, law in LAWS.items() if not law.gpu]
APPLYING = [(name, operation) for operation, more in ONLY.items() for name in HERE if name in EVERYWHERE | more]


@pytest.mark.parametrize("operation", RIGHT)
def test_the_laws_that_say_something_about_an_operation_apply_to_it_and_no_other(operation):
    made = kernel(RIGHT[operation], operation)
    assert {name for name, law in LAWS.items() if law.applies(made)} == EVERYWHERE | ONLY[operation]


def test_every_law_that_runs_here_has_a_kernel_that_breaks_it():
    assert set(HERE) == {*(name for name, _, _ in CAUGHT), *test_choices.CAUGHT, "in_place", "routes", "widening"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "operation"), [(n, o) for n, o in APPLYING if o == SOFTMAX or n not in ("in_place", "routes")])
def test_a_right_kernel_keeps_the_law(name, operation, dtype):
    if dtype not in LAWS[name].dtypes:
        return
    examined = trial(RIGHT[operation], name, dtype, operation, **DECLARED.get(operation, {}))
    found = finding_of(examined, examples=40 if dtype == "fp32" else 20)
    assert found is None, found.text()
    assert examined.tally.total.compared


@pytest.mark.parametrize(("name", "operation", "function"), CAUGHT)
def test_the_law_catches_its_mistake(name, operation, function):
    finding = finding_of(trial(function, name, operation=operation))
    assert finding is not None
    assert finding.property_name == name


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        (SOFTMAX, lambda x, t: right(x, t) * (1.0 if x.dtype == torch.float32 else 1.05)),
        (LSE, lambda x: (lse(x - x.amax(-1, keepdim=True)) + x.amax(-1).float()).to(x.dtype).float()),
        (LOSS, losses.narrow_gradient),
    ],
)
def test_widening_catches_a_path_of_its_own_for_narrow_logits(operation, function):
    assert finding_of(trial(function, "widening", "bf16", operation)) is not None


@pytest.mark.parametrize("name", ["accuracy", "gradients"])
def test_a_probability_rounded_before_1_is_subtracted_from_it_is_found(name):
    finding = finding_of(trial(losses.narrow_gradient, name, "bf16", LOSS))
    assert finding is not None
    assert finding.witness.what in ("grad", "the gradient", "sums of the gradient over rows")


def test_in_place_catches_a_form_that_works_twice_on_its_buffer():
    assert finding_of(trial(right, "in_place", in_place=planted.softmaxes_twice_in_place))


def test_in_place_catches_a_form_that_returns_another_tensor():
    assert "another tensor" in finding_of(trial(right, "in_place", in_place=right)).detail


def test_in_place_catches_a_form_of_a_loss_that_is_wrong_under_the_mean_only():
    put = {"law": "in_place", "operation": LOSS}
    assert finding_of(trial(losses.right_loss, **put, in_place=losses.in_place_loss)) is None
    assert finding_of(trial(losses.right_loss, **put, in_place=losses.in_place_loss_wrong_under_the_mean)) is not None


@pytest.mark.parametrize("law", ["accuracy", "gradients"])
def test_gradients_catches_what_is_not_linear_though_it_is_within_the_bound(law):
    made = recipe_of(LOSS, [12.0, 0.0], inputs={"target": 0, "upstream": 1.0})
    examined = trial(loss(of_grad=losses.one_percent_of_little), law, operation=LOSS)
    outcome = examined.examine(made)
    if law == "accuracy":  # for one upstream gradient as for twice that
        assert outcome.ok
        assert examined.examine(recipe_of(LOSS, [12.0, 0.0], inputs={"target": 0, "upstream": 2.0})).ok
    else:
        assert outcome.witness().what == "twice the upstream gradient with twice the gradient"


def test_routes_catches_the_one_path_that_is_wrong_and_names_it():
    finding = finding_of(trial(right, "routes", routes={"good": right, "bad": planted.five_percent_too_much}))
    assert finding.witness.what == "route bad"


def test_memory_catches_an_output_that_is_not_written():
    finding = finding_of(trial(planted.forgets_the_last_column, "memory"))
    assert (finding.kind, finding.witness.what) == ("memory", "output elements never written")


def test_isolation_holds_bit_for_bit_where_batch_invariance_is_declared():
    def by_batch_size(logits, temperature):
        return right(logits, temperature) * (1 + 2.0**-22 * (len(logits) > 3))

    assert finding_of(trial(by_batch_size, "isolation")) is None
    assert finding_of(trial(by_batch_size, "isolation", batch_invariant=True)) is not None


def scales_first(logits, temperature):
    return torch.softmax(logits.float() / temperature[:, None], -1).to(logits.dtype)


FAR_FROM_ZERO = recipe([1e5 + 2, 1e5 + 1, 1e5], temperature=0.3)


def test_accuracy_grades_a_kernel_that_scales_first_as_unstable():
    assert trial(scales_first).examine(FAR_FROM_ZERO).witness().kind == "unstable"


def test_an_unstable_kernel_that_declares_it_passes():
    assert trial(scales_first, error_model="scale_first").examine(FAR_FROM_ZERO).ok


def test_a_kernel_that_is_wrong_near_zero_too_is_not_called_unstable():
    examined = trial(lambda x, t: scales_first(x, t) * 1.05)
    assert examined.examine(FAR_FROM_ZERO).witness().kind == "wrong"


def test_ignored_rows_leaves_the_layout_as_it_was():
    def by_layout(logits, target, **options):
        return losses.right_loss(logits, target, **options) * (1.0 if logits.is_contiguous() else 1 + 2.0**-22)

    made = recipe_of(LOSS, [0.0, 1.0, 2.0], [1.0, 0.0, 2.0], inputs={"target": 1}, layout=Layout(pad=3))
    assert trial(by_layout, "ignored_rows", operation=LOSS).examine(made).ok


# ---- targets out of range, by policy

NAN = {"policies": {"bad_target": "nan"}}


@pytest.mark.parametrize(
    ("operation", "function"),
    [(LOSS, losses.nan_for_bad_targets), (LOGPROB, losses.nan_for_bad_labels), (LOSS, losses.right_loss), (LOGPROB, losses.logprob)],
    ids=["loss", "log-probability", "a loss that raises", "a log-probability that raises"],
)
def test_where_nan_is_declared_a_target_out_of_range_may_make_its_row_nan_or_raise(operation, function):
    assert finding_of(trial(function, "bad_targets", operation=operation, **NAN)) is None


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (losses.takes_bad_targets, "loss: target = "),
        (losses.nan_loss_for_bad_targets, "grad: target = "),
        (losses.nan_for_bad_targets_and_the_others_off, "grad: other rows beside target = "),
    ],
    ids=["nothing is NaN", "the gradient is not", "other rows move"],
)
def test_where_nan_is_declared_all_of_its_row_is_nan_and_no_other_changes(function, what):
    assert finding_of(trial(function, "bad_targets", operation=LOSS, **NAN)).witness.what.startswith(what)


def test_the_other_rows_are_compared_at_the_same_place_in_memory():
    """Where a kernel may sum in another order for another alignment."""

    def by_alignment(values, q):
        return losses.nan_loss(values * (1 + 2.0**-22 * (q.logits.storage_offset() > 0)), q)

    made = recipe_of(LOSS, [0.0, 1.0], [0.0, 2.0], inputs={"target": 0})
    examined = trial(loss(of_loss=by_alignment, of_grad=losses.nan_gradient, checked=False), "bad_targets", operation=LOSS, **NAN)
    assert examined.examine(made).ok


def test_where_nothing_is_declared_nan_is_no_error():
    found = finding_of(trial(losses.nan_for_bad_targets, "bad_targets", operation=LOSS))
    assert (found.kind, found.detail) == ("wrong", "target = 1 in row 0, V = 1 raised no error; returned loss nan, grad nan")


# ---- where a law applies


def test_bad_targets_are_put_to_a_kernel_on_a_gpu_only_where_it_says_what_becomes_of_them():
    gpu = replace(CPU, name="cuda:0")
    assert "no policy 'bad_target', and a kernel that traps" in LAWS["bad_targets"].why_not(kernel(losses.right_loss, LOSS), gpu)
    assert LAWS["bad_targets"].why_not(kernel(losses.right_loss, LOSS, **NAN), gpu) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [("in_place", "declares no in_place"), ("routes", "declares no routes"), ("graph_replay", "needs a GPU"), ("accuracy", None)],
)
def test_why_a_law_cannot_be_put_to_a_kernel(name, why):
    found = LAWS[name].why_not(kernel(right), CPU)
    assert found is None if why is None else why in found


def test_a_kernel_for_gpus_only_runs_nowhere_else():
    assert LAWS["accuracy"].why_not(kernel(right, gpu_only=True), CPU) == "needs a GPU"


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_is_one_sentence_and_its_file_says_how_kernels_break_it(law):
    import sys

    assert law.statement and "\n" not in law.statement and not law.statement.endswith(".")
    assert "Kernels break it" in " ".join(sys.modules[law.check.__module__].__doc__.split())
