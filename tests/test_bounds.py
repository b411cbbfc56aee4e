"""The building blocks of the bounds give the figures that a reader of their docstrings works out by hand."""

import math

import pytest
import torch

from stabcheck.bounds import Contract, exponent_error, rounded, scaled_overflow, summation_error
from stabcheck.devices import GPU, INTERPRETER, Profile, U
from stabcheck.floats import BF16, FP16, FP32

EXACT = Profile("no error of its own", exp=0.0, divide=0.0, log2e=0.0)


def contract(output=FP32, profile=GPU, **more):
    return Contract(FP32, output, profile, **more)


def exponent(x, t, **more):
    """κ of a row at one temperature."""
    x, t = torch.tensor([x], dtype=torch.float64), torch.tensor([[t]], dtype=torch.float64)
    m = x.amax(-1, keepdim=True)
    return exponent_error(x, m, (x - m) / t, contract(**more), t=t, smallest_t=t.item())[0].tolist()


def about(*values):
    """To one part in a hundred: a constant of 3·2^-34 stands for flushing where no temperature is tiny."""
    return pytest.approx(list(values), rel=0.01)


@pytest.mark.parametrize(
    ("output", "profile", "u_out"),
    [(FP32, GPU, 0.0), (FP16, GPU, 2.0**-11), (BF16, GPU, 2.0**-8), (BF16, INTERPRETER, 2.0**-7), (FP16, INTERPRETER, 2.0**-11)],
    ids=lambda value: getattr(value, "name", None),
)
def test_rounding_to_the_output_costs_half_an_ulp_or_a_whole_one_where_bf16_is_truncated(output, profile, u_out):
    assert contract(output, profile).u_out == u_out


@pytest.mark.parametrize(
    ("output", "smallest"), [(FP32, 2.0**-149), (BF16, 2.0**-133), (FP16, 2.0**-24)], ids=lambda v: getattr(v, "name", None)
)
def test_the_floor_is_one_subnormal_step_and_what_hardware_flushes(output, smallest):
    assert contract(output).floor == smallest + 2.0**-126


def test_the_exponent_errs_by_its_size_and_by_one_exponential():
    assert exponent([0.0, -10.0], 1.0) == about(4 * U, (2 + 4 + 2) * U * 10 + 4 * U)


def test_the_exponent_of_the_maximum_errs_by_one_exponential_only():
    assert exponent([1e8], 1e-3) == about(4 * U)


def test_a_common_offset_costs_nothing_when_the_maximum_is_subtracted_first():
    assert exponent([1e8, 1e8 - 16], 1.0) == exponent([0.0, -16.0], 1.0)


def test_a_common_offset_costs_in_proportion_when_scaling_comes_first():
    plain = exponent([1e6, 1e6 - 16], 0.5)
    scaled = exponent([1e6, 1e6 - 16], 0.5, error_model="scale_first")
    assert [s - p for s, p in zip(scaled, plain, strict=True)] == about((1 + 4 + 2) * U * 2e6 / 0.5, (1 + 4 + 2) * U * (2e6 - 16) / 0.5)


def overflows(x, t=None, profile=EXACT):
    column = None if t is None else torch.tensor([[t]], dtype=torch.float64)
    return scaled_overflow(torch.tensor([x], dtype=torch.float64), contract(profile=profile), column).item()


@pytest.mark.parametrize("t", [None, 1.0, 2.0**-60, 2.0**-149, 1.25])
def test_scaled_logits_overflow_where_their_product_with_log2_e_over_t_passes_the_largest_number(t):
    limit = FP32.max / math.log2(math.e) * (t or 1.0)
    inside, beyond = limit * (1 - 2 * U), limit * (1 + U)  # a division and a product, no error of theirs: u
    assert [overflows([0.0, sign * x], t) for sign in (1, -1) for x in (inside, beyond)] == [False, True] * 2


def test_scaled_logits_may_overflow_by_the_roundings_of_their_product():
    x = [FP32.max / math.log2(math.e) * (1 - 4 * U)]
    assert (overflows(x, 1.0), overflows(x, 1.0, GPU)) == (False, True)


def test_a_masked_column_does_not_overflow():
    assert not overflows([-math.inf, 1.0], 1.0)


@pytest.mark.parametrize(
    ("x", "lost"), [([0.0, -(2.0**-127)], 2.0**-126), ([2.0**-126, 2.0**-126 * 1.5], 2.0**-127)], ids=["logit", "difference"]
)
def test_what_hardware_may_flush_costs_its_magnitude_over_t(x, lost):
    assert max(exponent(x, 2.0**-124, profile=EXACT)) >= lost / 2.0**-124


def test_next_to_nothing_is_granted_for_flushing_where_nothing_is_subnormal():
    assert exponent([0.0, -1.0], 1.0, profile=EXACT)[1] == pytest.approx(2 * U, rel=0.01)


@pytest.mark.parametrize(
    ("columns", "height", "rescalings"),
    [(1, 0, 0), (2, 1, 1), (3, 2, 1), (128, 7, 1), (1024, 7 + 7, 1), (1025, 7 + 7 + 1, 2), (4096, 7 + 7 + 3, 4)],
)
def test_on_a_gpu_a_sum_errs_by_its_lanes_their_tree_and_a_rescaling_for_each_tile(columns, height, rescalings):
    assert summation_error(columns, contract()) == (height + rescalings * (4 + 1)) * U


def test_a_smaller_declared_tile_means_more_tiles():
    assert summation_error(1024, contract(tile=128)) == (7 + 7 + 8 * 5) * U


def test_on_a_cpu_a_vector_unit_walks_the_whole_row():
    assert summation_error(8000, contract(profile=INTERPRETER)) >= (1000 - 1 + 3) * U


def test_the_floor_is_there_where_the_value_is_zero():
    assert rounded(torch.zeros(1).double(), torch.zeros(1).double(), contract()).item() == contract().floor


def test_rounding_to_the_output_adds_to_the_relative_error():
    bound = rounded(torch.tensor([-3.0]).double(), torch.tensor([0.5]).double(), contract(BF16))
    assert bound.item() == 3 * (0.5 * (1 + 2.0**-8) + 2.0**-8) + contract(BF16).floor
