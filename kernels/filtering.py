"""Filtered softmax of logits [rows, vocab]: probabilities after temperature, top-k, top-p and min-p, renormalised over what is kept.

In this order, each row with parameters of its own: z = (x − max x)/T; top-k keeps exactly k, ties to the lowest ids; top-p keeps a token
iff the mass before it, of what top-k left, is below p of that mass, so the token that crosses p stays; min-p keeps z ≥ log(min_p), and the
maximum. k ≤ 0 or ≥ vocab, p ≥ 1 and min_p ≤ 0 are off, and leave every bit as it is. T = 0 is greedy: 1 at the first maximum.

`auto`      a row's tokens above a floor, 128 at most, decide where they can, and else
`general`   passes over the row by one program, exact for any k, nucleus and ties

Columns of −inf are 0, and so is a row of them. A NaN or +inf makes its own row NaN. No route syncs with the host, uses atomics, or lets the
order of programs matter, so results are deterministic and calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch

import stabcheck
from stabcheck.errors import UsageError
from stabcheck.kernels import filtering_device as device
from stabcheck.kernels.rows import LANES, TILE, aligned, check_choice, check_logits, check_per_row

SPAN = 4096  # columns of a tile
FEW = 128  # candidates
MAX_GROUPED = 262144  # columns whose spans of 256 one program looks through
_SHIFTS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # lowest bits of the fp32 key that are all alike
_DTYPES = {"top_k": torch.int64, "top_p": torch.float32, "min_p": torch.float32}


def filtered_probs(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
    *,
    route: str = "auto",
) -> torch.Tensor:
    """Probabilities, fp32 [rows, vocab], contiguous, exactly 0 where a filter drops the token.

    Parameters
    ----------
    logits: [rows, vocab], fp32, bf16 or fp16, any strides.
    temperature, top_k, top_p, min_p: [rows], fp32, int64, fp32 and fp32; None is off for all rows.
    route: "auto" or "general".

    Raises
    ------
    UsageError: arguments that do not fit together, or an unknown route; the message names the value and the cure.
    """
    check_logits(logits, device.survey)
    if temperature is None:
        raise UsageError("temperature is None; pass one per row: only filters may be None, which is off")
    check_per_row("temperature", temperature, torch.float32, logits)
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    for name, tensor in filters.items():
        if tensor is not None:
            check_per_row(name, tensor, _DTYPES[name], logits)
    check_choice("route", route, ROUTES)
    rows, vocab = logits.shape
    out = torch.empty((rows, vocab), dtype=torch.float32, device=logits.device)
    if rows:
        with torch.cuda.device_of(logits):
            _launch(logits, temperature.contiguous(), filters, out, level_of(vocab, route))
    return out


ROUTES = ("auto", "general")


def level_of(vocab: int, route: str) -> int:
    """How rows find what they keep: see `filtering_device`."""
    if route == "general" or vocab > MAX_GROUPED:
        return 3
    return 0 if vocab <= FEW else 1 if vocab <= SPAN else 2


def pass_shape(logits: torch.Tensor, wide: bool) -> tuple[int, ...]:
    """SHIFT, LANES, STEPS and WIDTH of passes over a row: tiles of 4096, read 16 bytes at a time where possible."""
    width = 16 // logits.element_size() if wide else 1
    return _SHIFTS[logits.dtype], 512, 8 // width, width


def workspace(logits: torch.Tensor, level: int, filtered: bool) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The number of tiles; (m, d) or the winner of each; maxima of its spans and groups; integers for what a row's program sorts out."""
    rows, vocab = logits.shape
    tiles = -(-vocab // SPAN)
    partials = torch.empty((rows, tiles * parts_of(logits), 3), dtype=torch.float32, device=logits.device)
    groups = torch.empty((rows, tiles, 144), dtype=torch.float32, device=logits.device) if filtered and level == 2 else partials
    scratch = torch.empty((rows, 3, FEW), dtype=torch.int32, device=logits.device) if filtered and 0 < level < 3 else partials
    return tiles, partials, groups, scratch


def parts_of(logits: torch.Tensor) -> int:
    """Programs that share a tile in the survey: on a GPU four of one warp, which wait for no other; the interpreter likes few."""
    return 4 if logits.is_cuda else 1


def survey_grid(rows: int, parts: int) -> tuple[int, int, int]:
    """One program per part of a row; a grid's later axes are short."""
    return parts, min(rows, 32768), -(-rows // 32768)


def spans_block(vocab: int, level: int) -> int:
    """The number of spans of 256 columns that a row's program looks through; only level 2 has any."""
    return FEW if level != 2 else max(FEW, 1 << (-(-vocab // SPAN) * 16 - 1).bit_length())


def filled(filters: dict[str, torch.Tensor | None], unused: torch.Tensor) -> tuple[list[torch.Tensor], list[bool]]:
    """A tensor for each filter, contiguous, and whether it is one: what is None is not read."""
    given = list(filters.values())
    return [unused if tensor is None else tensor.contiguous() for tensor in given], [tensor is not None for tensor in given]


def _launch(
    logits: torch.Tensor, temperature: torch.Tensor, filters: dict[str, torch.Tensor | None], out: torch.Tensor, level: int
) -> None:
    rows, vocab = logits.shape
    tensors, has = filled(filters, temperature)
    tiles, partials, groups, scratch = workspace(logits, level, True)  # a greedy row looks for candidates without any filter
    wide, parts = level > 0 and aligned(logits, out), parts_of(logits)  # 128 columns are not worth a variant
    strides: Any = logits.stride()
    selection = torch.empty((rows, 5), dtype=torch.float32, device=logits.device)
    if level > 1:
        device.survey[survey_grid(rows, tiles * parts)](
            logits, temperature, partials, groups, vocab, tiles, rows, *strides, wide, level == 2, parts, num_warps=1
        )
    device.select[(rows,)](
        logits, temperature, *tensors, partials, groups, scratch, selection, vocab, tiles, *strides,
        *has, level, spans_block(vocab, level), *pass_shape(logits, wide), wide, parts, num_warps=16,
    )  # fmt: skip
    device.write[(rows * tiles,)](logits, temperature, selection, out, vocab, tiles, *strides, wide, num_warps=8)


def general(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    return filtered_probs(logits, temperature, top_k, top_p, min_p, route="general")


@stabcheck.kernel("filtered_probs", tile=TILE, lanes=LANES, blocks=(FEW, SPAN), routes={"general": general}, batch_invariant=True)
def auto(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    return filtered_probs(logits, temperature, top_k, top_p, min_p)
