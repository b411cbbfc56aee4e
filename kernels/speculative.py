"""Chain verification for speculative decoding: which drafts are accepted, and the token that follows them, so that the chain is distributed
as if each token had been drawn from the target (Leviathan et al., Chen et al., 2023). `speculative_device` has the rules in mathematics.

Probabilities are read in place, and of each request only the rows p and q at the first rejection, once. No route syncs with the host, uses
atomics, or lets the order of programs matter. NaN in a request gives it some ids in range, and touches no other.
"""

from __future__ import annotations

import torch
import triton

import stabcheck
from stabcheck.errors import UsageError
from stabcheck.kernels import speculative_device as device
from stabcheck.kernels.rows import LANES, MAX_VOCAB, TILE
from stabcheck.kernels.sampling import sample
from stabcheck.kernels.sampling_noise import DRAFT, coins

SPAN = 4096  # columns of a program


def verify_speculative(
    target_probs: torch.Tensor, draft_probs: torch.Tensor | None, draft_ids: torch.Tensor, coins: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(accepted [R], ids [R, K + 1]), both int64: how many drafts, and these, the token that follows them, then −1.

    Parameters
    ----------
    target_probs: [R, K + 1, V], fp32, any strides: the target's probabilities at each position.
    draft_probs: [R, K, V], fp32, any strides: what each draft was drawn from; None for one-hot drafts, certain of themselves.
    draft_ids: [R, K], int64; an id outside [0, V) is rejected.
    coins: [R, K + 1], fp32 in [0, 1): one for each draft, and the last for the token that follows.

    Raises
    ------
    UsageError: arguments that do not fit together; the message names the value and the cure.
    """
    _check(target_probs, draft_probs, draft_ids, coins)
    requests, positions = target_probs.shape[:2]
    accepted = torch.empty(requests, dtype=torch.int64, device=target_probs.device)
    ids = torch.empty((requests, positions), dtype=torch.int64, device=target_probs.device)
    if requests:
        with torch.cuda.device_of(target_probs):
            _launch(target_probs, draft_probs, draft_ids.contiguous(), coins.contiguous(), accepted, ids)
    return accepted, ids


def _launch(
    p: torch.Tensor, draft_probs: torch.Tensor | None, drafts: torch.Tensor, coins: torch.Tensor, accepted: torch.Tensor, ids: torch.Tensor
) -> None:
    requests, positions, vocab = p.shape
    q = p if draft_probs is None else draft_probs
    tiles = -(-vocab // SPAN)
    sums = torch.empty((requests, tiles, 2), dtype=torch.float32, device=p.device)
    sizes = (positions - 1, vocab, tiles, *p.stride(), *q.stride())
    options = (triton.next_power_of_2(positions), draft_probs is None, _aligned(p) and _aligned(q))
    if tiles > 1:
        device.weigh[(requests * tiles,)](p, q, drafts, coins, sums, *sizes, *options, num_warps=4)
    device.emit[(requests,)](p, q, drafts, coins, sums, accepted, ids, *sizes, *options, tiles == 1, num_warps=8)


def _aligned(t: torch.Tensor) -> bool:
    """Whether 16-byte loads are possible; 16 elements, since Triton knows a number as a multiple of 16 or not at all."""
    return t.stride(2) == 1 and all(number % 16 == 0 for number in (t.shape[2], t.stride(0), t.stride(1), t.data_ptr()))


def stream(draft_probs: torch.Tensor, seed: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(draft_ids [R, K], coins [R, K + 1]) for draft_probs [R, K, V], from the noise of `sampling_noise` at seed and position [R] (int64).

    Draft j is drawn with the noise of position + j in the role of drafts, and coins with that of position in their own: no two share any.
    """
    once = draft_probs[:1] if draft_probs.stride(0) == 0 else draft_probs  # one row expanded: its logarithm once
    logits = once.log().expand(draft_probs.shape)
    one = torch.ones((), dtype=torch.float32, device=seed.device).expand(seed.shape)
    steps = range(draft_probs.shape[1])
    ids = [sample(logits[:, j], one, None, None, None, seed, position + j, role=DRAFT) for j in steps]
    drafts = torch.stack(ids, 1) if ids else torch.empty((len(seed), 0), dtype=torch.int64, device=seed.device)
    return drafts, coins(seed, position, len(steps) + 1)


def _check(target_probs: torch.Tensor, draft_probs: torch.Tensor | None, draft_ids: torch.Tensor, coins: torch.Tensor) -> None:
    if target_probs.dim() != 3 or target_probs.shape[1] == 0:
        raise UsageError(f"target_probs have shape {list(target_probs.shape)}; pass [requests, drafts + 1, vocab]")
    requests, positions, vocab = target_probs.shape
    if not 0 < vocab <= MAX_VOCAB:
        raise UsageError(f"target_probs have a vocab of {vocab}; pass 1 to {MAX_VOCAB} columns, which the kernels index with 32 bits")
    if target_probs.device.type == "cpu" and isinstance(device.emit, triton.JITFunction):
        raise UsageError("target_probs are on the CPU; move them to a GPU, or set TRITON_INTERPRET=1 before triton is imported")
    wanted = {
        "target_probs": (target_probs, torch.float32, (requests, positions, vocab)),
        "draft_probs": (draft_probs, torch.float32, (requests, positions - 1, vocab)),
        "draft_ids": (draft_ids, torch.int64, (requests, positions - 1)),
        "coins": (coins, torch.float32, (requests, positions)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor is None and name == "draft_probs":
            continue
        if tensor is None:
            raise UsageError(f"{name} is None; pass a tensor: only draft_probs may be None, which is one-hot drafts")
        if tensor.shape != shape:
            raise UsageError(
                f"{name} has shape {list(tensor.shape)} but target_probs have {list(target_probs.shape)}; pass shape {list(shape)}"
            )
        if tensor.dtype != dtype:
            raise UsageError(f"{name} has dtype {tensor.dtype}; pass {name}.to({dtype})")
        if tensor.device != target_probs.device:
            raise UsageError(
                f"{name} is on {tensor.device} but target_probs are on {target_probs.device}; pass {name}.to(target_probs.device)"
            )


@stabcheck.kernel("verify_speculative", dtypes=["fp32"], tile=TILE, lanes=LANES, blocks=(SPAN,), stream=stream, batch_invariant=True)
def auto(
    target_probs: torch.Tensor, draft_probs: torch.Tensor | None, draft_ids: torch.Tensor, coins: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return verify_speculative(target_probs, draft_probs, draft_ids, coins)
