"""Device code of the log-sum-exp: m + log d, with m = max x and d = Σ exp(x_i − m). One read of the logits.

`sums`   one program per split of a row, online over its tiles; writes (m, d) of the split, or the result if it is the whole row
`fold`   one program per row: folds the splits' (m, d) as if they were logits with weights
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.online_device import columns_of_tile, exp, finite, load_logits, max_of_lanes, row_of, span_of, sum_of_lanes

_jit = triton.jit(do_not_specialize=["vocab", "splits", "x_row"], do_not_specialize_on_alignment=["x", "out", "x_col"])


@_jit
def sums(
    x, out, vocab, splits, x_row, x_col,
    LANES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Columns [split · SPAN, (split + 1) · SPAN) of one row, SPAN a multiple of the tile; the whole row if SPAN is 0."""
    if ALIGNED:
        vocab = vocab // 16 * 16
    program = tl.program_id(0)
    row, first, last = span_of(program, vocab, splits, SPAN)
    x = row_of(x, row, x_row, ALIGNED)
    tile = columns_of_tile(LANES, STEPS, WIDTH)
    m = tl.full([LANES], float("-inf"), tl.float32)
    d = tl.zeros([LANES], tl.float32)
    for start in range(first, last, LANES * STEPS * WIDTH):
        logits = load_logits(x, start + tile, x_col, vocab)
        m_new = tl.maximum(m, max_of_lanes(logits))
        shift = finite(m_new)
        d = d * exp(m - shift) + sum_of_lanes(exp(logits - shift[:, None, None]))
        m = m_new
    top = tl.max(m, 0)
    total = tl.sum(d * exp(m - finite(top)), 0)
    if SPAN:
        out += program.to(tl.int64) * 2
        tl.store(out, top)
        tl.store(out + 1, total)
    else:
        tl.store(out + row, top + tl.log(total))


@_jit
def fold(partials, out, splits, LANES: tl.constexpr):
    """m = max_s m_s, d = Σ_s d_s · exp(m_s − m), by the same recurrence."""
    row = tl.program_id(0)
    partials += row.to(tl.int64) * splits * 2
    m = tl.full([LANES], float("-inf"), tl.float32)
    d = tl.zeros([LANES], tl.float32)
    for start in range(0, splits, LANES):
        s = start + tl.arange(0, LANES)  # [LANES]
        m_s = tl.load(partials + s * 2, mask=s < splits, other=float("-inf"))
        d_s = tl.load(partials + s * 2 + 1, mask=s < splits, other=0.0)
        m_new = tl.maximum(m, m_s)
        shift = finite(m_new)
        d = d * exp(m - shift) + d_s * exp(m_s - shift)
        m = m_new
    top = tl.max(m, 0)
    tl.store(out + row, top + tl.log(tl.sum(d * exp(m - finite(top)), 0)))
