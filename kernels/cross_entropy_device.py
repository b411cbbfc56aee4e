"""Device code of the cross-entropy; y = x, or cap · tanh(x / cap), z = y − m, m = max y, d = Σ exp(z), p = exp(z)/d, lse = m + log d.

    loss   = keep (log d − z_t) + share Σ_taking part (log d − z_j) + square · lse²              keep = 1 − ε, share = ε/V
    grad_i = upstream · (1 − tanh²(x_i / cap)) · ((S + 2 square · lse) p_i − keep [i = t] − share [i takes part])

`forward`    one program per row, online over its tiles                                                                          1 read
`mean`       one program: the mean of the losses
`backward`   one program per 8192 columns of a row: p again from m and d, so that a gradient is rounded once           1 read, 1 write

`saved`      the number of rows that count, then, each [rows]: m, 1/d, lse and, for SMOOTH = 1, S = keep + share · (number taking part)

SMOOTH   0: no smoothing   1: classes at −inf take no part   2: they do, and the loss is infinite
TRAP, NAN: what a target that is no class does, to the device or to its row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import (
    columns_of,
    columns_of_tile,
    defined,
    exp,
    finite,
    load_logits,
    max_of_lanes,
    row_of,
    sum_of_lanes,
)

_jit = triton.jit(
    do_not_specialize=["vocab", "chunks", "x_row", "grad_row", "target_step", "upstream_step", "ignore", "rows"],
    do_not_specialize_on_alignment=["x", "grad", "target", "upstream", "losses", "loss", "saved", "x_col", "grad_col"],
)


@triton.jit
def _tanh(x):
    """tanh x and its derivative: 1 − q and q (2 − q), with q = 2u/(1 + u) and u = exp(−2|x|); near 0 an odd polynomial (Cephes, tanhf)."""
    u = exp(-2.0 * tl.abs(x))
    r = tl.rsqrt(1.0 + u)
    q = 2.0 * u * (r * r)
    s = x * x
    odd = ((((-5.70498872745e-3 * s + 2.06390887954e-2) * s - 5.37397155531e-2) * s + 1.33314422036e-1) * s - 3.33332819422e-1) * s * x + x
    near = tl.abs(x) < 0.625
    return tl.where(near, odd, tl.where(x < 0, q - 1.0, 1.0 - q)), tl.where(near, 1.0 - odd * odd, q * (2.0 - q))


@triton.jit
def _capped(x, cap, CAP: tl.constexpr):
    y = x
    if CAP:
        y = cap * _tanh(x * tl.div_rn(1.0, cap))[0]
    return y


@_jit
def forward(
    x, target, losses, saved, vocab, x_row, x_col, target_step, ignore, keep, share, square, cap, vocab_unit,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr,
    SMOOTH: tl.constexpr, CAP: tl.constexpr, TRAP: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """`vocab_unit`: a power of two that keeps Σ z from overflowing where (Σ z)/V does not."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    row = tl.program_id(0)
    rows = tl.num_programs(0).to(tl.int64)
    label = tl.load(target + row.to(tl.int64) * target_step)
    if label == ignore:
        tl.store(losses + row, 0.0)
    else:
        inside = (label >= 0) & (label < vocab)
        if TRAP:
            tl.device_assert(inside, "a target is neither a class nor ignore_index")
        x = row_of(x, row, x_row, ALIGNED)
        y_label = _capped(tl.load(x + tl.where(inside, label, 0) * x_col).to(tl.float32), cap, CAP)
        tile = columns_of_tile(LANES, STEPS, WIDTH)
        m = tl.full([LANES], float("-inf"), tl.float32)
        d = tl.zeros([LANES], tl.float32)
        count = tl.zeros([LANES], tl.float32)  # classes that take part: up to 2^24 a lane, exactly
        far = tl.zeros([LANES], tl.float32)  # Σ z over them, in units of 1/vocab_unit
        for start in range(0, vocab, LANES * STEPS * WIDTH):
            cols = start + tile
            y = load_logits(x, cols, x_col, vocab)
            if CAP:
                y = tl.where(cols < vocab, _capped(y, cap, CAP), float("-inf"))
            m_new = tl.maximum(m, max_of_lanes(y))
            shift = finite(m_new)
            z = y - shift[:, None, None]
            d = d * exp(m - shift) + sum_of_lanes(exp(z))
            if SMOOTH:
                takes = y > float("-inf")
                far += tl.where(count > 0, count * ((m - shift) * vocab_unit), 0.0)
                far += sum_of_lanes(tl.where(takes, z * vocab_unit, 0.0))
                count += sum_of_lanes(takes.to(tl.float32))
            m = m_new
        top = finite(tl.max(m, 0))
        total = defined(tl.sum(d * exp(m - top), 0))
        if NAN:
            total = tl.where(inside, total, float("nan"))

        log_d = tl.log(total)
        z_label = tl.minimum(y_label - top, 0.0)
        loss = keep * (log_d - z_label)
        if SMOOTH:
            loss = tl.where(z_label == float("-inf"), log_d - z_label, loss)  # also where keep is 0
            far += tl.where(count > 0, count * ((m - top) * vocab_unit), 0.0)
            taking = tl.sum(count.to(tl.int32), 0)
            loss += (share * taking) * log_d - tl.sum(far, 0) * tl.div_rn(share, vocab_unit)
            if SMOOTH == 2:
                loss += tl.where(taking == vocab, 0.0, float("inf"))
        lse = top + log_d
        loss += (square * lse) * lse
        tl.store(losses + row, loss)
        if saved is not None:
            saved += 1
            tl.store(saved + row, top)
            tl.store(saved + rows + row, tl.div_rn(1.0, total))
            tl.store(saved + 2 * rows + row, lse)
            if SMOOTH == 1:
                tl.store(saved + 3 * rows + row, keep + share * taking)


