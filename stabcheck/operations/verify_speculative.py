"""Chain verification of drafted tokens: which drafts are accepted, and the token that follows them (Leviathan et al., Chen et al., 2023).

What a kernel takes, for K drafts:          shape         dtype
target_probs   p, one for each position     [R, K + 1, V]  fp32
draft_probs    q, what drafts came from     [R, K, V]      fp32; None: one-hot drafts, q = 1 at the draft
draft_ids      d                            [R, K]         int64
coins          uniform in [0, 1)            [R, K + 1]     fp32
and returns
accepted       how many drafts              [R]            int64 or int32
ids            d_0 … d_{a−1}, e, −1, …      [R, K + 1]     int64 or int32

Draft j is accepted iff coin_j · q_j(d_j) < p_j(d_j), after those before it. At the first one rejected, a, the token e comes from the
residual max(p_a − q_a, 0), normalised, by inverse CDF in the order of ids at the last coin: the first e with Σ_{i ≤ e} r_i > coin_K · Σ r;
where p ≤ q everywhere, from p_a. If none is rejected, e comes from p_K. A token of probability zero is never emitted, whatever the coins.

Here the chain is made of one row of logits, so that every law on rows holds: p_j is its softmax rolled by j columns, d_j = draft + 2j, and
q_j is what the option `proposal` says. A row whose probabilities are NaN may give any ids in range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, summation_error
from stabcheck.devices import FLUSH, U
from stabcheck.operations.base import LARGEST, SMALLEST, Expected, Input, Operation, Option, Output, Results

COINS = (0.5, 0.0, 1 - 2.0**-24, 0.1, 0.9, 0.25, 2.0**-24, 0.999, 2.0**-149)
PROPOSALS = ("rolled", "one_hot", "equal", "flat", "sharper")


def call(
    function: Callable[..., Any],
    logits: torch.Tensor,
    draft: torch.Tensor,
    coin: torch.Tensor,
    last: torch.Tensor,
    drafts: int = 1,
    proposal: str = "rolled",
) -> tuple[torch.Tensor, ...]:
    """Build the chain, verify it, and return, [R] each: drafts accepted, the token emitted, what is amiss.

    Amiss are entries of ids that are not what they must be, and elements of the kernel's inputs that it changed. Where the logits are not
    contiguous, what is made of them is not, either, and its rows lie at least as far apart as theirs.
    """
    vocab, steps = logits.shape[1], torch.arange(drafts + 1, device=logits.device)
    rolled = torch.stack([logits.double().roll(j, -1) for j in range(drafts + 2)], 1)
    p = rolled[:, :-1].softmax(-1).float()
    here, next_ = rolled[:, :-2], rolled[:, 1:-1]
    sources = {"rolled": next_, "equal": here, "flat": torch.zeros_like(here), "sharper": 2 * here}
    q = sources[proposal].softmax(-1).float() if proposal != "one_hot" else None
    d = (draft[:, None] + 2 * steps[:-1]) % vocab  # by two, so that no two positions have the same pair of probabilities
    coins = ((coin.double()[:, None] + steps * 0.6180339887498949) % 1).float().clamp(max=1 - 2.0**-24)
    coins = torch.where(coin[:, None] == 0, 0.0, torch.where(steps == 0, coin[:, None], coins))
    coins = torch.cat([coins[:, :-1], last[:, None]], 1)
    if not logits.is_contiguous():
        p, q = _apart(p, 3, logits.stride(0)), None if q is None else _apart(q, 5, logits.stride(0))
    given = [t for t in (p, q, d, coins) if t is not None]
    before = [t.clone() for t in given]
    accepted, ids = function(p, q, d, coins)
    changed = sum(((a != b) & ((a == a) | (b == b))).flatten(1).sum(-1) for a, b in zip(given, before, strict=True))
    if accepted.shape != draft.shape or ids.shape != coins.shape or accepted.dtype.is_floating_point or ids.dtype.is_floating_point:
        raise TypeError(f"returned accepted {list(accepted.shape)} {accepted.dtype} and ids {list(ids.shape)} {ids.dtype}")
    place = accepted.long().clamp(0, drafts)[:, None]
    wanted = torch.where(steps < place, torch.cat([d, d[:, :1]], 1), -1)
    misplaced = ((ids != wanted) & (steps != place)).sum(-1) + changed
    return accepted.long(), ids.long().gather(1, place)[:, 0], misplaced


def _apart(tensor: torch.Tensor, pad: int, least: int) -> torch.Tensor:
    """[R, n, V] with columns that are not used, which are NaN, and rows at least so far apart."""
    rows, steps, vocab = tensor.shape
    step, apart = vocab + pad, max(steps * (vocab + pad), least)
    flat = torch.empty((max(rows, 1) - 1) * apart + steps * step, dtype=tensor.dtype, device=tensor.device).fill_(torch.nan)
    return flat.as_strided((rows, steps, vocab), (apart, step, 1), flat.storage_offset()).copy_(tensor)


class Chain:
    """The tensors a kernel is given for a batch, in fp64."""

    def __init__(self, batch: Batch) -> None:
        seen: list[Any] = []

        def capture(*tensors: Any) -> tuple[torch.Tensor, torch.Tensor]:
            seen.extend(tensors)
            return tensors[2][:, 0] * 0, torch.zeros_like(tensors[3], dtype=torch.int64)

        OPERATION.call(capture, *batch.args, **batch.options)
        p, q, self.drafts, coins = seen
        self.p, self.coins = p.double(), coins.double()
        at = torch.nn.functional.one_hot(self.drafts, p.shape[-1]).double()
        self.q = at if q is None else q.double()

    def of_drafts(self, probabilities: torch.Tensor) -> torch.Tensor:
        """[R, K] the probability of each draft."""
        return probabilities[:, : self.drafts.shape[1]].gather(2, self.drafts[..., None])[..., 0]

    def accepted_surely(self) -> tuple[torch.Tensor, torch.Tensor]:
        """([R, K] bool: drafts that must be accepted if it comes to them; that may be).

        p and q come to the reference and to the kernel rounded to fp32 by two calls of softmax, 2u apart at most; the product or quotient
        is rounded once or twice more. Against p = 0 every coin loses.
        """
        p, q, coin = self.of_drafts(self.p), self.of_drafts(self.q), self.coins[:, :-1]
        bar = coin * q
        slack = 8 * U * (p + bar) + FLUSH
        exact_zero = (coin == 0) & (p >= FLUSH)
        return (bar + slack < p) | exact_zero, (bar - slack < p) & (p > 0)

    def source(self, accepted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """([R, V] weights the next token is drawn from after `accepted` [R] drafts, how far off each may be, which may not be 0, p)."""
        drafts, rows = self.drafts.shape[1], torch.arange(len(accepted), device=accepted.device)
        p, q = self.p[rows, accepted], self.q[rows, accepted.clamp(max=drafts - 1)]
        rejected = (accepted < drafts)[:, None]
        residual = (p - q).clamp(min=0.0)
        nothing = residual.sum(-1, keepdim=True) == 0
        weights, error = torch.where(rejected & ~nothing, residual, p), 2 * U * (p + torch.where(rejected, q, 0.0))
        return weights, error, (p > 0) & (~rejected | nothing | (p - q >= -error)), p


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """Accepted length and next token; `given` a result, its own where rounding may have decided."""
    chain = Chain(batch)
    surely, maybe = chain.accepted_surely()
    exact = _run(chain.coins[:, :-1] * chain.of_drafts(chain.q) < chain.of_drafts(chain.p))
    least, most = _run(surely), _run(maybe)
    free = ~chain.p.isfinite().all(-1).all(-1) | ~chain.q.isfinite().all(-1).all(-1)

    def expected(accepted: torch.Tensor, emitted: torch.Tensor, legal: torch.Tensor) -> dict[str, Expected]:
        apart = (least != most) | (legal.sum(-1) > 1)
        values = {"accepted": accepted, "emitted": emitted, "misplaced": torch.zeros_like(accepted)}
        return {
            name: Expected(v.double(), torch.zeros_like(v, dtype=torch.float64), free, apart=apart, given=partial(_one_of, given, name))
            for name, v in values.items()
        }

    def given(results: Results) -> dict[str, Expected]:
        got = results["accepted"].long()
        after = got.clamp(0, surely.shape[1])
        stops = torch.nn.functional.pad(~surely, (0, 1), value=True).gather(1, after[:, None])[:, 0]
        accepted = torch.where((got == after) & (got <= most) & stops, got, exact)
        legal, first = emissions(chain, accepted, contract)
        id_ = results["emitted"].long()
        fits = legal.gather(1, id_.clamp(0, legal.shape[1] - 1)[:, None])[:, 0] & (id_ >= 0) & (id_ < legal.shape[1])
        return expected(accepted, torch.where(fits, id_, first), legal)

    legal, first = emissions(chain, exact, contract)
    return expected(exact, first, legal)


def _one_of(given: Callable[[Results], dict[str, Expected]], name: str, results: Results) -> Expected:
    return given(results)[name]


def _run(accepted: torch.Tensor) -> torch.Tensor:
    """[R] how many come before the first False."""
    return accepted.long().cumprod(-1).sum(-1)


def emissions(chain: Chain, accepted: torch.Tensor, contract: Contract) -> tuple[torch.Tensor, torch.Tensor]:
    """([R, V] bool: tokens that may follow, [R] the one that does in exact arithmetic).

    Σ_{i ≤ e} r_i is off by the sum of its terms' errors and a summation; so is the whole sum, and its product with the coin is rounded.
    Where the residual is no larger than its error, the kernel may have found none: it then draws from p.
    """
    weights, error, possible, p = chain.source(accepted)
    coin = chain.coins[:, -1:]
    cumulative, whole = weights.cumsum(-1), weights.sum(-1, keepdim=True)
    of_sums = 2 * error.sum(-1, keepdim=True) + (2 * summation_error(p.shape[1], contract) + 4 * U) * whole + FLUSH
    reached = (cumulative + of_sums > coin * whole) & (cumulative - weights - of_sums <= coin * whole)
    lost = whole <= of_sums
    first = ((cumulative > coin * whole) & (weights > 0)).long().argmax(-1)
    return torch.where(lost, p > 0, reached & possible), first


OPERATION = Operation(
    name="verify_speculative",
    summary="logits [R, V], draft [R], coin [R], last [R] -> accepted [R], emitted [R], misplaced [R]",
    signature="target_probs [R, K+1, V], draft_probs [R, K, V] or None, draft_ids [R, K], coins [R, K+1] -> accepted [R], ids [R, K+1]",
    inputs=(
        Input("draft", (0, LARGEST, SMALLEST), column=True),
        Input("coin", COINS),
        Input("last", COINS, symbol="last coin"),
    ),
    outputs=(
        Output("accepted", per="row", dtype="index", low=0),
        Output("emitted", per="row", dtype="index", low=0, high=lambda vocab: vocab - 1),
        Output("misplaced", per="row", dtype="index", low=0),
    ),
    policies={},
    reference=reference,
    traits={"accurate": (), "ids": (), "verifies": ()},
    options=(Option("drafts", (1, 2, 4, 7)), Option("proposal", PROPOSALS, PROPOSALS)),
    call=call,
)
