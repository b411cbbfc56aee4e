"""A correct cross-entropy with its gradient, without softcap and z-loss, and a slot for every place in which the mutants go wrong.

    z = x - m    d = Σ exp(z)    p = exp(z - log d)    keep = 1 - ε    share = ε/V    S = keep + share · (number taking part)
    loss   = keep (log d - z_t) + share Σ_taking part (log d - z_j)
    grad_i = g S p_i - g (keep [i = t] + share [i takes part])

Forward, one program owns one row: maximum, denominator and, if there is smoothing, a pass over the classes that take part in it, which are
those not at -inf. It saves m, log d and S. Backward, one program owns one row and computes p again. A row of -inf, or with a NaN or a +inf,
has m - m = NaN in d.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import tile, two_passes


@triton.jit
def shifted(x, m, T):
    """z = x - m; there is no T"""
    return x - m


@triton.jit
def difference(m, log_d, x_t):
    """log d - z_t: what all logits have in common drops out"""
    return log_d - (x_t - m)


@triton.jit
def unless_masked(x, z, inside):
    """-z of the classes that take part in the smoothing"""
    return tl.where(x > float("-inf"), -z, 0.0)


@triton.jit
def _smoothed(x, V, x_col, m, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """(number of classes taking part, Σ -z over them)"""
    taking, far = tl.full([], 0.0, tl.float32), tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)  # [BLOCK]
        values = tile(x, columns, V, x_col, float("-inf"))  # [BLOCK]
        taking += tl.sum((values > float("-inf")).to(tl.float32), axis=0)
        far += tl.sum(FAR(values, values - m, columns < V), axis=0)
    return taking, far


@triton.jit(do_not_specialize=range(11))
def row_loss(
    x, target, losses, saved, V, x_row, x_col, t_row, ignored, keep, share,
    SMOOTH: tl.constexpr,
    STATISTICS: tl.constexpr = two_passes,  # how m and d come about
    DISTANCE: tl.constexpr = difference,  # of the target from certainty
    FAR: tl.constexpr = unless_masked,  # what the smoothing adds up
    BLOCK: tl.constexpr = 128,
):  # fmt: skip
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    x += row * x_row
    t = tl.load(target + row * t_row)
    counts = t != ignored
    m, d = STATISTICS(x, V, x_col, 1.0, shifted, float("-inf"), float("-inf"), BLOCK)
    log_d = tl.log(d)
    loss = keep * DISTANCE(m, log_d, tl.load(x + tl.where(counts, t, 0) * x_col).to(tl.float32))
    S = keep
    if SMOOTH:
        taking, far = _smoothed(x, V, x_col, m, FAR, BLOCK)
        loss += share * (taking * log_d + far)
        S += share * taking
    tl.store(losses + row, tl.where(counts, loss, 0.0))
    tl.store(saved + row, m)
    tl.store(saved + rows + row, log_d)
    tl.store(saved + 2 * rows + row, S)


@triton.jit
def as_computed(pulled):
    return pulled


@triton.jit(do_not_specialize=range(13))
def row_gradient(
    x, target, upstream, saved, grad, V, x_row, x_col, t_row, u_row, ignored, keep, share,
    ROUNDED: tl.constexpr = as_computed,  # g S p before anything is subtracted
    IGNORES: tl.constexpr = True,
    BLOCK: tl.constexpr = 128,
):  # fmt: skip
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    t, g = tl.load(target + row * t_row), tl.load(upstream + row * u_row)
    m, log_d, S = tl.load(saved + row), tl.load(saved + rows + row), tl.load(saved + 2 * rows + row)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)  # [BLOCK]
        values = tile(x + row * x_row, columns, V, x_col, float("-inf"))  # [BLOCK]
        pulled = ROUNDED(g * (S * tl.exp(values - m - log_d)))  # [BLOCK]
        weights = tl.where(columns == t, keep, 0.0) + tl.where(values > float("-inf"), share, 0.0)  # [BLOCK]
        result = pulled - g * weights  # [BLOCK]
        if IGNORES:
            result = tl.where(t == ignored, 0.0, result)
        tl.store(grad + row * V + columns, result, mask=columns < V)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, ignored, eps, slots, backward_slots):
        rows, vocab = logits.shape
        ctx.constants, ctx.slots = (ignored, 1 - eps, eps / vocab), backward_slots
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        saved = torch.empty((3, rows), dtype=torch.float32, device=logits.device)
        if rows:
            strides = (*logits.stride(), *target.stride())
            row_loss[(rows,)](logits, target, losses, saved, vocab, *strides, *ctx.constants, SMOOTH=eps > 0, **slots)
        ctx.save_for_backward(logits, target, saved)
        return losses

    @staticmethod
    def backward(ctx, upstream):
        logits, target, saved = ctx.saved_tensors
        rows, vocab = logits.shape
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        if rows:
            strides = (*logits.stride(), *target.stride(), *upstream.stride())
            row_gradient[(rows,)](logits, target, upstream, saved, grad, vocab, *strides, *ctx.constants, **ctx.slots)
        return grad, *(None,) * 5


def check_range(target: torch.Tensor, vocab: int, ignore_index: int = -100) -> None:
    """Raise ValueError for a target that is neither a class nor the ignored index."""
    bad = ((target < 0) | (target >= vocab)) & (target != ignore_index)
    if bool(bad.any()):
        raise ValueError(f"targets are {target[bad].tolist()} but logits have a vocab of {vocab}; pass 0 to {vocab - 1}, or {ignore_index}")


def losses_of(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    slots: Mapping[str, Any] | None = None,
    backward_slots: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The loss of each row, whatever its target."""
    return _CrossEntropy.apply(logits, target, ignore_index, label_smoothing, slots or {}, backward_slots or {})


def reduced(losses: torch.Tensor, reduction: str, counted: torch.Tensor | int) -> torch.Tensor:
    """The reduction of the rows' losses, `counted` of which count; in fp64, where a sum does not overflow before it is divided."""
    if reduction == "none":
        return losses
    total = losses.sum(dtype=torch.float64)
    return (total / counted if reduction == "mean" else total).float()


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, *, reduction: str = "none", ignore_index: int = -100, **more: Any
) -> torch.Tensor:
    """The correct kernel, but for what is put into its slots."""
    check_range(target, logits.shape[1], ignore_index)
    losses = losses_of(logits, target, ignore_index=ignore_index, **more)
    return reduced(losses, reduction, (target != ignore_index).sum())
