"""Cross-entropy with its gradient, as losses of language models have it.

    y = c·tanh(x/c), or x without softcap    m = max y    z = y − m    d = Σ exp(z)    p = exp(z)/d    lse = m + log d
    loss = (1 − ε)(log d − z_t) + (ε/V) Σ_{j taking part} (log d − z_j) + ζ·lse²
    ∂loss/∂x_i · g = g·(1 − tanh²(x_i/c))·((S + 2ζ·lse)·p_i − (1 − ε)[i = t] − (ε/V)[i takes part]),   S = 1 − ε + ε·(number taking part)/V

input     shape   dtype             meaning
logits    [R, V]  fp32, bf16, fp16  x; -inf masks a class
target    [R]     int64             t, in [0, V), or ignore_index: the row's loss and gradient are exactly 0
upstream  [R]     fp32              g; under a reduction the first row's stands for the scalar
loss      [R]     fp32              [] under a reduction; "mean" divides by the rows not ignored
grad      [R, V]  the logits'       through torch.autograd

Options as in torch's cross_entropy and Liger's: ignore_index, label_smoothing ε, lse_square_scale ζ (z-loss), softcap c, reduction.
The loss is formed from differences, so a common offset changes nothing and its bound does not grow with one.

Policies: masked classes take no part in label smoothing, V staying the class count, or the loss is infinite as in torch; a target outside
[0, V) raises, or makes its row NaN. Under a softcap -inf becomes −c, like any other very low
logit, and masks nothing. A masked target gives +inf and a finite gradient. Rows of -inf, and rows with NaN or, without softcap,
+inf, give NaN. Sources: Liger #968, #1268; PyTorch #11752; the online kernels of many projects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, settled
from stabcheck.devices import U
from stabcheck.floats import FP32
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST, Expected, Input, Operation, Output
from stabcheck.operations.cross_entropy_rows import OPTIONS, Problem, problem_of, row_gradients, row_losses, row_upstream

UPSTREAM = (1.0, 0.0, -1.0, 0.5, 65536.0, 1e-3, 1e30, -1e30, 1e-30)


def call(
    function: Callable[..., Any],
    logits: torch.Tensor,
    target: torch.Tensor,
    upstream: torch.Tensor,
    reduction: str = "none",
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient with respect to the logits."""
    logits = logits.detach().requires_grad_()
    with torch.autograd.set_multithreading_enabled(False):
        loss = function(logits, target, reduction=reduction, **options)
        seed = upstream if loss.ndim else upstream.sum() if not len(upstream) else upstream[0]
        (grad,) = torch.autograd.grad(loss, logits, seed.to(loss.dtype))
    return loss.detach(), grad


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """Loss and gradient of each row with their bounds, then the reduction over rows."""
    rows = problem_of(batch, contract)
    ignored, bad = rows.ignored, ~rows.ignored & ~rows.in_range
    loss, of_loss = row_losses(rows)
    loss = torch.where(bad, torch.nan, loss.masked_fill(ignored, 0.0))
    free = bad if contract.policies["bad_target"] == "error" else None
    if (undefined := rows.undefined) is not None:
        free = undefined if free is None else free | undefined
    bound = settled(loss, of_loss, contract).masked_fill(ignored, 0.0)
    if (how := rows.option("reduction")) == "none":
        value = Expected(loss, bound, free)
    else:
        value = _reduced(how, loss, bound, ~ignored, free, contract)
    return {"loss": value, "grad": _gradient(rows, bad, free)}


def _gradient(rows: Problem, bad: torch.Tensor, free: torch.Tensor | None) -> Expected:
    """The gradient, exactly 0 where the row is ignored, its upstream gradient is 0 or its class is masked and carries no weight."""
    upstream, ignored = row_upstream(rows), rows.ignored[:, None]
    grad, of_grad = row_gradients(rows, upstream)
    grad = torch.where(bad[:, None], torch.nan, grad.masked_fill(ignored, 0.0))
    exact = ignored | ((upstream == 0)[:, None] & grad.isfinite()) | ((grad == 0) & (rows.y == -torch.inf))
    bound = settled(grad, of_grad, replace(rows.contract, output=rows.contract.input)).masked_fill(exact, 0.0)
    if rows.contract.output.name != "fp32":  # a narrow loss: its upstream gradient may have overflowed
        free = ~upstream.isfinite() if free is None else free | ~upstream.isfinite()
    return Expected(grad, bound, None if free is None else free[:, None].expand_as(grad))


def _reduced(
    how: str, loss: torch.Tensor, bound: torch.Tensor, counted: torch.Tensor, free: torch.Tensor | None, contract: Contract
) -> Expected:
    """[] sum or mean over the rows not ignored, added in any order: R·u relative to the sum of the losses, which are not negative."""
    total, count = loss.sum(), counted.sum().double()
    error = bound.sum() + len(loss) * U * total.abs()
    error = torch.where(total + error > FP32.max, torch.inf, error)  # the sum may overflow where the mean does not
    if how == "mean":
        total, error = total / count, error / count + 2 * U * (total / count).abs()
    return Expected(total, settled(total, error, contract), None if free is None else free.any())


OPERATION = Operation(
    name="cross_entropy",
    summary="logits [R, V], target [R] -> loss [R], and its gradient [R, V]",
    inputs=(Input("target", (0, IGNORED, LARGEST, SMALLEST), column=True), Input("upstream", UPSTREAM)),
    outputs=(Output("loss", per="row", low=0.0), Output("grad", dtype="input")),
    policies={"bad_target": ("error", "nan"), "masked_smoothing": ("skip", "inf")},
    reference=reference,
    traits={
        "accurate": (),
        "real": (),
        "ranges": (),
        "shift_equivariant": ("softcap", "lse_square_scale"),
        "permutation_equivariant": (),
        "masking": ("softcap", "label_smoothing"),
        "targets": (),
        "gradient": (),
        "ignored": (),
        "reductions": (),
    },
    options=tuple(OPTIONS.values()),
    error_models={
        "shift_first": "",
        "unshifted": "the loss is formed as lse − x_t, which rounds relative to the logits' common offset. Form log d − (x_t − m)",
        "scale_first": "the logits are scaled by log2 e before the maximum is subtracted",
    },
    output="fp32",
    call=call,
)
