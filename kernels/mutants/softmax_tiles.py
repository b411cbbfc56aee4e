"""Softmax mutants that go wrong where a row or a batch is cut into tiles."""

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import TILE, launch, mutant, shifted_then_scaled, softmax, tile


@triton.jit
def online(x, V, x_col, T, EXPONENT: tl.constexpr, OTHER: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """m and d in one pass: d = d · exp((m - m') / T) + Σ exp((x - m') / T), where m' is the maximum so far"""
    m = tl.full([], LEAST, tl.float32)
    d = tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        values = tile(x, start + tl.arange(0, BLOCK), V, x_col, OTHER)  # [BLOCK]
        larger = tl.maximum(m, tl.max(values, axis=0))
        d = d * tl.exp(EXPONENT(m, larger, T)) + tl.sum(tl.exp(EXPONENT(values, larger, T)), axis=0)
        m = larger
    return m, d


@mutant("SM4", killed_by=("finiteness", "masking"), vocab=TILE + 1)
def online_without_guard(logits, temperature):
    """Online softmax without a guard: a first tile that is all -inf gives exp(-inf - -inf) = NaN (online kernels of many projects)."""
    return launch(softmax, logits, temperature, STATISTICS=online)


@mutant("SM7", killed_by=("normalisation",), vocab=2)
def counts_the_tail_lanes(logits, temperature):
    """Loads lanes beyond the row's end as 0 and lets them take part in maximum and sum (the softmax set)."""
    return launch(softmax, logits, temperature, OTHER=0.0)


@triton.jit(do_not_specialize=range(10))
def _two_rows_a_tile(
    x, temperature, out, rows, V, x_row, x_col, t_row, out_row, out_col, BLOCK: tl.constexpr = 128
):  # fmt: skip
    """`softmax`, two rows at a time."""
    row = tl.program_id(0).to(tl.int64) * 2 + tl.arange(0, 2)  # [2]
    own = (row[:, None] == row[None, :]).to(tl.float32)  # [2, 2]
    row = tl.minimum(row, rows - 1)[:, None]  # [2, 1]; an odd last row is its own neighbour and written twice alike
    x += row * x_row  # [2, 1]
    T = tl.load(temperature + row * t_row)  # [2, 1]
    m = tl.full([2, 1], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        values = tile(x, start + tl.arange(0, BLOCK)[None, :], V, x_col, float("-inf"))  # [2, BLOCK]
        m = tl.maximum(m, tl.max(values, axis=1, keep_dims=True))
    d = tl.full([2], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        values = tile(x, start + tl.arange(0, BLOCK)[None, :], V, x_col, float("-inf"))
        d += tl.sum(tl.exp(shifted_then_scaled(values, m, T)), axis=1)
    d = tl.sum(own * d[None, :], axis=1, keep_dims=True)  # [2, 1]; the mistake: 0 × NaN is NaN
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
        p = tl.exp(shifted_then_scaled(tile(x, columns, V, x_col, float("-inf")), m, T)) / d  # [2, BLOCK]
        tl.store(out + row * out_row + columns.to(tl.int64) * out_col, p, mask=columns < V)


@mutant("SM14", killed_by=("isolation",), rows=2)
def neighbours_share_a_tile(logits, temperature):
    """Two rows share a tile and each picks its own sum by × 1 and × 0: a NaN row poisons its neighbour (the softmax set)."""
    rows, vocab = logits.shape
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if rows:
        strides = (*logits.stride(), *temperature.stride(), *out.stride())
        _two_rows_a_tile[(triton.cdiv(rows, 2),)](logits, temperature, out, rows, vocab, *strides)
    return out


@triton.jit
def _whole_tiles(V, BLOCK: tl.constexpr):
    return V // BLOCK * BLOCK


@mutant("SM15", killed_by=("memory",), vocab=2)
def forgets_the_last_partial_tile(logits, temperature):
    """Never writes the last partial tile: its probabilities are what the memory held before (the softmax set)."""
    return launch(softmax, logits, temperature, WRITTEN=_whole_tiles)
