"""Many chains of drafts verified from one row, fed by the kernel's own stream of drafts and coins, counted in bins at each position."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stabcheck.bounds import summation_error
from stabcheck.cases import Case
from stabcheck.devices import U
from stabcheck.draws import ELEMENTS_AT_ONCE, TEMPERED, Bins, confirmed, make_bins, seed_of, spread, told, usual_size
from stabcheck.operations.verify_speculative import Chain
from stabcheck.verdicts import Comparison

SCARCE = 16  # the part of the chains that must reach a position for it to be judged
CELL = 2.0**-24  # of the coins a verifier is given


def losslessness(case: Case) -> Iterator[Comparison]:
    """Tokens of each position of a chain, fed by the kernel's own stream of drafts and coins, against the target's probabilities."""
    if not case.batch.logits.numel() or case.batch.options.get("proposal") == "one_hot":
        return
    row = case.batch.pick(slice(0, 1))
    row = row.with_logits(
        ((row.logits.double() - row.logits.double().amax()) * TEMPERED / spread(row.logits)[:, None]).to(row.logits.dtype)
    )
    chain, n = Chain(row), usual_size()
    if not bool(chain.p.isfinite().all() & chain.q.isfinite().all()):
        return
    p, q, drafts = chain.p.float(), chain.q.float(), chain.drafts.shape[1]
    runs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def run(size: int, fresh: int) -> tuple[torch.Tensor, torch.Tensor]:
        if (size, fresh) not in runs:
            runs[size, fresh] = _verified(case, p, q, size, seed_of(case, row, fresh))
        return runs[size, fresh]

    for j in range(drafts + 1):
        bins = _chain_bins(case, chain, j)

        def measure(size: int, fresh: int, j: int = j, bins: Bins = bins) -> tuple[torch.Tensor, int]:
            accepted, ids = run(size, fresh)
            reached = ids[accepted >= j, j]
            return bins.counts(reached), len(reached)

        if measure(n, 0)[1] < n // SCARCE:
            return  # too few chains come so far to tell
        interval, drawn, made = confirmed(measure, bins.low, bins.high, n)
        yield told(interval, made, bins.names, f"tokens at position {j} of a chain of {drafts} drafts, {drawn} that reach it")


def _verified(case: Case, p: torch.Tensor, q: torch.Tensor, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(accepted [n], ids [n, K + 1]) of n chains whose drafts and coins come from the kernel's stream."""
    assert case.kernel.stream is not None
    at_once, parts = max(1, ELEMENTS_AT_ONCE // p[0].numel()), []
    for start in range(0, n, at_once):
        size = min(at_once, n - start)
        positions = torch.arange(start, start + size, device=p.device) * (q.shape[1] + 1)  # none shared by two chains
        many = [t.expand(size, -1, -1) for t in (p, q)]
        ids, coins = case.kernel.stream(many[1], torch.full_like(positions, seed), positions)
        parts.append(case.kernel.function(many[0], many[1], ids, coins))
    accepted, ids = (torch.cat(part).long() for part in zip(*parts, strict=True))
    return accepted, ids


def _chain_bins(case: Case, chain: Chain, j: int) -> Bins:
    """Bins of position j: the target's probabilities.

    A token is off by the roundings of p and q and of the test between them (16 u), by the sums of the residual, and by the cells of a coin
    of 24 bits: one at each of its two ends in the inverse CDF, and one of its acceptance.
    """
    p, q = chain.p[0, j], chain.q[0, min(j, chain.q.shape[1] - 1)]
    slack = (16 * U + 2 * summation_error(len(p), case.contract)) * (p + q) + 2 * CELL * (p > 0)
    order = p.sort(descending=True, stable=True).indices
    exact = p / p.sum()
    return make_bins(exact, (exact - slack).clamp(min=0.0), exact + slack, order, int((p > 0).sum()))
