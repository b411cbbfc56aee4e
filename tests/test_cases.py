"""A case runs the kernel as its operation says, tells what is no output, and holds results against the reference."""

import pytest
import torch
from planted import CPU, kernel, nan, recipe, right

from stabcheck.cases import Case, KernelFault
from stabcheck.recipe import Layout

# ---- what a kernel may return


def test_a_view_of_the_input_is_told_from_the_buffer_of_an_earlier_call():
    case = Case(kernel(lambda x, t: x), CPU, recipe([0.0, 1.0]))
    case.run()
    with pytest.raises(KernelFault) as fault:
        case.run()
    assert (fault.value.kind, fault.value.detail) == ("memory", "returned a view of its input, which the caller may change")


def run(function, **declared):
    return Case(kernel(function, **declared), CPU, recipe([0.0, 1.0])).run()["probs"]


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
    assert case.run()["probs"].dtype == torch.float32


def test_the_reference_is_taken_before_the_kernel_can_touch_its_input():
    case = Case(kernel(lambda x, t: x.fill_(nan)), CPU, recipe([0.0, 0.0]))
    case.run()
    assert case.expected["probs"].value.tolist() == [[0.5, 0.5]]


def test_a_case_has_the_layout_of_its_recipe():
    case = Case(kernel(right), CPU, recipe([0.0, 0.0], layout=Layout(3)))
    assert case.batch.logits.stride() == (5, 1)
