"""Device code of the fused temperature softmax: p_i = exp((x_i − m) / t) / d, with m = max x and d = Σ exp((x_i − m) / t).

`single_pass`   one program per row, the row in registers                         1 read, 1 write
`online`        one program per row, tile by tile: running max and sum, then p     2 reads (the second from L1 and L2), 1 write
`split_sums`    one program per block of a row: its max and sum to a workspace     1 read
`split_write`   one program per block: folds the row's sums, then p                1 read, 1 write

Special rows need no code of their own in the sums: a NaN or +inf makes d NaN, and d = 0 says that every logit is −inf. t = 0 is greedy:
m and d are computed with t = 1, for what d says about the row, and the row written is one-hot at the first maximum.

`ALIGNED` is that of `online_device`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import columns_of, columns_of_tile, log2_scale, row_of

# Two or three compiled variants serve all shapes: the compiler is told of column strides of 1, and of the rest what ALIGNED says.
_jit = triton.jit(
    do_not_specialize=["vocab", "splits", "x_row", "out_row"],
    do_not_specialize_on_alignment=["x", "temperature", "out", "x_col", "out_col"],
)


@triton.jit
def _exp(x, m, t):
    """exp((x − m)/t), for x ≤ m and t > 0, as 2^((x − m) · log2(e)/t): one multiplication where a division takes eight instructions."""
    scale, rate = log2_scale(m, t)
    return tl.exp2((x * scale - m * scale) * rate)


@triton.jit
def _finite(m):
    """A maximum to subtract: −inf − −inf would be NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def _one_hot(cols, first, d, inverse):
    """1 at `first`, 0 elsewhere; the row's own NaN or zeros (`inverse`) where there is no maximum to choose."""
    rest = inverse * 0
    return tl.where(cols == first, tl.where(d > 0, 1.0, rest), rest)


