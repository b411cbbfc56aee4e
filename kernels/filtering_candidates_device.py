"""Device code that filters a row by looking at few of its tokens: at most 128 candidates, in one program.

`candidates`   all elements above a floor, where one leaves at most 128 of them. In long rows the maxima of spans of 256 neighbours, then of
               groups of 32, raise it first: at most 128 of each pass, and no others are read
`keep`         ranks candidates and sums the mass before each by comparing all pairs, [128, 128]; filters then judge each by itself

Whether candidates suffice is decided, never assumed: see `keep`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import columns_of, finite

EMPTY = tl.constexpr(-2139095041)  # the key of −inf: what is masked is no candidate


@triton.jit
def key_of(x):
    """Integers in the order of the floats; −0 = +0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def scaling(m, t):
    """(shift, scale, rate) of `log2_of`: `log2_scale` with one division."""
    near = (tl.abs(m) < 2.0**60) & (t < 2.0**-64)
    scale = tl.where(near, 2.0**63, 0.5)
    rate = tl.div_rn(tl.where(near, 1.4426950408889634, 2.8853900817779268), tl.where(near, t * 2.0**63, t))
    return finite(m) * scale, scale, tl.minimum(rate, 3.4028234663852886e38)


@triton.jit
def log2_of(x, shift, scale, rate):
    """log2(e) · z = log2(e) · (x − m)/t, without overflow."""
    return (x * scale - shift) * rate


@triton.jit
def total_of_few(values, m, t):
    """Σ exp(z)."""
    shift, scale, rate = scaling(m, t)
    return tl.sum(tl.exp2(log2_of(values, shift, scale, rate)), 0)


@triton.jit
def between(lo, hi, quarters, by_value):
    """A key in [lo, hi) some quarters of the way from lo to hi: of their values, which suits numbers, or of the keys, which suits any."""
    low, high = value_of(lo.to(tl.int32)), value_of(hi.to(tl.int32))
    share = quarters * 0.25
    by_values = key_of(low * (1.0 - share) + high * share).to(tl.int64)
    by_keys = lo + (((hi - lo) * quarters) >> 2)
    return tl.minimum(tl.maximum(tl.where(by_value, by_values, by_keys), lo), hi - 1)


@triton.jit
def _above(keys, floor):
    return tl.sum((keys > floor.to(tl.int32)).to(tl.int32), 0)


@triton.jit
def _floor(keys, lo, want):
    """(floor ≥ lo, 1) with at most 128 keys above it, and at least `want` unless lo does; (some floor, 0) if ties leave none."""
    floor = lo.to(tl.int64)
    few = (_above(keys, floor) <= 128).to(tl.int32)
    hi = tl.max(keys, 0).to(tl.int64)  # nothing is above
    lo = tl.min(tl.where(keys > lo, keys, 2147483647), 0).to(tl.int64) - 1
    turn = tl.full([], 0, tl.int32)
    while (few == 0) & (hi - lo > 1):
        middle = tl.maximum(between(lo, hi, 2, turn % 2 == 0), lo + 1)
        above = _above(keys, middle)
        if above > 128:
            lo = middle
        else:
            hi = middle
            floor = middle
            few = (above >= want).to(tl.int32)
        turn += 1
    return floor.to(tl.int32), few


@triton.jit
def _narrowed(keys, numbers, floor, want, target):
    """The numbers of up to 128 keys above a floor that is raised for that, stored in order; (their count, floor, whether they are few)."""
    floor, few = _floor(keys, floor, want)
    chosen = (keys > floor).to(tl.int32)
    place = tl.cumsum(chosen, 0) - 1
    tl.store(target + place, numbers, mask=(chosen != 0) & (place < 128))
    tl.debug_barrier()
    return tl.minimum(tl.sum(chosen, 0), 128), floor, few


