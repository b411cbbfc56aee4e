"""Sampling one token per row of logits [rows, vocab], after temperature, top-k, top-p and min-p (`filtering` has their semantics).

A draw is argmax z_i − log E_i over what is kept, with the exponential noise E of `sampling_noise`, a pure function of (seed, position,
role, token id): equal keys draw equally on every route, alone or in a batch, replayed from a graph or not. Ties go to the lowest id.

T = 0 is greedy: the first maximum. Columns of −inf are never drawn; a row of them is id 0. A row with a NaN or +inf draws some id in range.
No route syncs with the host, uses atomics, or lets the order of programs matter.
"""

from __future__ import annotations

from functools import lru_cache

import torch

import stabcheck
from stabcheck.errors import UsageError
from stabcheck.kernels import sampling_device as device
from stabcheck.kernels.filtering import FEW, ROUTES, SPAN, filled, level_of, parts_of, pass_shape, spans_block, survey_grid, workspace
from stabcheck.kernels.rows import LANES, TILE, aligned, check_choice, check_logits, check_per_row
from stabcheck.kernels.sampling_noise import NOISE_ERROR, exponentials

_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int64,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
}


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
    seed: torch.Tensor,
    position: torch.Tensor,
    *,
    role: int = 0,
    route: str = "auto",
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """One id in [0, vocab) per row, int64 [rows].

    Parameters
    ----------
    logits: [rows, vocab], fp32, bf16 or fp16, any strides.
    temperature, top_k, top_p, min_p, seed, position: [rows], of fp32, int64, fp32, fp32, int64 and int64; None for a filter is off.
    role: who draws (`sampling_noise`), 0 to 65535: each has noise of its own.
    route: "auto" or "general", as in `filtering`; the draw is the same.
    index: int64 [rows]; row r then has the parameters index[r], which are of any one length. On a GPU, one outside is the nearest inside.

    Raises
    ------
    UsageError: arguments that do not fit together, or an unknown route; the message names the value and the cure.
    """
    check_logits(logits, device.survey)
    for name, tensor in (("temperature", temperature), ("seed", seed), ("position", position)):
        if tensor is None:
            raise UsageError(f"{name} is None; pass a tensor of one per row: only top_k, top_p and min_p may be None, which is off")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed, "position": position}
    if index is None:
        for name, tensor in given.items():
            if tensor is not None:
                check_per_row(name, tensor, _DTYPES[name], logits)
    else:
        _check_pool(given, index, logits)
    check_choice("route", route, ROUTES)
    if not 0 <= role < 1 << 16:
        raise UsageError(f"role is {role}; pass 0 to 65535, whose noise is kept apart")
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.shape[0]:
        with torch.cuda.device_of(logits):
            _launch(logits, given, index, out, role, level_of(logits.shape[1], route))
    return out


def sample_pooled(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
    seed: torch.Tensor,
    position: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:
    """`sample`, with the parameters of row r at index[r] of a request pool."""
    return sample(logits, temperature, top_k, top_p, min_p, seed, position, index=index)


def _check_pool(given: dict[str, torch.Tensor | None], index: torch.Tensor, logits: torch.Tensor) -> None:
    check_per_row("index", index, torch.int64, logits)
    assert given["temperature"] is not None
    pool = given["temperature"].shape[:1]
    if len(pool) != 1 or pool[0] == 0:
        raise UsageError(
            f"temperature has shape {list(given['temperature'].shape)}; pass the pool's, one per request, i.e. of shape [requests]"
        )
    for name, tensor in given.items():
        if tensor is None:
            continue
        if tensor.shape != pool:
            raise UsageError(f"{name} has shape {list(tensor.shape)} but temperature has {list(pool)}; pass the parameters of one pool")
        if tensor.dtype != _DTYPES[name] or tensor.device != logits.device:
            raise UsageError(
                f"{name} is {tensor.dtype} on {tensor.device}; pass {name}.to({_DTYPES[name]}) on the logits' device, {logits.device}"
            )
    if index.device.type == "cpu" and bool(((index < 0) | (index >= pool[0])).any()):
        raise UsageError(f"index has values from {int(index.min())} to {int(index.max())} but the pool has {pool[0]} requests")


def _early(logits: torch.Tensor) -> bool:
    """Whether `draw` is launched early, as measured on one H200, in µs, early / not, without filters and with top-k and top-p.

    1 × 151936 7.7 / 9.3, 21.2 / 23.6     128 × 32768 15.0 / 16.6, 26.1 / 28.3     512 × 32768 34.4 / 35.8, 85.4 / 88.2
    128 × 128256 34.1 / 35.6, 44.0 / 46.0     512 × 151936 125.1 / 125.8, 166 / 158: it takes up room
    """
    return logits.shape[0] <= 512 and logits.numel() <= 1 << 25 and _can_launch_early(logits.device)


@lru_cache(maxsize=16)
def _can_launch_early(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def _launch(
    logits: torch.Tensor, given: dict[str, torch.Tensor | None], index: torch.Tensor | None, out: torch.Tensor, role: int, level: int
) -> None:
    rows, vocab = logits.shape
    tensors, (_, *has, _, _) = filled(given, out)
    tiles, partials, groups, scratch = workspace(logits, level, any(has))
    wide, parts, early = level > 0 and aligned(logits), parts_of(logits), level > 1 and _early(logits)
    sizes = (vocab, tiles, tensors[0].shape[0], role, *logits.stride())
    options = (*has, index is not None, level)
    inputs = (logits, *tensors, out if index is None else index.contiguous())
    if level > 1:
        device.survey[survey_grid(rows, tiles * parts)](
            *inputs, partials, groups, rows, *sizes, *options, wide, parts, early, num_warps=1, maxnreg=96
        )
    device.draw[(rows,)](
        *inputs, partials, groups, scratch, out, *sizes, *options, spans_block(vocab, level), *pass_shape(logits, wide), wide, parts, early,
        num_warps=16 if any(has) else 4, **({"launch_pdl": True} if early else {}),
    )  # fmt: skip


def general(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    return sample(logits, temperature, top_k, top_p, min_p, seed, position, route="general")


@stabcheck.kernel(
    "sample",
    tile=TILE,
    lanes=LANES,
    blocks=(FEW, SPAN),
    routes={"general": general},
    pooled=sample_pooled,
    noise=exponentials,
    noise_error=NOISE_ERROR,
    batch_invariant=True,
)
def auto(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    return sample(logits, temperature, top_k, top_p, min_p, seed, position)
