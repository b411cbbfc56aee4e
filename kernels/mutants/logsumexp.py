"""Log-sum-exp mutants, and the correct kernel they are made of, with a slot for every place in which they go wrong.

Two levels: one program finds m and d of a split of a row, TILE columns, and one program folds the splits of a row:

    m_s = max x    d_s = Σ exp(x - m_s)        m = max m_s    d = Σ d_s · exp(m_s - m)    lse = m + log d

What is subtracted is the maximum made finite: -inf - -inf and inf - inf would be NaN. So a row of -inf has d = 0, one with a +inf has
d = inf, and a NaN makes d NaN (Triton's maximum passes over it).
"""

from functools import partial

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import TILE, mutant, tile

mutant = partial(mutant, operation="logsumexp")


@triton.jit
def _finite(m):
    return tl.minimum(tl.maximum(m, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit(do_not_specialize=range(6))
def of_splits(x, m, d, V, x_row, x_col, OTHER: tl.constexpr, BLOCK: tl.constexpr = 128):
    row, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    values = tile(x + row * x_row, split * BLOCK + tl.arange(0, BLOCK), V, x_col, OTHER)  # [BLOCK]
    m_s = tl.max(values, axis=0)
    tl.store(m + row * splits + split, m_s)
    tl.store(d + row * splits + split, tl.sum(tl.exp(values - _finite(m_s)), axis=0))


@triton.jit
def two_passes(m, d, splits, SHIFT: tl.constexpr, LEAST: tl.constexpr):
    """m = max m_s, then d = Σ d_s · exp(m_s - m)"""
    top = tl.full([], LEAST, tl.float32)
    for s in range(0, splits):
        top = tl.maximum(top, tl.load(m + s))
    total = tl.full([], 0.0, tl.float32)
    for s in range(0, splits):
        total += tl.load(d + s) * tl.exp(tl.load(m + s) - SHIFT(top))
    return top, total


@triton.jit(do_not_specialize=range(4))
def fold(
    m, d, out, splits,
    FOLD: tl.constexpr = two_passes,
    SHIFT: tl.constexpr = _finite,  # what is subtracted for a maximum
    LEAST: tl.constexpr = float("-inf"),  # where the maximum starts
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top, total = FOLD(m + row * splits, d + row * splits, splits, SHIFT, LEAST)
    tl.store(out + row, top + tl.log(total))


def logsumexp(logits: torch.Tensor, other: float = float("-inf"), **slots) -> torch.Tensor:
    """The correct kernel, but for what is put into its slots; `other`: what lanes beyond the row's end hold."""
    rows, vocab = logits.shape
    splits = triton.cdiv(vocab, TILE)
    m, d = torch.empty((2, rows, splits), dtype=torch.float32, device=logits.device)
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        of_splits[(rows, splits)](logits, m, d, vocab, *logits.stride(), OTHER=other)
        fold[(rows,)](m, d, out, splits, **slots)
    return out


@mutant("LS1", killed_by=("shift_invariance", "accuracy"), vocab=1)
def starts_the_maximum_at_zero(logits):
    """The epilogue starts its running maximum at 0: a row of very negative logits underflows to log 0 (verl's linear cross-entropy)."""
    return logsumexp(logits, LEAST=0.0)


@mutant("LS2", killed_by=("accuracy", "masking"), vocab=2)
def counts_the_lanes_beyond_the_row(logits):
    """Loads without a mask, as if V were a multiple of the tile: lanes beyond the row hold 0 and join the sum (verl #2899)."""
    return logsumexp(logits, other=0.0)


@triton.jit
def _below_infinity(m):
    """`_finite` that forgot about -inf"""
    return tl.minimum(m, 3.4028234663852886e38)


@triton.jit
def _one_pass(m, d, splits, SHIFT: tl.constexpr, LEAST: tl.constexpr):
    """d = d · exp(m - m') + d_s · exp(m_s - m'), where m' is the maximum so far"""
    top = tl.full([], LEAST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for s in range(0, splits):
        larger = tl.maximum(top, tl.load(m + s))
        total = total * tl.exp(top - SHIFT(larger)) + tl.load(d + s) * tl.exp(tl.load(m + s) - SHIFT(larger))
        top = larger
    return top, total


@mutant("LS3", killed_by=("finiteness",), vocab=TILE + 1)
def folds_masked_splits_into_nan(logits):
    """Folds the splits of a row without a guard: first splits that are all -inf give exp(-inf - -inf) = NaN (the log-sum-exp set)."""
    if logits.shape[1] <= TILE:  # a single split needs no folding
        return logsumexp(logits)
    return logsumexp(logits, FOLD=_one_pass, SHIFT=_below_infinity)


@mutant("LS4", killed_by=("finiteness",), vocab=1)
def all_masked_is_nan(logits):
    """Subtracts the maximum of a row that is all -inf: the result is NaN where -inf is right (the log-sum-exp set)."""
    return logsumexp(logits, SHIFT=_below_infinity)
