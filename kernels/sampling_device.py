"""Device code of sampling: the token with the largest z_i − log E_i among what the filters keep, as argmin R_i, R_i = E_i · exp(−z_i).

A row needs no maximum beforehand: in a tile R is relative to the tile's maximum m_s, and winners of tiles compare by (m_s − m)/t − log R_s,
so errors stay relative to differences of logits. Exact ties go to the lowest id. t = 0 compares logits alone.

`survey`   one program per part of a tile of 4096. A row without filters: (m_s, R_s, place) of its winner. Others: the maxima of their
           groups of 32 neighbours and spans of 256, with (m_s, d_s) where top-p needs the row's mass                     1 read
`draw`     one program per row: folds the winners, or draws among candidates, or by passes over the row  ~0 or many reads

EARLY: `draw` may be launched while the survey still runs (on GPUs that have programmatic dependent launch), and waits for it itself.
INDEXED: a row's parameters are those of slot index[row]. LEVEL as in `filtering_device`; rows of up to 4096 need no survey.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from stabcheck.kernels.filtering_candidates_device import candidates, keep, key_of, log2_of, scaling, total_of_few
from stabcheck.kernels.filtering_general_device import threshold
from stabcheck.kernels.filtering_rows_device import groups_of, parameters, place_of, store_maxima, top_of, total_of_part, whole_row
from stabcheck.kernels.online_device import load_logits, row_of
from stabcheck.kernels.race_device import winner, winner_among, winner_kept

_jit = triton.jit(
    do_not_specialize=["rows", "vocab", "tiles", "x_row", "pool", "role"],
    do_not_specialize_on_alignment=["x", "temperature", "top_k", "top_p", "min_p", "seed", "position", "index", "out", "x_col"],
)


@triton.jit
def _slot(index, row, pool, INDEXED: tl.constexpr):
    """Which element of the parameters is the row's; an index outside the pool is never an address."""
    slot = row.to(tl.int64)
    if INDEXED:
        slot = tl.minimum(tl.maximum(tl.load(index + row), 0), pool - 1)
    return slot


