"""The cross-entropy as torch.autograd sees it, and its two launches; `cross_entropy` checks the arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from stabcheck.errors import UsageError
from stabcheck.kernels import cross_entropy_device as device
from stabcheck.kernels.rows import aligned, tile_of

KERNEL = device.forward
# Columns at once, and how many times. 4096 × 128256 in bf16 take 510 µs (a copy 499); 2048 once 555, 8192 once 653, 1024 four times 523.
_BLOCK, _BLOCKS = 2048, 4
_TRAP = {"debug": True, "sanitize_overflow": False}  # device_assert needs debug, which would also check every integer addition


class Options(NamedTuple):
    """`smooth`: as the device numbers it; `nan`: whether a bad target makes its row NaN; the others as `cross_entropy` has them."""

    ignore: int
    eps: float
    square: float
    softcap: float
    reduction: str
    smooth: int
    inplace: bool
    nan: bool


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, o: Options) -> torch.Tensor:
        saved = torch.empty(1 + (4 if o.smooth == 1 else 3) * len(target), dtype=torch.float32, device=logits.device)
        ctx.save_for_backward(logits, target, saved)
        ctx.o = o
        return compute_loss(logits, target, o, saved)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if torch.is_grad_enabled():  # torch's own once_differentiable lets a second derivative through as zero where upstream is constant
            raise UsageError("create_graph=True asks for second derivatives, which this kernel has not; use torch.nn.CrossEntropyLoss")
        logits, target, saved = ctx.saved_tensors
        grad = logits.detach() if ctx.o.inplace else torch.empty_like(logits)
        if len(target):
            _write_gradient(logits, grad, target, upstream, saved, ctx.o)
        if ctx.o.inplace:
            torch.autograd.graph.increment_version(logits)  # who else saved the logits learns that they are gone
        return grad, None, None


def compute_loss(logits: torch.Tensor, target: torch.Tensor, o: Options, saved: torch.Tensor | None) -> torch.Tensor:
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if not rows:
        return losses if o.reduction == "none" else losses.mean() if o.reduction == "mean" else losses.sum()
    wide, trap = aligned(logits), logits.is_cuda and not o.nan
    lanes, steps, width = tile_of(vocab, logits.element_size(), wide)
    with torch.cuda.device_of(logits):
        device.forward[(rows,)](
            logits, target, losses, saved, vocab, *logits.stride(), target.stride(0), o.ignore, 1 - o.eps, o.eps / vocab, o.square,
            o.softcap, _unit(vocab), lanes, steps, width, wide, o.smooth, o.softcap > 0, trap, o.nan,
            num_warps=lanes // 32, **(_TRAP if trap else {}),
        )  # fmt: skip
        if o.reduction != "mean":
            return losses if o.reduction == "none" else losses.sum()
        loss = torch.empty((), dtype=torch.float32, device=logits.device)
        block = 4096 if rows <= 4096 else 16384
        device.mean[(1,)](losses, target, loss, saved, rows, target.stride(0), o.ignore, _unit(rows), block, num_warps=block // 512)
    return loss


def _write_gradient(
    logits: torch.Tensor, grad: torch.Tensor, target: torch.Tensor, upstream: torch.Tensor, saved: torch.Tensor, o: Options
) -> None:
    rows, vocab = logits.shape
    chunks = -(-vocab // (_BLOCK * _BLOCKS))
    with torch.cuda.device_of(logits):
        device.backward[(rows * chunks,)](
            logits, grad, target, upstream, saved, vocab, chunks, *logits.stride(), *grad.stride(), target.stride(0),
            upstream.stride(0) if upstream.ndim else 0, o.ignore, 1 - o.eps, o.eps / vocab, o.square, o.softcap,
            _BLOCK, _BLOCKS, aligned(logits, grad), o.smooth, o.square > 0, o.softcap > 0, o.reduction == "mean", num_warps=4,
        )  # fmt: skip


def _unit(number: int) -> float:
    """A power of two of which `number` make at most 1."""
    return 2.0 ** -(number - 1).bit_length()