@triton.jit
def _parts(wholes, n, SIZE: tl.constexpr):
    """(numbers, known) [128 · SIZE] of the SIZE parts of each of n numbered wholes."""
    e = tl.arange(0, 128 * SIZE)
    known = e // SIZE < n
    return tl.load(wholes + e // SIZE, mask=known, other=0) * SIZE + e % SIZE, known


@triton.jit
def _keys(pointers, known):
    return tl.where(known, key_of(tl.load(pointers, mask=known, other=float("-inf")).to(tl.float32)), EMPTY)


@triton.jit
def candidates(x, x_col, vocab, groups, tiles, k, scratch, LEVEL: tl.constexpr, SPANS: tl.constexpr):
    """(ids [128], values [128], n, floor, few): the n elements above `floor` (a key), in the order of their ids; all of them if `few`.

    A row of up to 4096 (LEVEL 1) is read whole. Of others, the elements of at most 128 groups of 32, and of up to 128 spans of 256 those
    groups; at `groups` are the maxima of spans, 16 a tile, then of groups. scratch: 384 integers.
    """
    want = tl.where(k <= 128, k, 64)  # top-k needs k candidates, and top-p alone some
    floor = tl.full([], EMPTY, tl.int32)
    few = tl.full([], 1, tl.int32)
    cols = tl.arange(0, 4096)
    inside = cols < vocab
    if LEVEL == 2:
        group = tl.arange(0, 1024)
        known = group < tiles * 128
        if SPANS > 128:
            span = tl.arange(0, SPANS)
            n, floor, few = _narrowed(_keys(groups + span, span < tiles * 16), span, floor, want, scratch)
            group, known = _parts(scratch, n, 8)
        n, floor, fewer = _narrowed(_keys(groups + tiles * 16 + group, known), group, floor, want, scratch + 128)
        few = few & fewer
        cols, inside = _parts(scratch + 128, n, 32)
        inside = inside & (cols < vocab)
    n, floor, fewer = _narrowed(_keys(columns_of(x, cols, x_col), inside), cols, floor, want, scratch + 256)
    place = tl.arange(0, 128)
    ids = tl.load(scratch + 256 + place, mask=place < n, other=0)
    values = tl.load(columns_of(x, ids, x_col), mask=place < n, other=float("-inf")).to(tl.float32)
    return ids, values, n, floor, few & fewer


@triton.jit
def keep(values, n, m, t, k, p, bound, total, vocab, floor):
    """(e, among, chosen, enough) of the n candidates [128] above `floor`, in the order of their ids: e = exp z, what top-k and top-p keep,
    and what min-p leaves of that.

    rank_i = number of candidates before i, mass_i = Σ e_j over them, base = Σ e over ranks < k, or the row's total if top-k is off.
    `enough`: k candidates, or all but −inf, or else top-k is off and candidates hold the nucleus, or all beyond them is below min-p.
    """
    place = tl.arange(0, 128)
    inside = place < n
    shift, scale, rate = scaling(m, t)
    z = log2_of(values, shift, scale, rate)
    e = tl.where(inside, tl.exp2(z), 0.0)
    above = values[None, :] > values[:, None]
    before = (above | ((values[None, :] == values[:, None]) & (place[None, :] < place[:, None]))) & inside[None, :]  # [128, 128]
    rank = tl.sum(before.to(tl.int32), 1)
    mass = tl.sum(tl.where(before, e[None, :], 0.0), 1)
    base = tl.where(k < vocab, tl.sum(tl.where(rank < k, e, 0.0), 0), total)
    limit = tl.where(p < 1, p * base, float("inf"))
    among = inside & (rank < k) & ((mass < limit) | (rank == 0))
    chosen = among & ((z >= bound) | (values == m))
    nothing_beyond = log2_of(value_of(floor), shift, scale, rate) < bound
    nucleus = tl.sum(e, 0) >= limit
    enough = (floor == EMPTY) | (n >= k) | (nothing_beyond & (p >= 1)) | ((k >= vocab) & (nothing_beyond | nucleus))
    return e, among, chosen, enough.to(tl.int32)
