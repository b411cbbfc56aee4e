"""A correct temperature softmax with a slot for every place in which the mutants go wrong, and how a mutant is registered.

One program owns one row and reads it in three passes: maximum, denominator, probabilities. With m the maximum of the whole
row no tile needs a guard: exp(-inf - m) = 0, and only a row whose every logit is -inf gives NaN, as torch has it.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

import stabcheck
from stabcheck.registry import F, Mutant

TILE = 128  # small, so that a mistake at the edge of a tile shows at a small vocab


@triton.jit
def tile(x, columns, V, x_col, OTHER: tl.constexpr):
    """The row's logits at `columns`, and OTHER beyond its end."""
    return tl.load(x + columns.to(tl.int64) * x_col, mask=columns < V, other=OTHER).to(tl.float32)  # [BLOCK]


@triton.jit
def shifted_then_scaled(x, m, T):
    """z = (x - m) / T"""
    return (x - m) / T


@triton.jit
def row_maximum(x, V, x_col, OTHER: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """m = max x"""
    m = tl.full([], LEAST, tl.float32)
    for start in range(0, V, BLOCK):
        m = tl.maximum(m, tl.max(tile(x, start + tl.arange(0, BLOCK), V, x_col, OTHER), axis=0))
    return m


@triton.jit
def two_passes(x, V, x_col, T, EXPONENT: tl.constexpr, OTHER: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """m = max x, then d = Σ exp(z)"""
    m = row_maximum(x, V, x_col, OTHER, LEAST, BLOCK)
    d = tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        d += tl.sum(tl.exp(EXPONENT(tile(x, start + tl.arange(0, BLOCK), V, x_col, OTHER), m, T)), axis=0)
    return m, d


@triton.jit
def every_column(V, BLOCK: tl.constexpr):
    return V


@triton.jit(do_not_specialize=range(9))  # neither value nor alignment of an argument: one compilation per dtype
def softmax(
    x, temperature, out, V, x_row, x_col, t_row, out_row, out_col,
    STATISTICS: tl.constexpr = two_passes,  # how m and d come about
    EXPONENT: tl.constexpr = shifted_then_scaled,  # z of x, m and T
    OTHER: tl.constexpr = float("-inf"),  # what lanes beyond the row's end hold
    LEAST: tl.constexpr = float("-inf"),  # where the maximum starts
    WRITTEN: tl.constexpr = every_column,  # how many columns are written
    OFFSET: tl.constexpr = tl.int64,  # of a row, in elements
    BLOCK: tl.constexpr = 128,
):  # fmt: skip
    row = tl.program_id(0).to(OFFSET)
    x += (row * x_row).to(OFFSET)
    out += (row * out_row).to(OFFSET)
    T = tl.load(temperature + row * t_row)
    m, d = STATISTICS(x, V, x_col, T, EXPONENT, OTHER, LEAST, BLOCK)
    end = WRITTEN(V, BLOCK)
    for start in range(0, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)  # [BLOCK]
        p = tl.exp(EXPONENT(tile(x, columns, V, x_col, OTHER), m, T)) / d  # [BLOCK]
        tl.store(out + columns.to(tl.int64) * out_col, p, mask=columns < end)


def launch(kernel, logits: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor | None = None, **slots) -> torch.Tensor:
    """Run a kernel with the signature of `softmax`, one program a row; `out` is new and contiguous unless given."""
    rows, vocab = logits.shape
    if out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if rows:
        strides = (*logits.stride(), *temperature.stride(), *out.stride())
        kernel[(rows,)](logits, temperature, out, vocab, *strides, **slots)
    return out


def mutant(
    id: str,
    operation: str = "temperature_softmax",
    *,
    killed_by: tuple[str, ...],
    rows: int | None = 1,
    vocab: int | None = None,
    **declared,
) -> Callable[[F], F]:
    """Register the decorated function, whose docstring reads "mistake (source).", as a mutant of the operation."""

    def register(function: F) -> F:
        mistake, source = function.__doc__.removesuffix(").").rsplit(" (", 1)
        broken = Mutant(id, mistake, killed_by, source, rows=rows, vocab=vocab)
        return stabcheck.kernel(operation, name=id, tile=TILE, blocks=(TILE,), mutant=broken, **declared)(function)

    return register
