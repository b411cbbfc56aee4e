"""Device code of races: argmin R_i, R_i = E_i · exp(−z_i), over a tile, over few candidates, and over what a row keeps, tile by tile.

A tile is four runs of 1024 tokens, which share one call of Philox per lane. Exact ties go to the lowest id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.filtering_candidates_device import log2_of, scaling
from stabcheck.kernels.filtering_general_device import kept
from stabcheck.kernels.noise_device import exponentials_of_ids, exponentials_of_runs, philox, uniform
from stabcheck.kernels.online_device import load_logits


@triton.jit
def _race(e, logits, scales):
    """R = E · exp((m − x)/t); inf for −inf."""
    return e * tl.exp2(-log2_of(logits, scales[0], scales[1], scales[2]))


@triton.jit
def _runs(x, x_col, tile, lanes, vocab):
    """The columns of lanes [BLOCK] in the first run of a tile, and the logits of all four runs."""
    cols = tile * 4096 + lanes
    a = load_logits(x, cols, x_col, vocab)
    b = load_logits(x, cols + 1024, x_col, vocab)
    c = load_logits(x, cols + 2048, x_col, vocab)
    return cols, a, b, c, load_logits(x, cols + 3072, x_col, vocab)


@triton.jit
def winner(x, x_col, tile, lanes, vocab, t, greedy, seed, position, role):
    """(m, R, place) of some lanes of a tile: their maximum, the least R relative to it, and where in the tile that is first."""
    _, a, b, c, d = _runs(x, x_col, tile, lanes, vocab)
    if greedy:
        m, least = _top(a, b, c, d), 0.0
        last = tl.where(c == m, lanes + 2048, tl.where(d == m, lanes + 3072, 4095))
        first = tl.min(tl.where(a == m, lanes, tl.where(b == m, lanes + 1024, last)), 0)
    else:
        words = philox(tile * 1024 + lanes, position, role, seed)  # while the logits are on their way
        m = _top(a, b, c, d)
        scales = scaling(m, t)
        lowest = tl.minimum(
            tl.minimum(_race(uniform(words[0]), a, scales), _race(uniform(words[1]), b, scales)),
            tl.minimum(_race(uniform(words[2]), c, scales), _race(uniform(words[3]), d, scales)),
        )
        least, first = _least(lowest, scales, x, x_col, tile, lanes, vocab, seed, position, role)
    return m, least, first


@triton.jit
def _top(a, b, c, d):
    return tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 0)


@triton.jit
def _least(lowest, scales, x, x_col, tile, lanes, vocab, seed, position, role):
    """(R, place) of the least R of a tile's lanes, R over ln 2, from the lowest 2^32 · u · exp(−z) of each lane's four tokens.

    As u ≤ E, only a lane whose lowest, scaled, is below the least R so far needs logarithms: one lane, mostly. One that overflows has no
    winner, since R of the maximum is below 2^7. Keys are the bits of the lowest, whose order is that of floats > 0, but for the last ten:
    the lane. u is never 0, so one is NaN only where a logit is.
    """
    keys = (lowest.to(tl.int32, bitcast=True) & -1024) | lanes
    key = tl.min(keys, 0)
    least, first = tl.full([], float("inf"), tl.float32), tl.full([], 0, tl.int32)
    while _of_key(key) < least:
        places = (key & 1023) + tl.arange(0, 4) * 1024
        ids = tile * 4096 + places
        r = _race(exponentials_of_ids(ids, seed, position, role), load_logits(x, ids, x_col, vocab), scales)
        r_least = tl.min(r, 0)
        place = tl.min(tl.where(r == r_least, places, 4095), 0)
        first = tl.where(r_least < least, place, tl.where(r_least == least, tl.minimum(first, place), first))
        least = tl.minimum(least, r_least)
        keys = tl.where(keys == key, 0x7F800000, keys)
        key = tl.min(keys, 0)
    return least, first


@triton.jit
def _of_key(key):
    """The lowest u · exp(−z) / ln 2 of a key's lane, 2^-18 less, where roundings of both sides are below 2^-20."""
    return (key & -1024).to(tl.float32, bitcast=True) * (1.44269 * 2.0**-32)


@triton.jit
def winner_among(values, ids, chosen, m, t, seed, position, role, vocab):
    """The winner among the chosen of candidates [128]."""
    r = _race(exponentials_of_ids(ids, seed, position, role), values, scaling(m, t))
    least = tl.min(tl.where(chosen, r, float("inf")), 0)
    return tl.min(tl.where(least == float("inf"), 0, tl.where(chosen & (r == least), ids, vocab - 1)), 0)


@triton.jit
def _lead(best, ids, e, logits, cols, keep, scales):
    """Each lane's leader so far, after a run more."""
    r = tl.where(keep, _race(e, logits, scales), float("inf"))
    return tl.minimum(best, r), tl.where(r < best, cols, ids)


@triton.jit
def winner_kept(x, x_col, vocab, tau, cut, m, t, bound, seed, position, role):
    """The winner of a row among what is kept, tile by tile; a tile that keeps nothing needs no noise."""
    scales = scaling(m, t)
    shift, scale, rate = scales
    best = tl.full([1024], float("inf"), tl.float32)
    ids = tl.zeros([1024], tl.int32)
    lanes = tl.arange(0, 1024)
    for start in range(0, vocab, 4096):
        cols, a, b, c, d = _runs(x, x_col, start // 4096, lanes, vocab)
        in_a = kept(a, cols, log2_of(a, shift, scale, rate), tau, cut, m, bound)
        in_b = kept(b, cols + 1024, log2_of(b, shift, scale, rate), tau, cut, m, bound)
        in_c = kept(c, cols + 2048, log2_of(c, shift, scale, rate), tau, cut, m, bound)
        in_d = kept(d, cols + 3072, log2_of(d, shift, scale, rate), tau, cut, m, bound)
        if tl.max((in_a | in_b | in_c | in_d).to(tl.int32), 0) > 0:
            e_a, e_b, e_c, e_d = exponentials_of_runs(start // 4096, lanes, seed, position, role)
            best, ids = _lead(best, ids, e_a, a, cols, in_a, scales)
            best, ids = _lead(best, ids, e_b, b, cols + 1024, in_b, scales)
            best, ids = _lead(best, ids, e_c, c, cols + 2048, in_c, scales)
            best, ids = _lead(best, ids, e_d, d, cols + 3072, in_d, scales)
    return tl.min(tl.where(best == tl.min(best, 0), ids, vocab - 1), 0)
