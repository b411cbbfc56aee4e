"""Device code that filters any row exactly, in passes over it by one program: no bound on k, on the nucleus or on ties.

Both thresholds are the smallest key t with tally(keys > t) < target: for top-k the tally counts and the target is k, for top-p it adds
exp(z) and the target is p · base. Keys are the floats' order-preserving integers, without the bits that the logits' dtype leaves empty;
each pass tallies three pivots, quarters of the interval's values or keys, and every fifth narrows it to keys that occur. Sums run in one
order whatever the pivot, so they are monotone in it; and each pass of pivots shrinks the interval, whatever the data, so it ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.filtering_candidates_device import EMPTY, between, key_of, log2_of, scaling, value_of
from stabcheck.kernels.online_device import columns_of_tile, load_logits, max_of_lanes, sum_of_lanes

_MANY = tl.constexpr(2.0**31 - 128)  # the largest float below 2^31


@triton.jit
def _tally(
    x, vocab, x_col, a, b, c, shift, scale, rate,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The number of keys above a, b and c, or their Σ exp(z). Padding has the key of −inf, which no pivot is below."""
    tile = columns_of_tile(LANES, STEPS, WIDTH)
    above_a = tl.zeros([LANES], tl.float32 if MASS else tl.int32)
    above_b = above_a
    above_c = above_a
    for start in range(0, vocab, LANES * STEPS * WIDTH):
        logits = load_logits(x, start + tile, x_col, vocab)
        keys = key_of(logits) >> SHIFT
        if MASS:
            weights = tl.exp2(log2_of(logits, shift, scale, rate))
            above_a += sum_of_lanes(tl.where(keys > a, weights, 0.0))
            above_b += sum_of_lanes(tl.where(keys > b, weights, 0.0))
            above_c += sum_of_lanes(tl.where(keys > c, weights, 0.0))
        else:
            above_a += sum_of_lanes((keys > a).to(tl.int32))
            above_b += sum_of_lanes((keys > b).to(tl.int32))
            above_c += sum_of_lanes((keys > c).to(tl.int32))
    return tl.sum(above_a, 0), tl.sum(above_b, 0), tl.sum(above_c, 0)


