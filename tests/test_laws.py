"""Every law holds for a right kernel and catches the mistake it is there for."""

import planted
import pytest
import torch
from planted import CPU, LAWS, finding_of, kernel, nan, recipe, right, right_in_place, trial

from stabcheck.laws import Case, KernelFault
from stabcheck.recipe import Layout

DECLARED = {"in_place": right_in_place, "routes": {"only": right}}
CAUGHT = {
    "accuracy": planted.one_percent_flatter,
    "determinism": planted.shaky,
    "finiteness": planted.overflows,
    "isolation": planted.shares_the_maximum,
    "layout": planted.ignores_strides,
    "masking": planted.clamps_from_below,
    "memory": planted.scribbles_on_its_input,
    "monotone": planted.reversed_rows,
    "normalisation": planted.five_percent_too_much,
    "permutation": planted.weighs_the_first_column_twice,
    "shift_invariance": planted.overflows,
}
HERE = [name for name, law in LAWS.items() if not law.gpu]


def test_every_law_that_runs_here_has_a_kernel_that_breaks_it():
    assert set(HERE) == {*CAUGHT, "in_place", "routes"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", HERE)
def test_a_right_kernel_keeps_the_law(name, dtype):
    examined = trial(right, name, dtype, **DECLARED)
    assert finding_of(examined, examples=40) is None
    assert examined.tally.total.compared


@pytest.mark.parametrize("name", CAUGHT)
def test_the_law_catches_its_mistake(name):
    finding = finding_of(trial(CAUGHT[name], name))
    assert finding is not None
    assert finding.property_name == name


def test_in_place_catches_a_form_that_works_twice_on_its_buffer():
    assert finding_of(trial(right, "in_place", in_place=planted.softmaxes_twice_in_place))


def test_in_place_catches_a_form_that_returns_another_tensor():
    assert "another tensor" in finding_of(trial(right, "in_place", in_place=right)).detail


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


# ---- where a law applies


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
    assert "Kernels break it" in sys.modules[law.check.__module__].__doc__


# ---- what a kernel may return


def run(function, **declared):
    return Case(kernel(function, **declared), CPU, recipe([0.0, 1.0])).run()


@pytest.mark.parametrize(
    ("function", "kind", "told"),
    [
        (lambda x, t: None, "wrong", "returned NoneType, not a tensor"),
        (lambda x, t: x[:, :1], "wrong", "returned shape [1, 1] for logits of shape [1, 2]"),
        (lambda x, t: x.double(), "wrong", "returned torch.float64, declared torch.float32"),
        (lambda x, t: x.to("meta"), "wrong", "returned a tensor on meta"),
        (lambda x: x, "crash", "TypeError"),
        (lambda x, t: 1 / 0, "crash", "ZeroDivisionError: division by zero"),
    ],
    ids=["nothing", "shape", "dtype", "device", "signature", "raises"],
)
def test_what_is_no_output_is_a_fault_that_says_why(function, kind, told):
    with pytest.raises(KernelFault) as fault:
        run(function)
    assert fault.value.kind == kind
    assert told in fault.value.detail
    assert "\n" not in fault.value.detail


def test_an_fp32_output_of_narrow_logits_is_right_if_declared():
    case = Case(kernel(lambda x, t: right(x.float(), t), output="fp32"), CPU, recipe([0.0, 1.0], dtype="bf16"))
    assert case.run().dtype == torch.float32


def test_the_reference_is_taken_before_the_kernel_can_touch_its_input():
    case = Case(kernel(lambda x, t: x.fill_(nan)), CPU, recipe([0.0, 0.0]))
    case.run()
    assert case.expected.value.tolist() == [[0.5, 0.5]]


def test_a_case_has_the_layout_of_its_recipe():
    case = Case(kernel(right), CPU, recipe([0.0, 0.0], layout=Layout(3)))
    assert case.batch.logits.stride() == (5, 1)