@_jit
def mean(losses, target, loss, saved, rows, target_step, ignore, rows_unit, BLOCK: tl.constexpr):
    """Losses are added in units of 1/rows_unit, a power of two, so that their sum does not overflow where their mean does not."""
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)  # [BLOCK]
        total += tl.load(losses + row, mask=row < rows, other=0.0) * rows_unit
        label = tl.load(target + row.to(tl.int64) * target_step, mask=row < rows, other=ignore)
        count += (label != ignore).to(tl.int32)
    number = tl.sum(count, 0).to(tl.float32)
    tl.store(loss, tl.div_rn(tl.sum(total, 0), number * rows_unit))
    if saved is not None:
        tl.store(saved, number)


@_jit
def backward(
    x, grad, target, upstream, saved, vocab, chunks, x_row, x_col, grad_row, grad_col, target_step, upstream_step,
    ignore, keep, share, square, cap,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ALIGNED: tl.constexpr,
    SMOOTH: tl.constexpr, SQUARE: tl.constexpr, CAP: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    if ALIGNED:
        vocab = vocab // 16 * 16
    rows = (tl.num_programs(0) // chunks).to(tl.int64)
    row = tl.program_id(0) // chunks
    first = tl.program_id(0) % chunks * (BLOCK * BLOCKS)
    x = row_of(x, row, x_row, ALIGNED)
    grad = row_of(grad, row, grad_row, ALIGNED)
    label = tl.load(target + row.to(tl.int64) * target_step)
    g = tl.load(upstream + row.to(tl.int64) * upstream_step)
    if MEAN:
        g = tl.div_rn(g, tl.load(saved))
    saved += 1 + row
    m, inverse, lse = tl.load(saved), tl.load(saved + rows), tl.load(saved + 2 * rows)
    # A large g multiplies last and a small one first, and likewise 2 · square: nothing overflows that the gradient does not.
    before, after = tl.where(tl.abs(g) > 1, 1.0, g), tl.where(tl.abs(g) > 1, g, 1.0)
    lse = lse * tl.minimum(2 * square, 1.0) * before
    of_p = before
    if SMOOTH == 1:
        of_p *= tl.load(saved + 3 * rows)
    here = tl.where((label >= 0) & (label < vocab), label, -1).to(tl.int32)

    if label == ignore:
        for block in tl.static_range(BLOCKS):
            cols = first + block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
            tl.store(columns_of(grad, cols, grad_col), tl.zeros([BLOCK], grad.dtype.element_ty), mask=cols < vocab)
    else:
        for block in tl.static_range(BLOCKS):
            cols = first + block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
            y, slope = load_logits(x, cols, x_col, vocab), 1.0
            if CAP:
                y, slope = _tanh(y * tl.div_rn(1.0, cap))
                y *= cap
            p = exp(y - m) * inverse
            pull = p * of_p
            if SQUARE:
                pull += p * lse * tl.maximum(2 * square, 1.0)
            if SMOOTH == 1:
                pull -= tl.where(y > float("-inf"), share * before, 0.0)
            elif SMOOTH == 2:
                pull -= share * before
            pull = tl.where(cols == here, pull - keep * before, pull)
            tl.store(columns_of(grad, cols, grad_col), (pull * slope * after).to(grad.dtype.element_ty), mask=cols < vocab)
