"""Errors in ulp of the output's format: the worst one and its class, against values worked out by hand.

A class too high or too low, another format's ulp, or an element that should have been left out: each fails one case here (tried by dropping
the halves' correction, the clamp at the smallest exponent, and the mask).
"""

import pytest
import torch
from planted import CPU, inf, kernel, nan, recipe, right, trial

from stabcheck.cases import Case
from stabcheck.floats import FORMATS, FP16, FP32
from stabcheck.verdicts import ULPS, Comparison, Summary, summarise

WIDE = 1e-30  # a bound so small that no element is ill-conditioned


def compared(got, expected, dtype=torch.float32, bound=WIDE, free=None, reference=True):
    free = None if free is None else torch.tensor(free)
    bounds = (
        torch.full((len(expected),), bound, dtype=torch.float64) if isinstance(bound, float) else torch.tensor(bound, dtype=torch.float64)
    )
    values = torch.tensor(got, dtype=torch.float64).to(dtype), torch.tensor(expected, dtype=torch.float64)
    (summary,) = summarise([Comparison(*values, bounds, free, reference=reference)])
    return summary.ulp, {k: n for k, n in zip(ULPS, summary.ulps, strict=True) if n}


# ---- one element: the ulp at 1 is 2^-23, 2^-7 or 2^-10


@pytest.mark.parametrize(
    ("dtype", "at_one"), [(torch.float32, 2.0**-23), (torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)], ids=["fp32", "bf16", "fp16"]
)
@pytest.mark.parametrize(
    ("got", "expected", "ulp", "klass"),
    [  # in ulps at 1, away from 1
        (0, 0, 0.0, -3),
        (0, 2.0**-20, 2.0**-20, -3),
        (0, 0.125, 0.125, -3),
        (0, 0.126, 0.126, -2),
        (0, 0.25, 0.25, -2),
        (0, 0.5, 0.5, -1),
        (0, 0.51, 0.51, 0),
        (1, 0, 1.0, 0),
        (2, 0, 2.0, 1),
        (3, 0, 3.0, 2),
        (4, 0, 4.0, 2),
        (5, 0, 5.0, 3),
        (100, 0, 100.0, 7),
    ],
)
def test_an_error_is_told_in_ulp_of_the_output_and_counted_in_its_class(dtype, at_one, got, expected, ulp, klass):
    worst, classes = compared([1 + got * at_one], [1 + expected * at_one], dtype)
    assert classes == {klass: 1}
    assert worst == pytest.approx(ulp, rel=1e-6)


def test_the_ulp_is_that_of_the_expected_value_not_of_the_result():
    below, above = FP32.neighbour(1.0, -1), FP32.neighbour(1.0)
    assert compared([below], [1.0]) == (0.5, {-1: 1})  # below 1 the values lie twice as close
    assert compared([above], [1.0]) == (1.0, {0: 1})
    assert compared([1.0], [below]) == (1.0, {0: 1})
    assert compared([-above], [-1.0]) == (1.0, {0: 1})


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_subnormal_results_lie_one_smallest_value_apart(fmt):
    """Their ulp does not shrink with them; the bound leaves them well-conditioned."""
    sub = fmt.subnormal
    assert compared([8 * sub], [8 * sub], fmt.torch, 0.5 * sub) == (0.0, {-3: 1})
    assert compared([9 * sub], [8 * sub], fmt.torch, 0.5 * sub) == (1.0, {0: 1})
    assert compared([8 * sub], [8.5 * sub], fmt.torch, 0.5 * sub) == (0.5, {-1: 1})
    assert compared([fmt.tiny], [fmt.tiny + sub], fmt.torch, 0.5 * sub) == (1.0, {0: 1})


def test_a_zero_that_should_be_one_is_no_error():
    assert compared([0.0, -0.0], [0.0, 0.0], bound=0.0) == (0.0, {-3: 2})


