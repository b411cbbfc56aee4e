"""Device code of the filtered softmax: p_i = exp(z_i)/D for what top-k, top-p and min-p keep, else 0.

z_i = (x_i − m)/t, m = max x, computed as log2(e) · z_i, since exponentials are powers of two here. Each filter keeps a prefix of the row in
its order (logit descending, id ascending), so what all keep is a threshold: x > tau, or x = tau and id ≤ cut; and z ≥ log(min_p) or x = m.

`survey`   one program per part of a tile of 4096: its (m, d = Σ exp), the maxima of its groups of 32 and spans of 256   1 read
`select`   one program per row: tau, cut, m, 1/D, found among few candidates or by passes over the row          ~0 or many reads
`write`    one program per tile: p                                                                                1 read, 1 write

LEVEL   0: rows of up to 128, their own candidates   1: of up to 4096, held by one program   2: candidates come from maxima
        3: passes only
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.filtering_candidates_device import candidates, keep, key_of, log2_of, scaling, total_of_few
from stabcheck.kernels.filtering_general_device import kept, mass_kept, threshold
from stabcheck.kernels.filtering_rows_device import groups_of, parameters, place_of, store_maxima, total_of_part, whole_row
from stabcheck.kernels.online_device import columns_of, load_logits, row_of

_jit = triton.jit(
    do_not_specialize=["vocab", "tiles", "rows", "x_row"],
    do_not_specialize_on_alignment=["x", "temperature", "top_k", "top_p", "min_p", "out", "x_col"],
)


@_jit
def survey(
    x, temperature, partials, groups, vocab, tiles, rows, x_row, x_col, ALIGNED: tl.constexpr, GROUPED: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    row, part = place_of()
    if row >= rows:
        return
    t = tl.load(temperature + row)
    logits, maxima = groups_of(row_of(x, row, x_row, ALIGNED), part, x_col, vocab, PARTS)
    if GROUPED:
        store_maxima(groups, row, tiles, part, maxima, PARTS)
    m = tl.max(maxima, 0)
    partials += (row.to(tl.int64) * tiles * PARTS + part) * 3
    tl.store(partials, m)
    tl.store(partials + 1, total_of_part(logits, m, tl.where(t == 0, 1.0, t)))


@triton.jit
def _store(selection, m, bound, mass, total, tau, cut):
    """A row with a NaN or a +inf, whose total is not finite, is NaN; one of −inf has a mass of 0, and is 0."""
    inverse = tl.where(mass == 0, 0.0, 1 / mass)
    tl.store(selection, m)
    tl.store(selection + 1, bound)
    tl.store(selection + 2, tl.where(total - total == 0, inverse, float("nan")))
    tl.store(selection + 3, tau)
    tl.store(selection + 4, cut.to(tl.float32, bitcast=True))


@triton.jit
def _store_kept(selection, values, ids, e, among, chosen, m, bound, total):
    """The threshold of candidates [128]: the last `among` them that top-k and top-p keep; `chosen` of these pass min-p."""
    tau = tl.min(tl.where(among, values, float("inf")), 0)
    cut = tl.max(tl.where(among & (values == tau), ids, 0), 0)
    _store(selection, m, bound, tl.sum(tl.where(chosen, e, 0.0), 0), total, tau, cut)


@_jit
def select(
    x, temperature, top_k, top_p, min_p, partials, groups, scratch, selection, vocab, tiles, x_row, x_col,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, LEVEL: tl.constexpr, SPANS: tl.constexpr, SHIFT: tl.constexpr,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    row = tl.program_id(0)
    t, k, p, bound, filtered, greedy = parameters(temperature, top_k, top_p, min_p, row, vocab, HAS_K, HAS_P, HAS_MIN)
    x = row_of(x, row, x_row, ALIGNED)
    selection += row.to(tl.int64) * 5
    if LEVEL == 0:
        ids = tl.arange(0, 128)
        values = load_logits(x, ids, x_col, vocab)
        m = tl.max(values, 0)
        e, among, chosen, _ = keep(values, vocab, m, t, k, p, bound, total_of_few(values, m, t), vocab, key_of(m))
        _store_kept(selection, values, ids, e, among, chosen, m, bound, total_of_few(values, m, t))
    else:
        m, total = whole_row(x, x_col, vocab, partials + row.to(tl.int64) * tiles * PARTS * 3, tiles * PARTS, t, LEVEL)
        found = ((filtered | greedy) == 0).to(tl.int32)
        if found != 0:
            _store(selection, m, bound, total, total, float("-inf"), vocab - 1)
        elif LEVEL < 3:
            groups += row.to(tl.int64) * tiles * 144
            scratch += row.to(tl.int64) * 384
            ids, values, n, floor, few = candidates(x, x_col, vocab, groups, tiles, k, scratch, LEVEL, SPANS)
            e, among, chosen, enough = keep(values, n, m, t, k, p, bound, total, vocab, floor)
            found = few & enough
            if found != 0:
                _store_kept(selection, values, ids, e, among, chosen, m, bound, total)
        if found == 0:
            tau, cut = threshold(x, vocab, x_col, m, t, k, p, LANES, STEPS, WIDTH, SHIFT)
            mass = mass_kept(x, vocab, x_col, tau, cut, m, t, bound, LANES, STEPS, WIDTH)
            _store(selection, m, bound, mass, total, tau, cut)


@_jit
def write(
    x, temperature, selection, out, vocab, tiles, x_row, x_col, ALIGNED: tl.constexpr
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    program = tl.program_id(0)
    row, tile = program // tiles, program % tiles
    t = tl.load(temperature + row)
    selection += row.to(tl.int64) * 5
    m, bound, inverse, tau = tl.load(selection), tl.load(selection + 1), tl.load(selection + 2), tl.load(selection + 3)
    cut = tl.load(selection + 4).to(tl.int32, bitcast=True)
    cols = tile * 4096 + tl.arange(0, 4096)
    logits = load_logits(row_of(x, row, x_row, ALIGNED), cols, x_col, vocab)
    shift, scale, rate = scaling(m, tl.where(t == 0, 1.0, t))
    z = log2_of(logits, shift, scale, rate)
    p = tl.where(kept(logits, cols, z, tau, cut, m, bound), tl.exp2(z) * inverse, inverse * 0.0)
    tl.store(columns_of(row_of(out, row, vocab, ALIGNED), cols, 1), p, mask=cols < vocab, cache_modifier=".cs")
