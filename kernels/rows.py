"""What the launchers of row reductions share: the checks of their arguments, and the tile of logits a program works with."""

from __future__ import annotations

from typing import Any

import torch
import triton

from stabcheck.errors import UsageError

MAX_VOCAB = 2**31 - 2**16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BAD = ("trap", "raise", "nan")  # what an index that is no column does


def check_logits(logits: torch.Tensor, kernel: Any) -> None:
    """Plain ifs, since a call takes microseconds and a message is formatted only to be raised."""
    shape, dtype = logits.shape, logits.dtype
    if len(shape) != 2:
        raise UsageError(f"logits have shape {list(shape)}; pass [rows, vocab], e.g. logits.reshape(-1, logits.shape[-1])")
    if not 0 < shape[1] <= MAX_VOCAB:
        raise UsageError(f"logits have a vocab of {shape[1]}; pass 1 to {MAX_VOCAB} columns, which the kernels index with 32 bits")
    if dtype not in DTYPES:
        raise UsageError(f"logits have dtype {dtype}; pass torch.float32, torch.bfloat16 or torch.float16")
    if logits.device.type == "cpu" and isinstance(kernel, triton.JITFunction):
        raise UsageError("logits are on the CPU; move them to a GPU, or set TRITON_INTERPRET=1 before triton is imported")


def check_per_row(name: str, tensor: torch.Tensor, dtype: torch.dtype, logits: torch.Tensor) -> None:
    rows = logits.shape[0]
    if tensor.shape != (rows,):
        raise UsageError(f"{name} has shape {list(tensor.shape)} but logits have {rows} rows; pass one per row, i.e. shape [{rows}]")
    if tensor.dtype != dtype:
        raise UsageError(f"{name} has dtype {tensor.dtype}; pass {name}.to({dtype})")
    if tensor.device != logits.device:
        raise UsageError(f"{name} is on {tensor.device} but logits are on {logits.device}; pass {name}.to({str(logits.device)!r})")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"unknown {name} {value!r}; use {', '.join(map(repr, known))}")


def check_columns(name: str, columns: torch.Tensor, vocab: int, ignore: int | None = None) -> None:
    """Raise for the first row whose column is outside [0, vocab) and not `ignore`. Waits for the device, but not in a graph capture."""
    if columns.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    bad = (columns < 0) | (columns >= vocab)
    if ignore is not None:
        bad &= columns != ignore
    if bad.any():
        row = int(bad.nonzero()[0])
        cure = f"pass 0 to {vocab - 1}" + ("" if ignore is None else f", or ignore_index ({ignore}) to leave the row out")
        raise UsageError(f"{name} is {int(columns[row])} in row {row} but logits have a vocab of {vocab}; {cure}")


def tile_of(vocab: int, itemsize: int, aligned: bool) -> tuple[int, int, int]:
    """Lanes, steps and width of the tile [lanes, steps, width] for a program that walks a row.

    A tile of a short row has a width of 1: each lane adds as few of its terms as can be, as `TILE` and `LANES` promise.
    """
    if vocab <= 1024:
        return 128, 8, 1
    if vocab <= 4096:
        return 128, 32, 1
    width = 16 // itemsize if aligned else 1
    return 256, 32 // width, width


TILE, LANES = 8192, 128  # d is summed at least as well as in tiles of 8192 by 128 lanes, whatever the vocab


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether 16-byte loads and stores are possible; 16 elements, since Triton knows a number as a multiple of 16 or not at all."""
    return all(t.shape[1] % 16 == 0 and t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.data_ptr() % 16 == 0 for t in tensors)
