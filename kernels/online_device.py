"""What the device code of row reductions shares: addresses, and d = Σ exp(x_j − m), m = max x_j, kept online over the tiles of a row.

A tile is [LANES, STEPS, WIDTH] logits: each of LANES threads reads STEPS vectors of WIDTH neighbours, and keeps a maximum m and a sum d of
its own, [LANES], which meet once, at the end of the row:

    m' = max(m, x_1 … x_n)        d' = d · exp(m − m') + Σ exp(x_i − m')

What is subtracted is the maximum made finite: −inf − −inf and inf − inf would be NaN. So a lane of −inf has d = 0, one with a +inf has
d = inf, and a NaN makes d NaN (Triton's maximum passes over it).

`ALIGNED` promises that vocab and row strides are multiples of 16, and the addresses of rows of 16 bytes: where columns have stride 1,
loads and stores are then 16 bytes wide. Triton itself is told to look at no address, and of strides whether they are 1: else it would
compile a kernel once more for each combination, several hundred in all.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_of(pointer, row, stride, ALIGNED: tl.constexpr):
    """What is said of an address is lost once Triton adds a second scalar step to it: this must be the last."""
    if ALIGNED:
        stride = stride // 16 * 16
    start = pointer + row.to(tl.int64) * stride
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@triton.jit
def columns_of(row, cols, stride):
    return row + cols.to(tl.int64) * stride


@triton.jit
def columns_of_tile(LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr):
    lane = tl.arange(0, LANES)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    return lane + tl.arange(0, STEPS)[None, :, None] * (LANES * WIDTH)  # [LANES, STEPS, WIDTH]


@triton.jit
def load_logits(row, cols, stride, vocab):
    return tl.load(columns_of(row, cols, stride), mask=cols < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def finite(m):
    """The maximum as it is subtracted."""
    return tl.minimum(tl.maximum(m, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit
def exp(z):
    """exp(z) as 2^(z · log2 e), the hardware's; 0 below 2^-126."""
    return tl.exp2(z * 1.4426950408889634)  # literals: Triton compares every global that a kernel uses at each launch


@triton.jit
def max_of_lanes(x):
    return tl.max(tl.max(x, 2), 1)


@triton.jit
def span_of(program, vocab, splits, SPAN: tl.constexpr):
    """(row, first column, last column + 1) of a program: one of `splits` spans of a row, or all of its row if SPAN is 0."""
    row, first, last = program, 0, vocab
    if SPAN:
        row, first = program // splits, program % splits * SPAN
        last = first + tl.minimum(SPAN, vocab - first)
    return row, first, last


@triton.jit
def sum_of_lanes(x):
    return tl.sum(tl.sum(x, 2), 1)


@triton.jit
def defined(d):
    """d, but NaN for a row without a distribution: d = 0 says that every logit is −inf, and d = inf that one is +inf."""
    return tl.where(d > 0, tl.where(d < float("inf"), d, float("nan")), float("nan"))


@triton.jit
def log2_scale(m, t):
    """(scale, rate) with log2(e) · (x − m)/t = (x · scale − m · scale) · rate for x ≤ m and t > 0.

    Halves cannot overflow when subtracted. log2(e)/t overflows for a subnormal t, so below 2^-64 the difference is scaled up by a power
    of two first. Where the maximum itself is too large for that, any two logits differ by 2^36 or more, and every rate gives exp = 0.
    """
    log2e: tl.constexpr = 1.4426950408889634
    largest: tl.constexpr = 3.4028234663852886e38
    near = tl.abs(m) < tl.where(t < 2.0**-64, 2.0**60, 0.0)
    scale = tl.where(near, 2.0**63, 0.5)
    rate = tl.where(near, tl.div_rn(log2e, t * 2.0**63), tl.minimum(tl.div_rn(2 * log2e, t), largest))
    return scale, rate