@_jit
def single_pass(
    x, temperature, out, vocab, x_row, x_col, out_row, out_col, empty, BLOCK: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    row = tl.program_id(0)
    t = tl.load(temperature + row)
    cols = tl.arange(0, BLOCK)  # [BLOCK]
    inside = cols < vocab
    logits = tl.load(columns_of(row_of(x, row, x_row, ALIGNED), cols, x_col), mask=inside, other=float("-inf")).to(tl.float32)
    m = tl.max(logits, 0)
    e = _exp(logits, _finite(m), tl.where(t == 0, 1.0, t))
    d = tl.sum(e, 0)
    inverse = tl.where(d == 0, empty, 1 / d)
    target = columns_of(row_of(out, row, out_row, ALIGNED), cols, out_col)
    if t == 0:
        first = tl.min(tl.where(logits == m, cols, vocab), 0)
        tl.store(target, _one_hot(cols, first, d, inverse).to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(target, (e * inverse).to(out.dtype.element_ty), mask=inside, cache_modifier=".cs")


@_jit
def online(
    x, temperature, out, vocab, x_row, x_col, out_row, out_col, empty,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Each of LANES lanes keeps its own running max and sum of STEPS × WIDTH logits a tile; they meet once, at the end of the row."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    TILE: tl.constexpr = LANES * STEPS * WIDTH
    row = tl.program_id(0)
    t = tl.load(temperature + row)
    rate_t = tl.where(t == 0, 1.0, t)
    x = row_of(x, row, x_row, ALIGNED)
    target = row_of(out, row, out_row, ALIGNED)
    tile = columns_of_tile(LANES, STEPS, WIDTH)

    m = tl.full([LANES], float("-inf"), tl.float32)
    d = tl.zeros([LANES], tl.float32)
    for start in range(0, vocab, TILE):
        cols = start + tile
        logits = tl.load(columns_of(x, cols, x_col), mask=cols < vocab, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(m, tl.max(tl.max(logits, 2), 1))
        shift = _finite(m_new)
        e = _exp(logits, shift[:, None, None], rate_t)
        d = d * _exp(m, shift, rate_t) + tl.sum(tl.sum(e, 2), 1)  # d ← d · exp((m − m') / t) + Σ exp((x − m') / t)
        m = m_new
    top = tl.max(m, 0)
    shift = _finite(top)
    total = tl.sum(d * _exp(m, shift, rate_t), 0)
    inverse = tl.where(total == 0, empty, 1 / total)

    if t == 0:
        first = vocab
        for start in range(0, vocab, TILE):
            cols = start + tile
            logits = tl.load(columns_of(x, cols, x_col), mask=cols < vocab, other=float("-inf")).to(tl.float32)
            first = tl.minimum(first, tl.min(tl.min(tl.min(tl.where(logits == top, cols, vocab), 2), 1), 0))
        for start in range(0, vocab, TILE):
            cols = start + tile
            p = _one_hot(cols, first, total, inverse)
            tl.store(columns_of(target, cols, out_col), p.to(out.dtype.element_ty), mask=cols < vocab)
    else:
        last = (vocab - 1) // TILE * TILE
        for back in range(0, vocab, TILE):  # from the last tile, which the caches still hold, to the first
            cols = last - back + tile
            source = columns_of(x, cols, x_col)
            logits = tl.load(source, mask=cols < vocab, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
            p = _exp(logits, shift, rate_t) * inverse
            tl.store(columns_of(target, cols, out_col), p.to(out.dtype.element_ty), mask=cols < vocab, cache_modifier=".cs")


@_jit
def split_sums(
    x, temperature, partials, vocab, splits, x_row, x_col, BLOCK: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """Write (max, sum, column of the max within the block) of one block to partials[row, split]."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    row, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    t = tl.load(temperature + row)
    block = tl.arange(0, BLOCK)
    cols = split * BLOCK + block  # [BLOCK]
    source = columns_of(row_of(x, row, x_row, ALIGNED), cols, x_col)
    logits = tl.load(source, mask=cols < vocab, other=float("-inf"), eviction_policy="evict_last").to(tl.float32)
    m = tl.max(logits, 0)
    e = _exp(logits, _finite(m), tl.where(t == 0, 1.0, t))
    partials += tl.program_id(0).to(tl.int64) * 3
    tl.store(partials, m)
    tl.store(partials + 1, tl.sum(e, 0))
    if t == 0:
        tl.store(partials + 2, tl.min(tl.where(logits == m, block, BLOCK), 0).to(tl.float32))  # exact: BLOCK ≤ 2^24


@_jit
def split_write(
    x, temperature, partials, out, vocab, splits, x_row, x_col, out_row, out_col, empty,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Fold the row's partials, each program for itself and in one order, and write one block of probabilities."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    row, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    t = tl.load(temperature + row)
    rate_t = tl.where(t == 0, 1.0, t)
    cols = split * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = cols < vocab
    source = columns_of(row_of(x, row, x_row, ALIGNED), cols, x_col)
    logits = tl.load(source, mask=inside, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)

    s = tl.arange(0, SPLITS)  # [SPLITS]
    partials += (row.to(tl.int64) * splits + s) * 3
    maxima = tl.load(partials, mask=s < splits, other=float("-inf"))
    sums = tl.load(partials + 1, mask=s < splits, other=0.0)
    m = tl.max(maxima, 0)
    d = tl.sum(sums * _exp(maxima, _finite(m), rate_t), 0)  # Σ_s d_s · exp((m_s − m) / t)
    inverse = tl.where(d == 0, empty, 1 / d)

    target = columns_of(row_of(out, row, out_row, ALIGNED), cols, out_col)
    if t == 0:
        firsts = s * BLOCK + tl.load(partials + 2, mask=s < splits, other=0.0).to(tl.int32)
        first = tl.min(tl.where(maxima == m, firsts, vocab), 0)
        tl.store(target, _one_hot(cols, first, d, inverse).to(out.dtype.element_ty), mask=inside)
    else:
        p = _exp(logits, _finite(m), rate_t) * inverse
        tl.store(target, p.to(out.dtype.element_ty), mask=inside, cache_modifier=".cs")
