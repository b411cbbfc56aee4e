"""Fused log-probability of one token per row, and the row's entropy: log softmax(logits / T)[label] and −Σ p log p, in one read.

Two routes with the same mathematics (`token_logprob_device` has it): one program walks a row, or, for few long rows, many programs share
it, each a split of 4096 columns, and a second launch folds what they found. The logits are shifted before they are divided by T, so no T
and no logit overflows on the way. Not differentiable.

A masked column (−inf) adds nothing to the entropy, and as a label has the log-probability −inf. Rows of −inf, and rows with a NaN or a
+inf, are NaN. No route syncs with the host (but `bad_label="raise"` does), uses atomics, or lets the order of programs matter.
"""

from __future__ import annotations

import torch

import stabcheck
from stabcheck.kernels import token_logprob_device as device
from stabcheck.kernels.rows import BAD, LANES, TILE, aligned, check_choice, check_columns, check_logits, check_per_row, tile_of

SPLIT = 4096
_TRAP = {"debug": True, "sanitize_overflow": False}  # device_assert needs debug, which would also check every integer addition


def token_logprob(
    logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, *, bad_label: str = "trap"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of labels [rows] (int64) and entropy, both fp32 [rows], of logits [rows, vocab] at temperature [rows] (fp32, > 0).

    Parameters
    ----------
    logits: fp32, bf16 or fp16, any strides.
    bad_label: a label outside [0, vocab) stops the device ("trap", as torch's own indexing; costs nothing), raises here, which waits for
        the device ("raise"; traps in a CUDA graph), or makes both results of its row NaN ("nan"). It is never used as an address. On the
        CPU, "trap" raises.

    Raises
    ------
    UsageError: arguments that do not fit together; the message names the value and the cure.
    """
    check_logits(logits, device.sums)
    check_per_row("labels", labels, torch.int64, logits)
    check_per_row("temperature", temperature, torch.float32, logits)
    check_choice("bad_label", bad_label, BAD)
    rows, vocab = logits.shape
    if bad_label == "raise" or (bad_label == "trap" and logits.device.type == "cpu"):
        check_columns("a label", labels, vocab)
    out = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    if rows:
        launch = _split if vocab > 32768 and rows <= 128 else _whole  # µs at 128256 in bf16: 22 / 24 for 128 rows, 8 / 19 for 1
        with torch.cuda.device_of(logits):
            launch(logits, labels, temperature.contiguous(), out, logits.is_cuda and bad_label != "nan", bad_label == "nan")
    logprob, entropy = out.unbind()
    return logprob, entropy


def _whole(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor, trap: bool, nan: bool) -> None:
    rows, vocab = logits.shape
    wide = aligned(logits)
    lanes, steps, width = tile_of(vocab, logits.element_size(), wide)
    device.sums[(rows,)](
        logits, labels, temperature, out, vocab, 1, *logits.stride(), labels.stride(0), lanes, steps, width, wide, 0, trap, nan,
        num_warps=lanes // 32, **(_TRAP if trap else {}),
    )  # fmt: skip


def _split(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor, trap: bool, nan: bool) -> None:
    rows, vocab = logits.shape
    wide = aligned(logits)
    width = 16 // logits.element_size() if wide else 1
    splits = -(-vocab // SPLIT)
    partials = torch.empty((rows, splits, 3), dtype=torch.float32, device=logits.device)
    device.sums[(rows * splits,)](
        logits, labels, temperature, partials, vocab, splits, *logits.stride(), labels.stride(0), 128, 32 // width, width, wide, SPLIT,
        trap, nan, num_warps=4, **(_TRAP if trap else {}),
    )  # fmt: skip
    device.fold[(rows,)](
        logits, labels, temperature, partials, out, vocab, splits, *logits.stride(), labels.stride(0), 128, wide, nan, num_warps=4
    )


@stabcheck.kernel("token_logprob", policies={"bad_target": "error"}, tile=TILE, lanes=LANES, blocks=(1024, 4096, 8192))
def raising(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return token_logprob(logits, labels, temperature, bad_label="raise")


@stabcheck.kernel("token_logprob", policies={"bad_target": "nan"}, tile=TILE, lanes=LANES, blocks=(1024, 4096, 8192))
def poisoning(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return token_logprob(logits, labels, temperature, bad_label="nan")