@_jit
def survey(
    x, temperature, top_k, top_p, min_p, seed, position, index, partials, groups, rows, vocab, tiles, pool, role, x_row, x_col,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, INDEXED: tl.constexpr, LEVEL: tl.constexpr, ALIGNED: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    if ALIGNED:
        vocab = vocab // 16 * 16
    row, part = place_of()
    if row >= rows:
        return
    slot = _slot(index, row, pool, INDEXED)
    t, k, p, _bound, filtered, greedy = parameters(temperature, top_k, top_p, min_p, slot, vocab, HAS_K, HAS_P, HAS_MIN)
    x = row_of(x, row, x_row, ALIGNED)
    partials += (row.to(tl.int64) * tiles * PARTS + part) * 3
    if filtered == 0:
        lanes = part % PARTS * (1024 // PARTS) + tl.arange(0, 1024 // PARTS)  # of every run: they share their calls of Philox
        key, place = tl.load(seed + slot), tl.load(position + slot)
        m, least, first = winner(x, x_col, part // PARTS, lanes, vocab, t, greedy, key, place, role)
        tl.store(partials, m)
        tl.store(partials + 1, least)
        tl.store(partials + 2, first.to(tl.float32))
    else:
        logits, maxima = groups_of(x, part, x_col, vocab, PARTS)
        m = tl.max(maxima, 0)
        tl.store(partials, m)
        if LEVEL == 2:
            store_maxima(groups, row, tiles, part, maxima, PARTS)
        if (k >= vocab) & (p < 1):
            tl.store(partials + 1, total_of_part(logits, m, t))
        else:
            tl.store(partials + 1, 0.0)


@triton.jit
def _fold(partials, parts, t, greedy, vocab, PARTS: tl.constexpr):
    """The id of the row's winner, from those of its parts: the largest (m_s − m)/t − log R_s."""
    m = top_of(partials, parts)
    shift, scale, rate = scaling(m, t)
    best = tl.full([128], float("-inf"), tl.float32)
    ids = tl.zeros([128], tl.int32)
    for start in range(0, parts, 128):
        s = start + tl.arange(0, 128)  # [128]
        winner = partials + s.to(tl.int64) * 3
        m_s = tl.load(winner, mask=s < parts, other=float("-inf"))
        score = log2_of(m_s, shift, scale, rate) - tl.log2(tl.load(winner + 1, mask=s < parts, other=1.0))
        if greedy:
            score = tl.where(m_s == m, 0.0, float("-inf"))
        better = score > best
        best = tl.where(better, score, best)
        ids = tl.where(better, s // PARTS * 4096 + tl.load(winner + 2, mask=s < parts, other=0.0).to(tl.int32), ids)
    return tl.min(tl.where(best == tl.max(best, 0), ids, vocab - 1), 0)


@triton.jit
def _of_all(x, x_col, vocab, partials, parts, t, greedy, seed, position, role, LEVEL: tl.constexpr, PARTS: tl.constexpr):
    """The winner of a row without filters."""
    if LEVEL == 1:
        token = winner(x, x_col, 0, tl.arange(0, 1024), vocab, t, greedy, seed, position, role)[2]
    else:
        token = _fold(partials, parts, t, greedy, vocab, PARTS)
    return token


@_jit
def draw(
    x, temperature, top_k, top_p, min_p, seed, position, index, partials, groups, scratch, out, vocab, tiles, pool, role, x_row, x_col,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr, INDEXED: tl.constexpr, LEVEL: tl.constexpr, SPANS: tl.constexpr,
    SHIFT: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    row = tl.program_id(0)
    slot = _slot(index, row, pool, INDEXED)
    t, k, p, bound, filtered, greedy = parameters(temperature, top_k, top_p, min_p, slot, vocab, HAS_K, HAS_P, HAS_MIN)
    key, place = tl.load(seed + slot), tl.load(position + slot)
    x = row_of(x, row, x_row, ALIGNED)
    if EARLY:
        gdc_wait()  # for the survey; all above was there before it
    parts = tiles * PARTS
    partials += row.to(tl.int64) * parts * 3
    if LEVEL == 0:
        ids = tl.arange(0, 128)
        values = load_logits(x, ids, x_col, vocab)
        m = tl.max(values, 0)
        chosen = keep(values, vocab, m, t, k, p, bound, total_of_few(values, m, t), vocab, key_of(m))[2]
        _store(out + row, winner_among(values, ids, chosen, m, t, key, place, role, vocab), vocab)
    elif not (HAS_K or HAS_P or HAS_MIN) or filtered == 0:  # without filters, the rest is not compiled
        _store(out + row, _of_all(x, x_col, vocab, partials, parts, t, greedy, key, place, role, LEVEL, PARTS), vocab)
    else:
        found = tl.full([], 0, tl.int32)
        if LEVEL < 3:
            groups += row.to(tl.int64) * tiles * 144
            scratch += row.to(tl.int64) * 384
            ids, values, n, floor, few = candidates(x, x_col, vocab, groups, tiles, k, scratch, LEVEL, SPANS)
            total = tl.full([], 0.0, tl.float32)
            if (k >= vocab) & (p < 1):
                total = whole_row(x, x_col, vocab, partials, parts, t, LEVEL)[1]
            m = tl.max(values, 0)
            kept_few = keep(values, n, m, t, k, p, bound, total, vocab, floor)
            found = few & kept_few[3]
            if found != 0:
                _store(out + row, winner_among(values, ids, kept_few[2], m, t, key, place, role, vocab), vocab)
        if found == 0:
            top = whole_row(x, x_col, vocab, partials, parts, t, LEVEL)[0]
            tau, cut = threshold(x, vocab, x_col, top, t, k, p, LANES, STEPS, WIDTH, SHIFT)
            _store(out + row, winner_kept(x, x_col, vocab, tau, cut, top, t, bound, key, place, role), vocab)


@triton.jit
def _store(target, chosen, vocab):
    """In [0, vocab) whatever the row held."""
    tl.store(target, tl.minimum(tl.maximum(chosen, 0), vocab - 1).to(tl.int64))
