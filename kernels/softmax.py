"""Fused temperature softmax of logits [rows, vocab]: probabilities = softmax(logits / temperature), one temperature per row.

Three routes with the same mathematics (`softmax_device` has it, with the passes of each over memory); `auto` picks by shape:

`single_pass`   rows of up to 32768: a row is read once and stays in registers
`online`        longer rows: one program walks the row twice, and the second walk finds most of it in the caches
`split`         few long rows: many programs share a row, in two launches

A row whose logits are all −inf is NaN, or zeros with `empty_row="zeros"`. A NaN or a +inf makes its own row NaN. Temperature 0 is
greedy: 1 at the first maximum. A negative or NaN temperature is not defined. No route syncs with the host, uses atomics, or lets the
order of programs matter, so results are deterministic and calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton

import stabcheck
from stabcheck.errors import UnsupportedInput, UsageError
from stabcheck.kernels import softmax_device as device

MAX_SINGLE = 32768  # logits a program can hold in registers
MAX_VOCAB = 2**31 - 2**16
_BLOCKS = ((1024, 4), (8192, 8), (MAX_SINGLE, 16))  # single_pass: the smallest block that holds the row, and its warps
_EMPTY = {"nan": float("nan"), "zeros": 0.0}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def softmax(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    empty_row: str = "nan",
    route: str = "auto",
) -> torch.Tensor:
    """Probabilities of logits [rows, vocab] (fp32, bf16 or fp16, any strides) at temperature [rows] (fp32).

    Parameters
    ----------
    out: written and returned; `out=logits` works in place. Any other overlap with the logits is not defined.
    out_dtype: the logits' dtype (the default) or torch.float32.
    empty_row: "nan" or "zeros", for a row whose logits are all −inf.
    route: "auto", "single_pass" (vocab ≤ 32768), "online" or "split".

    Raises
    ------
    UsageError: arguments that do not fit together; the message names the value and the cure.
    UnsupportedInput: a row too long for the route asked for.
    """
    out = _checked(logits, temperature, out, out_dtype, empty_row, route)
    rows, vocab = logits.shape
    if rows == 0:
        return out
    chosen = _choose(rows, vocab) if route == "auto" else route
    with torch.cuda.device_of(logits):
        _ROUTES[chosen](logits, temperature.contiguous(), out, _EMPTY[empty_row])
    return out


def _choose(rows: int, vocab: int) -> str:
    """The fastest route, as measured on one H200 (µs, bf16: single_pass / online / split; fp32 changes sides at the same places).

    vocab   rows:    32                   128                  512                 2048
      8192     5.1 /  8.7 /    —     6.7 /  7.1 /    —    10.1 / 10.5 /    —    23.4 / 25.9 /    —
     32000     8.9 / 11.3 / 10.6    11.0 / 13.0 / 12.7    30.2 / 24.1 /    —     100 / 83.5 /    —
    128256       — / 16.9 / 13.3       — / 23.9 / 33.3       — / 83.1 / 107
    At 64 rows of 128256, online has 18.6 and split 19.2.
    """
    if vocab <= 8192 or (vocab <= MAX_SINGLE and rows <= 132):  # 132: a long row fills a multiprocessor, and an H200 has 132
        return "single_pass"
    return "split" if vocab > MAX_SINGLE and rows <= 48 else "online"


def _single_pass(logits: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor, empty: float) -> None:
    rows, vocab = logits.shape
    block, warps = next((block, warps) for block, warps in _BLOCKS if vocab <= block)
    device.single_pass[(rows,)](
        logits, temperature, out, vocab, *logits.stride(), *out.stride(), empty, block, _aligned(logits, out), num_warps=warps
    )


def _online(logits: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor, empty: float) -> None:
    rows, vocab = logits.shape
    itemsize, aligned = logits.element_size(), _aligned(logits, out)
    warps, each = (4, 8) if vocab <= 4096 else (8, 32) if vocab * itemsize <= 65536 else (32, 32)  # each: logits per lane and tile
    width = 16 // itemsize if aligned else 1
    device.online[(rows,)](
        logits, temperature, out, vocab, *logits.stride(), *out.stride(), empty, 32 * warps, each // width, width, aligned, num_warps=warps
    )


def _split(logits: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor, empty: float) -> None:
    rows, vocab = logits.shape
    aligned = _aligned(logits, out)
    block = 4096 if vocab > 4096 else 512
    splits = -(-vocab // block)
    partials = torch.empty((rows, splits, 3), dtype=torch.float32, device=logits.device)
    grid = (rows * splits,)
    device.split_sums[grid](logits, temperature, partials, vocab, splits, *logits.stride(), block, aligned, num_warps=4)
    lanes = max(64, 1 << (splits - 1).bit_length())
    device.split_write[grid](
        logits, temperature, partials, out, vocab, splits, *logits.stride(), *out.stride(), empty, block, lanes, aligned, num_warps=4
    )


_ROUTES = {"single_pass": _single_pass, "online": _online, "split": _split}


def _aligned(logits: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether 16-byte loads and stores are possible; 16 elements, since Triton knows a number as a multiple of 16 or not at all."""
    numbers = (logits.shape[1], logits.stride(0), out.stride(0), logits.data_ptr(), out.data_ptr())
    return logits.stride(1) == out.stride(1) == 1 and all(number % 16 == 0 for number in numbers)


