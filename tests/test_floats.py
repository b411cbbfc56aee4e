"""The three formats agree with torch, value by value."""

import math
import random
import struct

import pytest
import torch
from planted import inf, nan

from stabcheck.errors import UsageError
from stabcheck.floats import BF16, FORMATS, FP16, FP32, by_name, from_hex, name_of, to_hex

ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def edges(fmt):
    """Both sides of every place where the format changes its ways."""
    info = torch.finfo(fmt.torch)
    powers = [2.0**k for k in (-149, -133, -126, -24, -14, -1, 0, 1, 7, 10, 15)]
    points = [0.0, info.tiny, info.smallest_normal, info.max, info.eps, 1.0, 3.0, *powers]
    return [s * v for v in points if v <= info.max for s in (1.0, -1.0)]


def values(fmt, n=2000):
    """Random values of the format: bit patterns, so that every exponent comes up."""
    bits = torch.randint(-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1), (n,), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int16 if fmt.bits == 16 else torch.int32).view(fmt.torch).double()
    return [*x[x.isfinite()].tolist(), *(v for v in edges(fmt) if torch.tensor(v, dtype=fmt.torch).item() == v)]


def reals(fmt, n=2000):
    """Random numbers between the format's values, over its whole range and a little below."""
    draw = random.Random(1)
    low, high = fmt.emin - fmt.precision - 1, fmt.emax
    return [draw.choice((1, -1)) * draw.uniform(1, 2) * 2.0 ** draw.randint(low, high - 1) for _ in range(n)] + edges(fmt)


@ALL
def test_constants_are_those_of_torch(fmt):
    info = torch.finfo(fmt.torch)
    assert (fmt.max, fmt.tiny, fmt.bits) == (info.max, info.tiny, info.bits)
    assert fmt.u == info.eps / 2


@ALL
def test_the_smallest_subnormal_is_the_first_bit_pattern(fmt):
    integer = torch.int16 if fmt.bits == 16 else torch.int32
    assert fmt.subnormal == torch.ones(1, dtype=integer).view(fmt.torch).item()


@ALL
def test_rounding_is_that_of_a_cast(fmt):
    for value in reals(fmt):
        cast = torch.tensor(value, dtype=torch.float64).to(fmt.torch).item()
        assert fmt.round(value) == cast, value.hex()
        assert math.copysign(1, fmt.round(value)) == math.copysign(1, value)


@ALL
def test_rounding_a_tie_goes_to_even(fmt):
    one_and_a_half_ulp = 1 + 3 * fmt.u
    assert fmt.round(1 + fmt.u) == 1.0
    assert fmt.round(one_and_a_half_ulp) == 1 + 4 * fmt.u


@ALL
def test_rounding_never_makes_an_infinity(fmt):
    assert fmt.round(1e300) == fmt.max
    assert fmt.round(-1e300) == -fmt.max


@ALL
@pytest.mark.parametrize("value", [inf, -inf, nan], ids=str)
def test_what_is_not_finite_stays_as_it_is(fmt, value):
    assert str(fmt.round(value)) == str(value)


@ALL
def test_neighbours_are_those_of_nextafter(fmt):
    for value in values(fmt):
        x = torch.tensor(value, dtype=fmt.torch)
        above = torch.nextafter(x, torch.tensor(inf, dtype=fmt.torch)).item()
        below = torch.nextafter(x, torch.tensor(-inf, dtype=fmt.torch)).item()
        assert fmt.neighbour(value) == min(above, fmt.max), value.hex()
        assert fmt.neighbour(value, -1) == max(below, -fmt.max), value.hex()


@ALL
def test_steps_add_up(fmt):
    for value in values(fmt, 200):
        assert fmt.neighbour(fmt.neighbour(value, 3), -3) == value or abs(value) >= fmt.neighbour(fmt.max, -3)
        assert fmt.neighbour(value, 2) == fmt.neighbour(fmt.neighbour(value))


@ALL
def test_an_ulp_is_the_distance_to_the_next_larger_magnitude(fmt):
    for value in values(fmt):
        if abs(value) < fmt.max:
            assert fmt.ulp(value) == fmt.neighbour(abs(value)) - abs(value), value.hex()


@ALL
def test_an_ulp_of_nothing_finite_is_nan(fmt):
    assert math.isnan(fmt.ulp(inf)) and math.isnan(fmt.ulp(nan))


@ALL
def test_text_reads_back_as_the_value(fmt):
    for value in values(fmt, 500):
        assert fmt.round(float(fmt.text(value))) == value


@pytest.mark.parametrize(
    ("fmt", "value", "text"),
    [
        (FP32, 0.0, "0"),
        (FP32, 1.0, "1"),
        (FP32, FP32.round(0.1), "0.1"),
        (FP32, -110.0, "-110"),
        (FP32, 2.0**-149, "1e-45"),
        (BF16, FORMATS["bf16"].round(88.7), "88.5"),
        (FP16, 65504.0, "65504"),
        (FP32, inf, "inf"),
        (FP32, -inf, "-inf"),
        (FP32, nan, "nan"),
        (FP32, 1 + 2.0**-23, "1.0000001"),
    ],
)
def test_text_is_what_a_person_would_write(fmt, value, text):
    assert len(fmt.text(value)) <= len(text)
    assert str(fmt.round(float(fmt.text(value)))) == str(value)


def test_minus_zero_reads_back_as_minus_zero():
    assert math.copysign(1, float(FP32.text(-0.0))) == -1


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, 2.0**-149, 3.4e38, -1e-300, inf, -inf, nan], ids=str)
def test_hex_is_exact(value):
    assert struct.pack("<d", from_hex(to_hex(value))) == struct.pack("<d", value)


@pytest.mark.parametrize("text", ["", "0x", "one", "0x1p", "1.5.2"])
def test_hex_of_something_else_is_an_error(text):
    with pytest.raises(ValueError):
        from_hex(text)


@ALL
def test_names_go_both_ways(fmt):
    assert by_name(fmt.name) is fmt
    assert name_of(fmt.torch) == fmt.name


@pytest.mark.parametrize(
    ("wrong", "told"), [(lambda: by_name("fp8"), "unknown dtype 'fp8'"), (lambda: name_of(torch.float64), "torch.float64")]
)
def test_an_unknown_format_is_told_with_those_there_are(wrong, told):
    with pytest.raises(UsageError, match=f"{told}.*fp32, bf16, fp16"):
        wrong()
