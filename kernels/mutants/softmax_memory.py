"""Softmax mutants that compute rightly and go wrong in memory: which address, how often, in which order."""

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import TILE, every_column, launch, mutant, shifted_then_scaled, softmax, tile


def _once(call, quantiles):
    """A benchmark that runs each candidate a single time and finds all of them equally fast."""
    call()
    return [1.0] * len(quantiles)


_tuned = triton.autotune(  # the mistake: no restore_value=["x"], so every candidate softmaxes what the last one left
    [triton.Config({"BLOCK": TILE}), triton.Config({"BLOCK": 2 * TILE})], key=["V"], do_bench=_once
)(softmax)


def _tuned_in_place(logits, temperature):
    return launch(_tuned, logits, temperature, logits)


@mutant("SM6", killed_by=("in_place",), vocab=4, in_place=_tuned_in_place)
def tunes_on_the_buffer_itself(logits, temperature):
    """In place, tunes on the caller's buffer without restoring it: a first call applies softmax several times (SGLang #20501)."""
    return launch(softmax, logits, temperature)


def _wrapped_in_place(logits, temperature):
    return wraps_at_32_bits(logits, temperature, out=logits)


# gpu_only: a buffer of more than 2^31 logits is beyond the interpreter
@mutant("SM8", killed_by=("offsets64",), rows=None, in_place=_wrapped_in_place, gpu_only=True)
def wraps_at_32_bits(logits, temperature, *, out=None):
    """Computes a row's offset in 32 bits: from 2^31 elements on it wraps and lands before the buffer (the softmax set)."""
    return launch(softmax, logits, temperature, out, OFFSET=tl.int32)


@mutant("SM12", killed_by=("layout",), rows=2)
def takes_the_vocab_for_the_row_stride(logits, temperature):
    """Steps from row to row by V and not by the row stride: padded rows are mixed up (vLLM #42684)."""
    row_stride, column_stride = logits.stride()
    step = min(row_stride, logits.shape[1])  # never the longer step: it would leave the buffer
    return launch(softmax, logits.as_strided(logits.shape, (step, column_stride)), temperature)


@triton.jit
def _one_more_column(V, BLOCK: tl.constexpr):
    return V + 1


@mutant("SM16", killed_by=("memory",))
def writes_past_the_row(logits, temperature, *, out=None):
    """Writes one element past the end of every row: its mask says columns <= V (the softmax set)."""
    if out is None:
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return launch(softmax, logits, temperature, out, WRITTEN=_one_more_column if _room_after(out) else every_column)


def _room_after(out: torch.Tensor) -> bool:
    """Whether the storage goes on after the last element: a mutant must not break the process that tests it."""
    rows, vocab = out.shape
    past = out.storage_offset() + (rows - 1) * out.stride(0) + vocab * out.stride(1)
    return past < out.untyped_storage().nbytes() // out.element_size()


@triton.jit(do_not_specialize=range(11))
def _split(
    x, temperature, out, V, x_row, x_col, t_row, out_row, out_col, m, d, WRITE: tl.constexpr, BLOCK: tl.constexpr = 128
):  # fmt: skip
    """One program per row and split: add the split's part to d, or, once d is complete, write the split."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    values = tile(x + row * x_row, columns, V, x_col, float("-inf"))  # [BLOCK]
    e = tl.exp(shifted_then_scaled(values, tl.load(m + row), tl.load(temperature + row * t_row)))  # [BLOCK]
    if WRITE:
        tl.store(out + row * out_row + columns.to(tl.int64) * out_col, e / tl.load(d + row), mask=columns < V)
    else:
        tl.atomic_add(d + row, tl.sum(e, axis=0), sem="relaxed")


# gpu_only: the interpreter runs programs one after another; fp32 only: 16 bits round most of the difference away
@mutant("SM17", killed_by=("determinism",), rows=None, dtypes=["fp32"], gpu_only=True)
def adds_splits_atomically(logits, temperature):
    """Adds the splits' sums with float atomics: the denominator's last bits depend on who comes first (the softmax set)."""
    rows, vocab = logits.shape
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    m = logits.amax(dim=1).float()  # exact in any order
    d = torch.zeros_like(m)
    strides = (*logits.stride(), *temperature.stride(), *out.stride())
    if rows:
        for write in (False, True):
            _split[(rows, triton.cdiv(vocab, TILE))](logits, temperature, out, vocab, *strides, m, d, WRITE=write)
    return out