def _checked(
    logits: torch.Tensor, temperature: torch.Tensor, out: torch.Tensor | None, out_dtype: torch.dtype | None, empty_row: str, route: str
) -> torch.Tensor:
    """The tensor to write, after every check; plain ifs, since a call takes microseconds and a message is formatted only to be raised."""
    shape, dtype = logits.shape, logits.dtype
    if len(shape) != 2:
        raise UsageError(f"logits have shape {list(shape)}; pass [rows, vocab], e.g. logits.reshape(-1, logits.shape[-1])")
    rows, vocab = shape
    if not 0 < vocab <= MAX_VOCAB:
        raise UsageError(f"logits have a vocab of {vocab}; pass 1 to {MAX_VOCAB} columns, which the kernels index with 32 bits")
    if dtype not in _DTYPES:
        raise UsageError(f"logits have dtype {dtype}; pass torch.float32, torch.bfloat16 or torch.float16")
    if logits.device.type == "cpu" and isinstance(device.online, triton.JITFunction):
        raise UsageError("logits are on the CPU; move them to a GPU, or set TRITON_INTERPRET=1 before triton is imported")
    if temperature.shape != (rows,):
        raise UsageError(
            f"temperature has shape {list(temperature.shape)} but logits have {rows} rows; "
            f"pass one temperature per row, e.g. torch.ones({rows})"
        )
    if temperature.dtype != torch.float32:
        raise UsageError(f"temperature has dtype {temperature.dtype}; pass temperature.float()")
    if temperature.device != logits.device:
        raise UsageError(f"temperature is on {temperature.device} but logits are on {logits.device}; pass temperature.to(logits.device)")
    if empty_row not in _EMPTY:
        raise UsageError(f"unknown empty_row {empty_row!r}; use {' or '.join(map(repr, _EMPTY))}")
    if route != "auto" and route not in _ROUTES:
        raise UsageError(f"unknown route {route!r}; use 'auto', {', '.join(map(repr, _ROUTES))}")
    if route == "single_pass" and vocab > MAX_SINGLE:
        raise UnsupportedInput(f"route 'single_pass' holds up to {MAX_SINGLE} logits but the vocab is {vocab}; use 'online' or 'split'")
    wanted = out_dtype or (dtype if out is None else out.dtype)
    if wanted not in (dtype, torch.float32):
        raise UsageError(f"the output would have dtype {wanted}; use the logits' {dtype} or torch.float32")
    if out is None:
        return torch.empty((rows, vocab), dtype=wanted, device=logits.device)
    if out.shape != shape or out.dtype != wanted or out.device != logits.device:
        raise UsageError(f"out is {out.dtype} {list(out.shape)} on {out.device}; pass one of {wanted} {list(shape)} on {logits.device}")
    if any(stride == 0 and size > 1 for size, stride in zip(shape, out.stride(), strict=True)):
        raise UsageError(f"out has strides {out.stride()}, so that elements share memory; pass out.contiguous()")
    return out


GREEDY = {"zero_temperature": "greedy"}


@stabcheck.kernel("temperature_softmax", policies=GREEDY, tile=1024, blocks=(1024, 8192), max_vocab=MAX_SINGLE, batch_invariant=True)
def single_pass(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, route="single_pass")


@stabcheck.kernel("temperature_softmax", policies=GREEDY, tile=1024, blocks=(1024, 8192, 32768), batch_invariant=True)
def online(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, route="online")


@stabcheck.kernel("temperature_softmax", policies=GREEDY, tile=1024, blocks=(512, 4096), batch_invariant=True)
def split(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, route="split")


def in_place(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, out=logits)


@stabcheck.kernel(
    "temperature_softmax",
    policies=GREEDY,
    tile=1024,
    blocks=(1024, 4096, 32768),
    in_place=in_place,
    routes={"single_pass": single_pass, "online": online, "split": split},
)
def auto(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature)


@stabcheck.kernel("temperature_softmax", policies=GREEDY, tile=1024, blocks=(1024, 4096, 32768), output="fp32")
def auto_fp32(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, out_dtype=torch.float32)


@stabcheck.kernel("temperature_softmax", policies=GREEDY | {"empty_row": "zeros"}, tile=1024, blocks=(1024, 4096, 32768))
def auto_zeros(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return softmax(logits, temperature, empty_row="zeros")
