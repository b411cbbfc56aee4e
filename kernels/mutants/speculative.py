"""Mutants of the chain verifier, and the correct one they are made of, with its own stream of drafts and coins.

Draft j is accepted iff coin_j · q_j < p_j, after those before it. One program then draws the token that follows in its row, in two passes:

    w_i = max(p_i - q_i, 0) at the first draft rejected, p_i where none is or no w_i is above 0
    e   = the first with Σ_{i≤e} w_i > coin · Σ w

The stream draws drafts with the same program, from q, at uniforms of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.sampling_skeleton import hashes
from stabcheck.kernels.mutants.skeleton import mutant, tile

mutant = partial(mutant, operation="verify_speculative")


@triton.jit
def residual(p, q):
    return tl.maximum(p - q, 0.0)


@triton.jit
def weights(p, q, ids, V, p_col, q_col, draft, subtracts, WEIGHT: tl.constexpr, ONE_HOT: tl.constexpr):
    """w of ids [BLOCK], 0 beyond the row; the residual if it `subtracts`, else p."""
    w = tile(p, ids, V, p_col, 0.0)  # [BLOCK]
    if subtracts != 0:
        of_drafts = (ids == draft).to(tl.float32) if ONE_HOT else tile(q, ids, V, q_col, 0.0)  # [BLOCK]
        w = tl.where(ids < V, WEIGHT(w, of_drafts), 0.0)
    return w


@triton.jit
def total(p, q, V, p_col, q_col, draft, subtracts, WEIGHT: tl.constexpr, ONE_HOT: tl.constexpr, BLOCK: tl.constexpr):
    """Σ w"""
    whole = tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)  # [BLOCK]
        whole += tl.sum(weights(p, q, ids, V, p_col, q_col, draft, subtracts, WEIGHT, ONE_HOT), axis=0)
    return whole


@triton.jit(do_not_specialize=range(14))
def following(
    p, q, drafts, at, coins, out, V, steps, p_row, p_step, p_col, q_row, q_step, q_col,
    ONE_HOT: tl.constexpr,
    WEIGHT: tl.constexpr = residual,
    BLOCK: tl.constexpr = 256,
):  # fmt: skip
    """The token after `at` drafts; only the first `steps` can have been rejected."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.load(at + row)
    subtracts = (step < steps).to(tl.int32)
    draft = tl.load(drafts + row * steps + step, mask=step < steps, other=-1)
    p += row * p_row + step * p_step
    q += row * q_row + step * q_step
    whole = total(p, q, V, p_col, q_col, draft, subtracts, WEIGHT, ONE_HOT, BLOCK)
    if whole == 0.0:
        subtracts = subtracts * 0
        whole = total(p, q, V, p_col, q_col, draft, subtracts, WEIGHT, ONE_HOT, BLOCK)
    bar = tl.load(coins + row) * whole
    before, first, latest = tl.full([], 0.0, tl.float32), tl.full([], 0x7FFFFFFF, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)  # [BLOCK]
        w = weights(p, q, ids, V, p_col, q_col, draft, subtracts, WEIGHT, ONE_HOT)  # [BLOCK]
        beyond = (before + tl.cumsum(w, axis=0) > bar) & (w > 0.0)  # [BLOCK]
        first = tl.minimum(first, tl.min(tl.where(beyond, ids, 0x7FFFFFFF), axis=0))
        latest = tl.maximum(latest, tl.max(tl.where(w > 0.0, ids, 0), axis=0))
        before += tl.sum(w, axis=0)
    tl.store(out + row, tl.minimum(first, latest).to(tl.int64))  # where rounding leaves none beyond, the last possible


def drawn(
    p: torch.Tensor, q: torch.Tensor | None, drafts: torch.Tensor, at: torch.Tensor, coins: torch.Tensor, **slots: Any
) -> torch.Tensor:
    """[R] the token that follows; without drafts, one drawn from p."""
    ids = torch.empty(len(p), dtype=torch.int64, device=p.device)
    if len(p):
        own = (p if q is None else q, drafts.contiguous(), at, coins.contiguous())
        strides = (*p.stride(), *own[0].stride())
        following[(len(p),)](p, *own, ids, p.shape[2], drafts.shape[1], *strides, ONE_HOT=q is None, **slots)
    return ids


def below(coin: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return coin * q < p


def verify(
    p: torch.Tensor,
    q: torch.Tensor | None,
    drafts: torch.Tensor,
    coins: torch.Tensor,
    accepts: Callable[..., torch.Tensor] = below,
    **slots: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The correct kernel, but for what is put into its slots."""
    at = drafts[..., None]
    of_target = p[:, :-1].gather(2, at)[..., 0]
    of_draft = torch.ones_like(of_target) if q is None else q.gather(2, at)[..., 0]
    accepted = accepts(coins[:, :-1], of_target, of_draft).long().cumprod(-1).sum(-1)
    ids = torch.where(torch.arange(drafts.shape[1], device=p.device) < accepted[:, None], drafts, -1)
    ids = torch.nn.functional.pad(ids, (0, 1), value=-1)
    return accepted, ids.scatter(1, accepted[:, None], drawn(p, q, drafts, accepted, coins[:, -1], **slots)[:, None])


def drafts_at(q: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """[R, K] a draft of each step by inverse CDF."""
    steps = torch.zeros_like(uniforms, dtype=torch.int64) + torch.arange(q.shape[1], device=q.device)
    none = steps[:, :0]
    return torch.stack([drawn(q, None, none, at.contiguous(), u) for at, u in zip(steps.unbind(1), uniforms.unbind(1), strict=True)], 1)


def uniforms(seed: torch.Tensor, position: torch.Tensor, count: int) -> torch.Tensor:
    """[R, count] in [0, 1), of 24 bits."""
    return ((hashes(seed, position, count) >> 40) & 0xFFFFFF).float() * 2.0**-24


def stream(q: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(drafts [R, K], coins [R, K + 1]) of uniforms that are all different."""
    steps = q.shape[1]
    u = uniforms(seed, position, 2 * steps + 1)
    return drafts_at(q, u[:, :steps]), u[:, steps:]


def _shared(q: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    u = uniforms(seed, position, q.shape[1] + 1)
    return drafts_at(q, u[:, :-1]), u


@mutant("SA11", killed_by=("losslessness",), rows=None, stream=_shared)
def one_stream_for_drafts_and_coins(p, q, drafts, coins):
    """A draft and its coin are made of one uniform: which drafts are accepted depends on which they are (the sampling set)."""
    return verify(p, q, drafts, coins)


@mutant("SA12", killed_by=("masked_never_drawn",), vocab=2)
def accepts_at_equality(p, q, drafts, coins):
    """Accepts where coin ≤ p/q instead of coin < p/q: a coin of 0 lets a draft of probability 0 pass (the sampling set)."""
    return verify(p, q, drafts, coins, accepts=lambda coin, p, q: coin <= p / q)


@triton.jit
def _exponential(p, q):
    return tl.exp(tl.maximum(p - q, 0.0))


@mutant("SA13", killed_by=("coin_grid", "losslessness"), vocab=2, stream=stream)
def softmax_of_the_residual(p, q, drafts, coins):
    """Takes the softmax of the residual instead of its share: tokens without any are drawn as well (the sampling set)."""
    return verify(p, q, drafts, coins, WEIGHT=_exponential)
