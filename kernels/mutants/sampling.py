"""Sampling mutants: `sampling_skeleton` with one mistake each."""

from functools import partial

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.sampling_skeleton import (
    NOISE_ERROR,
    dropped,
    exponential,
    kept,
    keys,
    noise,
    race,
    rank,
    sample,
    sample_in_torch,
    value_of,
)
from stabcheck.kernels.mutants.skeleton import mutant, tile

mutant = partial(mutant, operation="sample")


@triton.jit
def _first_of_its_value(x, V, x_col, id, BLOCK: tl.constexpr):
    value = value_of(x, x_col, id)
    first = id
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)  # [BLOCK]
        same = (tile(x, ids, V, x_col, float("nan")) == value) & (ids < V)  # [BLOCK]
        first = tl.minimum(first, tl.min(tl.where(same, ids, 0x7FFFFFFF), axis=0))
    return first


@mutant("SA2", killed_by=("draws",), rows=None)
def resolves_the_rank_by_value(logits, *parameters):
    """Looks up the id of the rank it drew by its value: of ties, the lowest id is drawn in place of all (TokenSpeed #280)."""
    return sample(logits, *parameters, RESOLVED=_first_of_its_value)


@triton.jit(do_not_specialize=range(10))
def _rejecting(
    x, maximum, temperature, lasts, key, top, out, V, x_row, x_col, TRIES: tl.constexpr, BLOCK: tl.constexpr = 256
):  # fmt: skip
    """Draws from the whole row, with the noise of another role in each try, until it draws what is kept; else the first maximum."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    m, T, last = tl.load(maximum + row), tl.load(temperature + row), tl.load(lasts + row)
    cut = value_of(x, x_col, last)
    id, tries = tl.load(top + row).to(tl.int32), tl.full([], 0, tl.int32)
    while tries < TRIES:
        drawn = race(x, V, x_col, m, T, float("-inf"), V, tl.load(key + row * TRIES + tries), exponential, rank, BLOCK)
        missed = dropped(value_of(x, x_col, drawn), drawn, cut, last)
        id = tl.where(missed, id, drawn)
        tries = tl.where(missed, tries + 1, TRIES)
    tl.store(out + row, id.to(tl.int64))


def _by_rejection(logits: torch.Tensor, temperature: torch.Tensor, *more: torch.Tensor, tries: int) -> torch.Tensor:
    *filters, seed, position = more
    found = kept(logits, temperature, *filters)
    streams = torch.stack([keys(seed, position, role) for role in range(tries)], 1)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        _rejecting[(len(ids),)](
            logits, found.m, found.t, found.last, streams, found.top, ids, logits.shape[1], *logits.stride(), TRIES=tries
        )
    return ids


@mutant("SA3", killed_by=("draws",), rows=None)
def argmax_after_four_tries(logits, *parameters):
    """Rejects what top-p drops four times, then takes the argmax: with mass p kept it comes (1 - p)^4 too often (TokenSpeed #280)."""
    return _by_rejection(logits, *parameters, tries=4)


def _one_position_on(logits: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    *others, position = parameters
    return sample_in_torch(logits, *others, position + 1)


@mutant("SA4", killed_by=("routes",), vocab=8, noise=noise, noise_error=NOISE_ERROR, routes={"graph": _one_position_on})
def another_stream_in_the_graph(logits, *parameters):
    """In a captured graph, whose warm-up has drawn once, the noise is that of the next position (TokenSpeed #280)."""
    return sample_in_torch(logits, *parameters)


@mutant("SA5", killed_by=("draws",), rows=None)
def rejects_from_the_whole_vocabulary(logits, *parameters):
    """Draws top-k by rejection from the whole vocabulary: of a flat row 16 tries hardly ever find one of the k (TokenSpeed #280)."""
    return _by_rejection(logits, *parameters, tries=16)


def _by_slot(logits: torch.Tensor, *pools: torch.Tensor) -> torch.Tensor:
    *parameters, seed, position, index = pools
    return sample_in_torch(logits, *(pool[: len(logits)] for pool in parameters), seed[index], position[index])


@mutant("SA7", killed_by=("isolation",), vocab=8, pooled=_by_slot)
def parameters_by_slot(logits, *parameters):
    """Reads temperature and filters of a pool by the row's slot in the batch instead of its index in the pool (TokenSpeed #280)."""
    return sample_in_torch(logits, *parameters)


@triton.jit
def _of_11_bits(h):
    """-log u, u rounded to a multiple of 2^-11, 0 and 1 among them."""
    u = ((h >> 52) + 1) >> 1
    return -tl.log(u.to(tl.int32).to(tl.float32) * 2.0**-11)


@mutant("SA9", killed_by=("masked_never_drawn",))
def uniforms_can_be_0_and_1(logits, *parameters):
    """Its uniforms, of fp16's 11 bits, can be 1: a masked token's -inf + inf is NaN and wins the argmax (the sampling set)."""
    return sample(logits, *parameters, NOISE=_of_11_bits)


@triton.jit
def _of_24_bits(h):
    """-log(u + ε) + ε in fp32, u a multiple of 2^-24"""
    return -tl.log((h >> 40).to(tl.int32).to(tl.float32) * 2.0**-24 + 1e-20) + 1e-20


@mutant("SA10", killed_by=("tail_mass",))
def gumbel_noise_of_24_bits(logits, *parameters):
    """Its noise is -log(-log u) in fp32: u of 24 bits gets no closer to 1, and nothing 17 below the maximum is drawn (the sampling set)."""
    return sample(logits, *parameters, NOISE=_of_24_bits, BLOCK=1024)


@triton.jit
def _rank_of_numbers(score, inside):
    """NaN below all, and lanes beyond the row as the -inf that they hold."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), -0x80000000)


@mutant("SA14", killed_by=("id_range",), vocab=1)
def lanes_beyond_the_row_can_win(logits, *parameters):
    """Lanes beyond the row hold -inf, which is more than NaN: where the row is all NaN the id is V (the sampling set)."""
    return sample(logits, *parameters, RANK=_rank_of_numbers)