@triton.jit
def _ends(
    x, vocab, x_col, lo, hi, LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """The first and the last key of the row within [lo, hi]."""
    tile = columns_of_tile(LANES, STEPS, WIDTH)
    first = tl.full([LANES], 2147483647, tl.int32)
    last = tl.full([LANES], -2147483648, tl.int32)
    for start in range(0, vocab, LANES * STEPS * WIDTH):
        keys = key_of(load_logits(x, start + tile, x_col, vocab)) >> SHIFT
        within = (keys >= lo) & (keys <= hi) & (start + tile < vocab)
        first = tl.minimum(first, tl.min(tl.min(tl.where(within, keys, 2147483647), 2), 1))
        last = tl.maximum(last, max_of_lanes(tl.where(within, keys, -2147483648)))
    return tl.min(first, 0), tl.max(last, 0)


@triton.jit
def _smallest(
    x, vocab, x_col, lo, hi, target, shift, scale, rate,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The smallest key of the row in [lo, hi] with tally(keys > it) < target, the last if none."""
    lo = lo.to(tl.int64)
    hi = hi.to(tl.int64)
    passes = tl.full([], 0, tl.int32)
    while lo < hi:
        if passes % 5 == 0:
            first, last = _ends(x, vocab, x_col, lo.to(tl.int32), hi.to(tl.int32), LANES, STEPS, WIDTH, SHIFT)
            lo = first.to(tl.int64)
            hi = tl.where(first <= last, last.to(tl.int64), hi)
        else:
            by_value = (passes % 5 < 4) & (SHIFT == 0)
            a, b, c = between(lo, hi, 1, by_value), between(lo, hi, 2, by_value), between(lo, hi, 3, by_value)
            above_a, above_b, above_c = _tally(
                x, vocab, x_col, a.to(tl.int32), b.to(tl.int32), c.to(tl.int32), shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, MASS
            )
            lo = tl.where(above_a < target, lo, tl.where(above_b < target, a + 1, tl.where(above_c < target, b + 1, c + 1)))
            hi = tl.where(above_a < target, a, tl.where(above_b < target, b, tl.where(above_c < target, c, hi)))
        passes += 1
    return hi.to(tl.int32)


@triton.jit
def _value_of(key, SHIFT: tl.constexpr):
    return value_of(tl.where(key < 0, ((key + 1) << SHIFT) - 1, key << SHIFT))


@triton.jit
def _id_of(x, vocab, x_col, tau, ties, BLOCK: tl.constexpr):
    """The id of the element equal to tau that is number `ties` of them; the last id if there are fewer."""
    start = tl.zeros([], tl.int32)
    seen = tl.zeros([], tl.int32)
    cut = vocab - 1
    while (start < vocab) & (seen < ties):
        cols = start + tl.arange(0, BLOCK)
        tied = ((load_logits(x, cols, x_col, vocab) == tau) & (cols < vocab)).to(tl.int32)
        count = tl.sum(tied, 0)
        if seen + count >= ties:
            order = seen + tl.cumsum(tied, 0)
            cut = tl.min(tl.where((tied != 0) & (order == ties), cols, vocab - 1), 0)
        seen += count
        start += BLOCK
    return cut


@triton.jit
def threshold(
    x, vocab, x_col, m, t, k, p, LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """(tau, cut): top-k and top-p keep x > tau, and x = tau up to the id cut."""
    shift, scale, rate = scaling(m, t)
    lowest = tl.full([], EMPTY, tl.int32) >> SHIFT
    top = tl.maximum(key_of(m) >> SHIFT, lowest)
    tau = lowest
    ties = vocab + 0
    if k < vocab:
        tau = _smallest(x, vocab, x_col, lowest, top, k, shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, False)
        ties = k - _tally(x, vocab, x_col, tau, tau, tau, shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, False)[0]
    if p < 1:
        mass = _tally(x, vocab, x_col, tau, tau, tau, shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, True)[0]
        limit = p * (mass + ties.to(tl.float32) * tl.exp2(log2_of(_value_of(tau, SHIFT), shift, scale, rate)))
        nucleus = _smallest(x, vocab, x_col, tau, top, limit, shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, True)
        mass = _tally(x, vocab, x_col, nucleus, nucleus, nucleus, shift, scale, rate, LANES, STEPS, WIDTH, SHIFT, True)[0]
        e = tl.exp2(log2_of(_value_of(nucleus, SHIFT), shift, scale, rate))
        fill = tl.where(limit - mass > e, tl.ceil((limit - mass) / tl.maximum(e, 1e-38)), 1.0)  # tie r is kept iff mass + r·e < limit
        fill = tl.minimum(fill, _MANY).to(tl.int32)
        ties = tl.where(nucleus == tau, tl.minimum(fill, ties), fill)
        tau = nucleus
    value = _value_of(tau, SHIFT)
    cut = vocab - 1
    if (k < vocab) | (p < 1):
        cut = _id_of(x, vocab, x_col, value, ties, LANES * STEPS * WIDTH)
    return value, cut


@triton.jit
def kept(x, ids, z, tau, cut, m, bound):
    """What all filters keep, elementwise; min-p keeps the maximum in any case."""
    return ((x > tau) | ((x == tau) & (ids <= cut))) & ((z >= bound) | (x == m))


@triton.jit
def mass_kept(
    x, vocab, x_col, tau, cut, m, t, bound, LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """D = Σ exp(z) over what is kept."""
    tile = columns_of_tile(LANES, STEPS, WIDTH)
    shift, scale, rate = scaling(m, t)
    d = tl.zeros([LANES], tl.float32)
    for start in range(0, vocab, LANES * STEPS * WIDTH):
        logits = load_logits(x, start + tile, x_col, vocab)
        z = log2_of(logits, shift, scale, rate)
        d += sum_of_lanes(tl.where(kept(logits, start + tile, z, tau, cut, m, bound), tl.exp2(z), 0.0))
    return tl.sum(d, 0)