def test_what_is_there_where_nothing_should_be_is_counted_in_the_smallest_values():
    # once: frexp(0) has exponent 0, so that the ulp at 0 is taken for that just below 1
    assert compared([2.0**-149], [0.0], bound=0.0) == (1.0, {0: 1})
    assert compared([2.0**-24], [0.0], torch.float16, 0.0) == (1.0, {0: 1})


# ---- what is left out, and what is beyond the classes


@pytest.mark.parametrize(("got", "expected"), [(nan, nan), (inf, inf), (-inf, -inf), (nan, 1.0), (inf, 1.0), (1.0, inf), (1.0, nan)])
def test_nan_and_infinities_have_no_ulp(got, expected):
    assert compared([got, 1.0], [expected, 1.0]) == (0.0, {-3: 1})


def test_free_and_ill_conditioned_elements_have_none_either():
    far = 1 + 2.0**-13
    assert compared([far, 1.0], [1.0, 1.0], free=[True, False]) == (0.0, {-3: 1})
    assert compared([far, 1.0], [1.0, 1.0], bound=[1.5, 1e-3]) == (0.0, {-3: 1})
    assert compared([far], [1.0], bound=[1.0]) == (1024.0, {10: 1})  # a bound as large as the value is the last that counts
    assert compared([far], [1.0], free=[True]) == (0.0, {})


def test_the_last_class_takes_all_that_is_larger():
    assert compared([2.0], [1.0]) == (2.0**23, {12: 1})
    assert compared([3e38], [1e-38], bound=0.0) == (pytest.approx(3e38 / 2.0**-149, rel=1e-6), {12: 1})
    assert compared([1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23], [1.0, 1.0]) == (4097.0, {12: 2})


def test_only_comparisons_with_the_reference_have_any():
    assert compared([1.5], [1.0], reference=False) == (0.0, {})


# ---- sums, and a kernel


def test_the_worst_is_kept_and_the_classes_are_added_over_examples():
    one = Summary(compared=2, ulp=1.5, ulps=(1, *[0] * (len(ULPS) - 1)))
    two = Summary(compared=3, ulp=0.5, ulps=(*[2] * len(ULPS),))
    assert (one + two).ulp == (two + one).ulp == 1.5
    assert (one + two).ulps == (3, *[2] * (len(ULPS) - 1))


def test_a_kernels_tally_tells_its_ulps_by_class_and_its_use_of_the_bound_by_size():
    """[0, -1, -2 …]: rounded once from fp64 to fp16, so at most half an ulp; another law than accuracy has none."""
    batch = recipe([0.0, -1.0, -2.0], [0.0, 0.0, 0.0], dtype="fp16")
    examined = trial(right, dtype="fp16")
    examined(batch)
    tally = examined.tally.data()
    assert sum(tally["ulps"].values()) == tally["total"]["compared"] == 6
    assert 0.25 < tally["total"]["ulp"] <= 0.5 and max(tally["ulps"]) == -1
    assert tally["by_vocab"] == {1: tally["total"]["utilisation"]} and list(tally["by_magnitude"]) == [0]
    (exact,) = Case(kernel(right), CPU, batch).expected.values()
    worst = max(abs(FP16.round(p) - p) / FP16.ulp(p) for p in exact.value.flatten().tolist())
    assert tally["total"]["ulp"] == pytest.approx(worst, rel=1e-3)  # kept to four digits
    structural = trial(right, "monotone", "fp16")
    structural(batch)
    assert structural.tally.data()["ulps"] == {}


def test_a_refused_example_says_nothing_of_sizes():
    from stabcheck import UnsupportedInput

    def refuses(logits, temperature):
        raise UnsupportedInput("no")

    examined = trial(refuses)
    examined(recipe([0.0, -1.0]))
    assert (examined.tally.unsupported, examined.tally.data()["by_vocab"], examined.tally.data()["by_magnitude"]) == (1, {}, {})
