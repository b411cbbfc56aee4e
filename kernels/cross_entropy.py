"""Fused cross-entropy of logits [rows, vocab] with its gradient: label smoothing, z-loss, softcap, ignored rows; O(rows) extra memory.

The forward pass reads the logits once and keeps three or four floats a row; the backward pass reads them once more and writes the gradient,
over the logits with `inplace_backward=True`. Computing the gradient in the forward pass and scaling it afterwards would save that read, but
would round it before the upstream gradient is known: small fp16 gradients would be lost, whatever the loss scale.

The loss is formed from differences, (1 − ε)(log d − z_t) with z = y − max y and d = Σ exp(z), so a common offset of the logits changes
nothing, and the gradient is rounded once, from fp32, the upstream gradient and the −1 at the target included.

A masked class (−inf) takes no part in label smoothing; as a target it gives an infinite loss and a finite gradient. Rows of −inf, and rows
with a NaN or, without softcap, a +inf, give NaN; ignored rows give exactly 0 whatever they hold. Deterministic, without atomics, and
without waiting for the device (but `bad_target="raise"` does, outside a graph), so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import torch

import stabcheck
from stabcheck.errors import UsageError
from stabcheck.kernels.cross_entropy_function import KERNEL, CrossEntropy, Options, compute_loss
from stabcheck.kernels.rows import BAD, LANES, TILE, check_choice, check_columns, check_logits, check_per_row

_SMOOTHINGS = ("none", "skip", "inf")  # as the device numbers them
_REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    lse_square_scale: float = 0.0,
    softcap: float = 0.0,
    reduction: str = "mean",
    masked_smoothing: str = "skip",
    inplace_backward: bool = False,
    bad_target: str = "trap",
) -> torch.Tensor:
    """Loss, fp32, of logits [rows, vocab] (fp32, bf16 or fp16, any strides) against target [rows] (int64); differentiable once.

    Parameters
    ----------
    ignore_index: rows with this target count for nothing; it may be a class.
    label_smoothing: ε in [0, 1], spread evenly over all classes.
    lse_square_scale: adds this times the square of the row's log-sum-exp (z-loss).
    softcap: c > 0 replaces the logits by c · tanh(logits / c).
    reduction: "mean" over the rows not ignored (NaN if there are none), "sum" or "none".
    masked_smoothing: classes at −inf get no share of ε ("skip"), or make the loss infinite if ε > 0, as in torch ("inf").
    inplace_backward: the gradient overwrites the logits, which nothing may need afterwards; not for a leaf, whose data it would replace.
    bad_target: a target that is neither a class nor ignore_index stops the device ("trap", as in torch; costs nothing), raises here, which
        waits for the device ("raise"; traps in a CUDA graph), or makes its row NaN ("nan"). It is never used as an address. On the CPU,
        "trap" raises.

    Raises
    ------
    UsageError: arguments that do not fit together; the message names the value and the cure.
    """
    check_logits(logits, KERNEL)
    check_per_row("target", target, torch.int64, logits)
    check_choice("reduction", reduction, _REDUCTIONS)
    check_choice("masked_smoothing", masked_smoothing, _SMOOTHINGS[1:])
    check_choice("bad_target", bad_target, BAD)
    _check_numbers(ignore_index, label_smoothing, lse_square_scale, softcap)
    if inplace_backward and any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride(), strict=True)):
        raise UsageError(f"logits have strides {logits.stride()}, so that elements share memory; pass logits.contiguous()")
    if bad_target == "raise" or (bad_target == "trap" and logits.device.type == "cpu"):
        check_columns("a target", target, logits.shape[1], ignore_index)
    smooth = _SMOOTHINGS.index(masked_smoothing) if label_smoothing else 0
    o = Options(
        ignore_index,
        float(label_smoothing),
        float(lse_square_scale),
        float(softcap),
        reduction,
        smooth,
        inplace_backward,
        bad_target == "nan",
    )
    if torch.is_grad_enabled() and logits.requires_grad:
        return CrossEntropy.apply(logits, target, o)  # type: ignore[no-any-return]
    return compute_loss(logits, target, o, None)


def _check_numbers(ignore: int, eps: float, square: float, softcap: float) -> None:
    if type(ignore) is not int:
        raise UsageError(f"ignore_index is {ignore!r}; pass a whole number, one that is no class to ignore nothing")
    if not 0 <= eps <= 1:
        raise UsageError(f"label_smoothing is {eps}; pass 0 to 1")
    if not 0 <= square <= 1e30:
        raise UsageError(f"lse_square_scale is {square}; pass 0 to 1e30")
    if softcap and not 1e-30 <= softcap <= 1e30:
        raise UsageError(f"softcap is {softcap}; pass 1e-30 to 1e30, or 0 for none")


class CrossEntropyLoss(torch.nn.Module):
    """`torch.nn.CrossEntropyLoss` on these kernels, for input (N, C) or (C) and class indices.

    Other than torch's: the loss is fp32 whatever the dtype of the input; label smoothing leaves out masked classes (torch: an infinite
    loss) unless masked_smoothing="inf"; a target out of range is as `bad_target` says. There are no class weights, no class probabilities
    as target, no further dimensions, no second derivatives and no torch.func transforms; targets are int64, the input fp32, bf16 or fp16.
    `options` are those of `cross_entropy`.
    """

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if weight is not None:
            raise UsageError("weight is not None; class weights are not supported: use torch.nn.CrossEntropyLoss")
        if size_average is not None or reduce is not None:
            raise UsageError("size_average and reduce are deprecated in torch and not supported; pass reduction='mean', 'sum' or 'none'")
        known = list(signature(cross_entropy).parameters)[2:]  # but for the tensors
        if unknown := sorted(set(options) - set(known)):
            raise UsageError(f"unknown option {unknown[0]!r}; cross_entropy has {', '.join(known)}")
        check_choice("reduction", reduction, _REDUCTIONS)
        self.weight, self.ignore_index, self.reduction, self.label_smoothing = weight, ignore_index, reduction, label_smoothing
        self.options = options

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if input.ndim not in (1, 2):
            raise UsageError(f"input has shape {list(input.shape)}; pass (N, C) or (C), e.g. input.movedim(1, -1).flatten(0, -2)")
        if target.is_floating_point():
            raise UsageError(f"target has dtype {target.dtype}; class probabilities are not supported, pass class indices (torch.int64)")
        if input.ndim == 2:
            return self._loss(input, target)
        if target.ndim:
            raise UsageError(f"target has shape {list(target.shape)} but input has no batch; pass one class index, shape []")
        loss = self._loss(input[None], target[None])
        return loss[0] if loss.ndim else loss

    def _loss(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        own = {"ignore_index": self.ignore_index, "reduction": self.reduction, "label_smoothing": self.label_smoothing}
        return cross_entropy(input, target, **own, **self.options)


_registered = partial(stabcheck.kernel, "cross_entropy", tile=TILE, lanes=LANES, blocks=(1024, 2048, 4096, 8192))


def in_place(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return cross_entropy(logits, target, bad_target="raise", inplace_backward=True, **options)


@_registered(policies={"bad_target": "error"}, in_place=in_place)
def raising(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return cross_entropy(logits, target, bad_target="raise", **options)


@_registered(policies={"bad_target": "nan"})
def poisoning(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return cross_entropy(logits, target, bad_target="nan", **options)


@_registered(policies={"bad_target": "error", "masked_smoothing": "inf"})
def as_torch(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return cross_entropy(logits, target, bad_target="raise", masked_smoothing="inf", **options)
