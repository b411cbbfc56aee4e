"""Device code of a token's log-probability and the row's entropy at temperature T: z_i = (x_i − m)/T, m = max x. One read of the logits.

    d = Σ exp(z_i)        logprob = z_label − log d        entropy = log d − (Σ z_i exp(z_i))/d

Online, beside d, b = Σ w_i 2^(w_i) with w = z · log2 e is kept. When the maximum grows by g, in units of T/log2 e, every w falls by g, so
b' = 2^(−g) (b − g d): all terms have one sign, and nothing cancels.

`sums`   one program per split of a row: its (m, d, b) or, if the split is the whole row, the results
`fold`   one program per row: folds the splits' (m, d, b)
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import (
    columns_of_tile,
    defined,
    finite,
    load_logits,
    log2_scale,
    max_of_lanes,
    row_of,
    span_of,
    sum_of_lanes,
)

_jit = triton.jit(
    do_not_specialize=["vocab", "splits", "x_row", "labels_step"],
    do_not_specialize_on_alignment=["x", "labels", "temperature", "out", "x_col"],
)


@triton.jit
def _exponent(x, m, t):
    """w = log2(e) · (x − m)/t, −inf where it overflows."""
    scale, rate = log2_scale(m, t)
    return (x * scale - m * scale) * rate


@triton.jit
def _moment(w, e):
    """w · 2^w where e = 2^w; 0 for e = 0, though w may be −inf there."""
    return tl.maximum(w, -200.0) * e


@triton.jit
def _grow(m, d, b, m_new, t):
    """(d, b) of a part with maximum m relative to the larger m_new; d and b are 0 where m is −inf."""
    w = _exponent(m, finite(m_new), t)
    e = tl.exp2(w)
    return d * e, e * b + _moment(w, e) * d


@triton.jit
def _write(m, d, b, t, x, x_col, label, vocab, out, row, NAN: tl.constexpr):
    """The results from the state of a whole row; m is finite here."""
    inside = (label >= 0) & (label < vocab)
    d = defined(d)
    if NAN:
        d = tl.where(inside, d, float("nan"))
    x_label = tl.load(x + tl.where(inside, label, 0) * x_col).to(tl.float32)
    scale = log2_scale(m, t)[0]  # x − m is scaled as in a sum, but then divided by t: z is a result here
    up = tl.where(scale > 1, scale, 1.0)
    z = tl.div_rn(x_label * scale - m * scale, t * up) * tl.where(scale > 1, 1.0, 2.0)
    log_d = tl.log(d)
    tl.store(out + row, z - log_d)
    tl.store(out + tl.num_programs(0).to(tl.int64) + row, log_d - b * 0.6931471805599453 / d)  # b ≤ 0


@_jit
def sums(
    x, labels, temperature, out, vocab, splits, x_row, x_col, labels_step,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, SPAN: tl.constexpr,
    TRAP: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """Columns [split · SPAN, (split + 1) · SPAN) of one row, SPAN a multiple of the tile; the whole row if SPAN is 0."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    program = tl.program_id(0)
    row, first, last = span_of(program, vocab, splits, SPAN)
    label = tl.load(labels + row.to(tl.int64) * labels_step)
    if TRAP:
        tl.device_assert((label >= 0) & (label < vocab), "a label is outside [0, vocab)")
    t = tl.load(temperature + row)
    x = row_of(x, row, x_row, ALIGNED)
    tile = columns_of_tile(LANES, STEPS, WIDTH)
    m = tl.full([LANES], float("-inf"), tl.float32)
    d = tl.zeros([LANES], tl.float32)
    b = tl.zeros([LANES], tl.float32)
    for start in range(first, last, LANES * STEPS * WIDTH):
        logits = load_logits(x, start + tile, x_col, vocab)
        m_new = tl.maximum(m, max_of_lanes(logits))
        d, b = _grow(m, d, b, m_new, t)
        w = _exponent(logits, finite(m_new)[:, None, None], t)
        e = tl.exp2(w)
        d += sum_of_lanes(e)
        b += sum_of_lanes(_moment(w, e))
        m = m_new
    top = tl.max(m, 0)
    d, b = _grow(m, d, b, top, t)
    if SPAN:
        out += program.to(tl.int64) * 3
        tl.store(out, top)
        tl.store(out + 1, tl.sum(d, 0))
        tl.store(out + 2, tl.sum(b, 0))
    else:
        _write(finite(top), tl.sum(d, 0), tl.sum(b, 0), t, x, x_col, label, vocab, out, row, NAN)


@_jit
def fold(
    x, labels, temperature, partials, out, vocab, splits, x_row, x_col, labels_step,
    LANES: tl.constexpr, ALIGNED: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    t = tl.load(temperature + row)
    label = tl.load(labels + row.to(tl.int64) * labels_step)
    partials += row.to(tl.int64) * splits * 3
    m = tl.full([LANES], float("-inf"), tl.float32)
    d = tl.zeros([LANES], tl.float32)
    b = tl.zeros([LANES], tl.float32)
    for start in range(0, splits, LANES):
        s = start + tl.arange(0, LANES)  # [LANES]
        m_s = tl.load(partials + s * 3, mask=s < splits, other=float("-inf"))
        m_new = tl.maximum(m, m_s)
        d, b = _grow(m, d, b, m_new, t)
        d_s = tl.load(partials + s * 3 + 1, mask=s < splits, other=0.0)
        d_s, b_s = _grow(m_s, d_s, tl.load(partials + s * 3 + 2, mask=s < splits, other=0.0), m_new, t)
        d += d_s
        b += b_s
        m = m_new
    top = tl.max(m, 0)
    d, b = _grow(m, d, b, top, t)
    _write(finite(top), tl.sum(d, 0), tl.sum(b, 0), t, row_of(x, row, x_row, ALIGNED), x_col, label, vocab, out, row, NAN)
