"""Device code that filtering and sampling share: a row's parameters, the maxima of its groups and spans, its maximum and its mass.

A tile is 4096 columns; `PARTS` programs share it in a survey. A group is 32 neighbours, a span 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stabcheck.kernels.filtering_candidates_device import log2_of, scaling
from stabcheck.kernels.online_device import load_logits


@triton.jit
def parameters(
    temperature, top_k, top_p, min_p, slot, vocab, HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr
):  # fmt: skip
    """(t, k, p, bound, filtered, greedy) of a row; what is off is k = vocab, p = inf, bound = −inf. t = 0 is greedy: k = 1 at t = 1."""
    t = tl.load(temperature + slot)
    k = vocab
    p = float("inf")
    bound = float("-inf")
    if HAS_K:
        asked = tl.load(top_k + slot)
        k = tl.where(asked <= 0, vocab, tl.minimum(asked, vocab)).to(tl.int32)
    if HAS_P:
        asked_p = tl.load(top_p + slot)
        p = tl.where(asked_p < 1, asked_p, p)
    if HAS_MIN:
        asked_min = tl.load(min_p + slot)
        bound = tl.where(asked_min > 0, tl.log2(tl.where(asked_min > 0, asked_min, 1.0)), bound)
    greedy = t == 0
    filtered = ((k < vocab) | (p < 1) | (bound > float("-inf"))) & (greedy == 0)
    t, k = tl.where(greedy, 1.0, t), tl.where(greedy, 1, k)
    return t, k, tl.where(greedy, float("inf"), p), tl.where(greedy, float("-inf"), bound), filtered, greedy


@triton.jit
def groups_of(x, part, x_col, vocab, PARTS: tl.constexpr):
    """A part of a tile as groups of 32, [128 / PARTS, 32], and their maxima."""
    cols = part * (4096 // PARTS) + tl.arange(0, 128 // PARTS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    logits = load_logits(x, cols, x_col, vocab)
    return logits, tl.max(logits, 1)


@triton.jit
def store_maxima(groups, row, tiles, part, maxima, PARTS: tl.constexpr):
    """A row has the maxima of its spans of 256 first, then those of its groups."""
    groups += row.to(tl.int64) * tiles * 144
    tl.store(groups + part * (16 // PARTS) + tl.arange(0, 16 // PARTS), tl.max(tl.reshape(maxima, [16 // PARTS, 8]), 1))
    tl.store(groups + tiles * 16 + part * (128 // PARTS) + tl.arange(0, 128 // PARTS), maxima)


@triton.jit
def total_of_part(logits, m, t):
    """d = Σ exp((x − m)/t)."""
    shift, scale, rate = scaling(m, t)
    return tl.sum(tl.sum(tl.exp2(log2_of(logits, shift, scale, rate)), 1), 0)


@triton.jit
def top_of(partials, parts):
    """m = max_s m_s over the parts of a row."""
    m = tl.full([128], float("-inf"), tl.float32)
    for start in range(0, parts, 128):
        s = start + tl.arange(0, 128)  # [128]
        m = tl.maximum(m, tl.load(partials + s.to(tl.int64) * 3, mask=s < parts, other=float("-inf")))
    return tl.max(m, 0)


@triton.jit
def total_of(partials, parts, m, t):
    """D = Σ_s d_s · exp((m_s − m)/t)."""
    shift, scale, rate = scaling(m, t)
    d = tl.zeros([128], tl.float32)
    for start in range(0, parts, 128):
        s = start + tl.arange(0, 128)
        m_s = tl.load(partials + s.to(tl.int64) * 3, mask=s < parts, other=float("-inf"))
        d += tl.load(partials + s.to(tl.int64) * 3 + 1, mask=s < parts, other=0.0) * tl.exp2(log2_of(m_s, shift, scale, rate))
    return tl.sum(d, 0)


@triton.jit
def whole_row(x, x_col, vocab, partials, parts, t, LEVEL: tl.constexpr):
    """(m, D) of a row: from its only tile (LEVEL 1), or from what the survey found."""
    if LEVEL == 1:
        logits, maxima = groups_of(x, 0, x_col, vocab, 1)
        m = tl.max(maxima, 0)
        total = total_of_part(logits, m, t)
    else:
        m = top_of(partials, parts)
        total = total_of(partials, parts, m, t)
    return m, total


@triton.jit
def place_of():
    """(row, part) of a program, without a division."""
    return tl.program_id(2) * 32768 + tl.program_id(1), tl.program_id(0)
