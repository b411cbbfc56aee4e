"""A correct sampler with its own noise, and a slot for every place in which the mutants go wrong.

    E_i = -log u_i, u_i in (0, 1) a hash of (seed, position, role, i)    id = argmax_{i kept} (x_i - m)/T - log E_i

What the filters keep of a row, sorted as in `filtering`, ends at an id, `last`: larger logits, and equal ones of lower ids. One program
owns one row and goes through it once: the race of all that is kept. The hash is SplitMix64, started at a key of seed, position and role
(Steele, Lea and Flood, OOPSLA 2014); u has 52 bits and E is computed in fp64, so its lower tail has all of fp32's precision.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.filtering import LEAST, by_value, counts_of, exponents
from stabcheck.kernels.mutants.skeleton import tile

GAMMA, FIRST, SECOND = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64
NOISE_ERROR = 2.0**-23  # E is rounded to fp32


def _mixed(h: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser of int64, with shifts that fill with zeros."""
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1)):
        h = (h ^ ((h >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return h


def keys(seed: torch.Tensor, position: torch.Tensor, role: int = 0) -> torch.Tensor:
    """[R] where the hash starts."""
    return _mixed(_mixed(_mixed(seed) + position) + role)


def hashes(seed: torch.Tensor, position: torch.Tensor, count: int, role: int = 0) -> torch.Tensor:
    """[R, count] 64 bits each, as int64."""
    return _mixed(keys(seed, position, role)[:, None] + GAMMA * torch.arange(1, count + 1, device=seed.device))


def noise(seed: torch.Tensor, position: torch.Tensor, vocab: int, role: int = 0) -> torch.Tensor:
    """E [R, V] in fp64."""
    k = (hashes(seed, position, vocab, role) >> 12) & ((1 << 52) - 1)
    return -torch.log((k.double() + 0.5) * 2.0**-52)


@triton.jit
def hashed(key, counter):
    """The hash of ids [BLOCK], as uint64."""
    h = key.to(tl.uint64) + (counter + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB
    return h ^ (h >> 31)


@triton.jit
def exponential(h):
    """E"""
    return (-tl.log(((h >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.0**-52)).to(tl.float32)


@triton.jit
def rank(score, inside):
    """Scores as integers in torch.argmax's order, NaN above all; lanes beyond the row below all."""
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return tl.where(inside, order, -0x80000000)


@triton.jit
def dropped(x, ids, cut, last):
    return (x < cut) | ((x == cut) & (ids > last))


@triton.jit
def race(x, V, x_col, m, T, cut, last, key, NOISE: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr):
    """The id with the best score, the lowest of several."""
    best = tl.full([BLOCK], -0x8000000000000000, tl.int64)  # a rank, and an id that counts down
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)  # [BLOCK]
        values = tile(x, ids, V, x_col, float("-inf"))  # [BLOCK]
        z = tl.where((ids >= V) | dropped(values, ids, cut, last), float("-inf"), (values - m) / T)  # [BLOCK]
        score = z - tl.log(NOISE(hashed(key, ids)))  # [BLOCK]
        best = tl.maximum(best, (RANK(score, ids < V).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64))
    return 0x7FFFFFFF - (tl.max(best, axis=0) & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def itself(x, V, x_col, id, BLOCK: tl.constexpr):
    return id


@triton.jit
def value_of(x, x_col, id):
    """The logit of one id; all that is compared comes this way, so that flushed subnormals are flushed on both sides."""
    return tl.load(x + id.to(tl.int64) * x_col).to(tl.float32)


@triton.jit(do_not_specialize=range(9))
def drawn(
    x, maximum, temperature, lasts, key, out, V, x_row, x_col,
    NOISE: tl.constexpr = exponential,  # E of a hash
    RANK: tl.constexpr = rank,  # what the winner has most of
    RESOLVED: tl.constexpr = itself,  # the id for the winner
    BLOCK: tl.constexpr = 256,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    m, T, last = tl.load(maximum + row), tl.load(temperature + row), tl.load(lasts + row)
    id = race(x, V, x_col, m, T, value_of(x, x_col, last), last, tl.load(key + row), NOISE, RANK, BLOCK)
    tl.store(out + row, RESOLVED(x, V, x_col, id, BLOCK).to(tl.int64))


@dataclass(frozen=True)
class Kept:
    """What the filters keep of each row, [R] each: its maximum made finite, T, the id it ends at, the id of the first maximum."""

    m: torch.Tensor
    t: torch.Tensor
    last: torch.Tensor
    top: torch.Tensor


def kept(logits: torch.Tensor, *parameters: torch.Tensor) -> Kept:
    """What is kept; where all rows are one row, with a stride of 0, found once for each set of parameters."""
    if logits.stride(0) or not len(logits):
        return _kept(logits, *parameters)
    sets, which = torch.unique(torch.stack([p.double() for p in parameters], 1), dim=0, return_inverse=True)
    distinct = (p.to(given.dtype) for p, given in zip(sets.unbind(1), parameters, strict=True))
    few = _kept(logits[: len(sets)], *distinct)
    return Kept(*(getattr(few, f.name)[which] for f in fields(Kept)))


def _kept(logits: torch.Tensor, temperature: torch.Tensor, *filters: torch.Tensor) -> Kept:
    values, order = by_value(logits)
    end = counts_of(values, temperature, *filters)[:, None] - 1
    t = torch.where(temperature == 0, 1.0, temperature)
    return Kept(values[:, 0].clamp(min=LEAST), t, order.gather(1, end)[:, 0], order[:, 0].contiguous())


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    **slots: Any,
) -> torch.Tensor:
    """The correct kernel, but for what is put into its slots."""
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        found = kept(logits, temperature, top_k, top_p, min_p)
        drawn[(len(ids),)](logits, found.m, found.t, found.last, keys(seed, position), ids, logits.shape[1], *logits.stride(), **slots)
    return ids


def sample_in_torch(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """The same draw without the program, for mistakes that are made outside of it: the interpreter is slow."""
    values, order = by_value(logits)
    beyond = torch.arange(values.shape[1], device=logits.device) >= counts_of(values, temperature, top_k, top_p, min_p)[:, None]
    z = torch.where(beyond, -torch.inf, exponents(values, temperature)).double()
    score = z - noise(seed, position, values.shape[1]).gather(1, order).log()
    return order.gather(1, score.argmax(-1, keepdim=True))[:, 0]


def sample_pooled(logits: torch.Tensor, *pools: torch.Tensor) -> torch.Tensor:
    """The draw with the parameters of row r at index[r] of pools; `index` comes last."""
    *parameters, index = pools
    return sample_in_torch(logits, *(pool[index] for pool in parameters))
