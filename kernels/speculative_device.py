"""Device code of chain verification: the first draft j with coin_j · q_j(d_j) ≥ p_j(d_j) is where a chain ends, and what it ends with.

The token there has the weights w = max(p_j − q_j, 0), or p_j where that is all zero; after the last draft, p_K. It is the first id with
w > 0 and Σ_{l ≤ id} w_l > coin_K · Σ w, the last id with w > 0 if rounding leaves none. NaN counts as 0.

`weigh`   one program per tile of 4096 of the one row of p and of q that a request needs: Σ w and Σ p          1 read
`emit`    one program per request: finds the tile, and in it the id                                         1 tile read

ONE_HOT: q_j is 1 at d_j. A draft that is no column has p = 0, and is never an address.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import row_of

_jit = triton.jit(
    do_not_specialize=["drafts", "vocab", "tiles", "p_row", "p_step", "q_row", "q_step"],
    do_not_specialize_on_alignment=["p", "q", "ids", "coins", "accepted", "out", "p_col", "q_col"],
)


@triton.jit
def _length(p, q, ids, coins, drafts, vocab, p_step, p_col, q_step, q_col, BLOCK: tl.constexpr, ONE_HOT: tl.constexpr):
    """How many drafts of a request are accepted: all before the first that is not."""
    j = tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
    d = tl.load(ids + j, mask=j < drafts, other=-1)
    legal = (d >= 0) & (d < vocab)
    bar = tl.load(coins + j, mask=legal, other=1.0)
    if ONE_HOT == 0:
        bar *= tl.load(q + j * q_step + d * q_col, mask=legal, other=0.0)
    accepted = legal & (bar < tl.load(p + j * p_step + d * p_col, mask=legal, other=0.0))
    return tl.minimum(tl.min(tl.where(accepted, BLOCK, j.to(tl.int32)), 0), drafts)


@triton.jit
def _weights(
    p, q, ids, length, tile, drafts, vocab, p_step, p_col, q_step, q_col, ONE_HOT: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """(columns, p, w) of a tile."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    cols = tile * 4096 + tl.arange(0, 4096)
    inside = cols < vocab
    values = tl.load(row_of(p, length, p_step, ALIGNED) + cols.to(tl.int64) * p_col, mask=inside, other=0.0)
    values = tl.where(values > 0, values, 0.0)
    left = values
    if length < drafts:
        if ONE_HOT:
            left = tl.where(cols == tl.load(ids + length), 0.0, values)
        else:
            left = values - tl.load(row_of(q, length, q_step, ALIGNED) + cols.to(tl.int64) * q_col, mask=inside, other=0.0)
            left = tl.where(left > 0, left, 0.0)
    return cols, values, left


@_jit
def weigh(
    p, q, ids, coins, sums, drafts, vocab, tiles, p_row, p_step, p_col, q_row, q_step, q_col,
    BLOCK: tl.constexpr, ONE_HOT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    request, tile = program // tiles, program % tiles
    p, q = row_of(p, request, p_row, ALIGNED), row_of(q, request, q_row, ALIGNED)
    ids += request.to(tl.int64) * drafts
    coins += request.to(tl.int64) * (drafts + 1)
    length = _length(p, q, ids, coins, drafts, vocab, p_step, p_col, q_step, q_col, BLOCK, ONE_HOT)
    _, values, left = _weights(p, q, ids, length, tile, drafts, vocab, p_step, p_col, q_step, q_col, ONE_HOT, ALIGNED)
    sums += program.to(tl.int64) * 2
    tl.store(sums, tl.sum(left, 0))
    tl.store(sums + 1, tl.sum(values, 0))


@triton.jit
def _total(sums, tiles):
    total = tl.zeros([128], tl.float32)
    for start in range(0, tiles, 128):
        s = start + tl.arange(0, 128)  # [128]
        total += tl.load(sums + s.to(tl.int64) * 2, mask=s < tiles, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _tile_of(sums, tiles, goal):
    """(tile, Σ before it, goal): the first that takes the running sum past the goal; else the last with any, and a goal out of reach."""
    carry = tl.full([], 0.0, tl.float32)
    before = tl.full([], 0.0, tl.float32)
    found = tl.full([], 0, tl.int32) + tiles
    last = tl.full([], 0, tl.int32)
    for start in range(0, tiles, 128):
        s = start + tl.arange(0, 128)
        w = tl.load(sums + s.to(tl.int64) * 2, mask=s < tiles, other=0.0)
        reached = carry + tl.cumsum(w, 0)
        first = tl.min(tl.where((reached > goal) & (w > 0), s, tiles), 0)
        before = tl.where(found == tiles, tl.sum(tl.where(s == first, reached - w, 0.0), 0), before)
        found = tl.minimum(found, first)
        last = tl.maximum(last, tl.max(tl.where(w > 0, s, 0), 0))
        carry += tl.sum(w, 0)
    return tl.where(found < tiles, found, last), before, tl.where(found < tiles, goal, float("inf"))


@_jit
def emit(
    p, q, ids, coins, sums, accepted, out, drafts, vocab, tiles, p_row, p_step, p_col, q_row, q_step, q_col,
    BLOCK: tl.constexpr, ONE_HOT: tl.constexpr, ALIGNED: tl.constexpr, ONE_TILE: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    p, q = row_of(p, request, p_row, ALIGNED), row_of(q, request, q_row, ALIGNED)
    ids += request.to(tl.int64) * drafts
    coins += request.to(tl.int64) * (drafts + 1)
    length = _length(p, q, ids, coins, drafts, vocab, p_step, p_col, q_step, q_col, BLOCK, ONE_HOT)
    coin = tl.load(coins + drafts)
    if ONE_TILE:
        cols, values, w = _weights(p, q, ids, length, 0, drafts, vocab, p_step, p_col, q_step, q_col, ONE_HOT, ALIGNED)
        w = tl.where(tl.sum(w, 0) == 0, values, w)
        before = 0.0
        goal = coin * tl.sum(w, 0)
    else:
        sums += request.to(tl.int64) * tiles * 2
        total = _total(sums, tiles)
        nothing = total == 0
        if nothing:
            sums += 1
            total = _total(sums, tiles)
        tile, before, goal = _tile_of(sums, tiles, coin * total)
        cols, values, w = _weights(p, q, ids, length, tile, drafts, vocab, p_step, p_col, q_step, q_col, ONE_HOT, ALIGNED)
        w = tl.where(nothing, values, w)
    hit = (w > 0) & (before + tl.cumsum(w, 0) > goal)
    first = tl.min(tl.where(hit, cols, vocab), 0)
    token = tl.where(first < vocab, first, tl.max(tl.where(w > 0, cols, 0), 0))

    j = tl.arange(0, BLOCK)
    chain = tl.load(ids + j, mask=j < length, other=-1)
    out += request.to(tl.int64) * (drafts + 1)
    tl.store(out + j, tl.where(j == length, token.to(tl.int64), chain), mask=j <= drafts)
    tl.store(accepted + request, length.to(tl.int64))
