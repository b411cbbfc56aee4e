"""Device code of races: argmin R_i, R_i = E_i · exp(−z_i), over a tile, over few candidates, and over what a row keeps, tile by tile.

A tile is four runs of 1024 tokens, which share one call of Philox per lane. Exact ties go to the lowest id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.filtering_candidates_device import log2_of, scaling
from stabcheck.kernels.filtering_general_device import kept
from stabcheck.kernels.noise_device import exponentials_of_ids, exponentials_of_runs
from stabcheck.kernels.online_device import load_logits


@triton.jit
def _race(e, logits, shift, scale, rate):
    """R = E · exp((m − x)/t); inf for −inf."""
    return e * tl.exp2(-log2_of(logits, shift, scale, rate))


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
    m = tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 0)
    if greedy:
        r_a, r_b, r_c, r_d = tl.where(a == m, 0.0, 1.0), tl.where(b == m, 0.0, 1.0), tl.where(c == m, 0.0, 1.0), tl.where(d == m, 0.0, 1.0)
    else:
        shift, scale, rate = scaling(m, t)
        e_a, e_b, e_c, e_d = exponentials_of_runs(tile, lanes, seed, position, role)
        r_a, r_b, r_c, r_d = (
            _race(e_a, a, shift, scale, rate), _race(e_b, b, shift, scale, rate),
            _race(e_c, c, shift, scale, rate), _race(e_d, d, shift, scale, rate),
        )  # fmt: skip
    least = tl.min(tl.minimum(tl.minimum(r_a, r_b), tl.minimum(r_c, r_d)), 0)
    last = tl.where(r_c == least, lanes + 2048, tl.where(r_d == least, lanes + 3072, 4095))
    first = tl.where(r_a == least, lanes, tl.where(r_b == least, lanes + 1024, last))
    return m, least, tl.min(first, 0)


@triton.jit
def winner_among(values, ids, chosen, m, t, seed, position, role, vocab):
    """The winner among the chosen of candidates [128]."""
    shift, scale, rate = scaling(m, t)
    r = _race(exponentials_of_ids(ids, seed, position, role), values, shift, scale, rate)
    least = tl.min(tl.where(chosen, r, float("inf")), 0)
    return tl.min(tl.where(least == float("inf"), 0, tl.where(chosen & (r == least), ids, vocab - 1)), 0)


@triton.jit
def _lead(best, ids, e, logits, cols, keep, shift, scale, rate):
    """Each lane's leader so far, after a run more."""
    r = tl.where(keep, _race(e, logits, shift, scale, rate), float("inf"))
    return tl.minimum(best, r), tl.where(r < best, cols, ids)


@triton.jit
def winner_kept(x, x_col, vocab, tau, cut, m, t, bound, seed, position, role):
    """The winner of a row among what is kept, tile by tile; a tile that keeps nothing needs no noise."""
    shift, scale, rate = scaling(m, t)
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
            best, ids = _lead(best, ids, e_a, a, cols, in_a, shift, scale, rate)
            best, ids = _lead(best, ids, e_b, b, cols + 1024, in_b, shift, scale, rate)
            best, ids = _lead(best, ids, e_c, c, cols + 2048, in_c, shift, scale, rate)
            best, ids = _lead(best, ids, e_d, d, cols + 3072, in_d, shift, scale, rate)
    return tl.min(tl.where(best == tl.min(best, 0), ids, vocab - 1), 0)
