"""One token per row, drawn from the probabilities after temperature, top-k, top-p and min-p.

input                               shape  dtype             meaning
logits, temperature, …, min_p       as in `filtered_probs`; T = 0 is the argmax, lowest id
seed, position                      [R]    int64             what the draw depends on, besides the row and its parameters
ids                                 [R]    int64 or int32    the token drawn

A kernel may declare the exponential variates E_i = −log u_i that it draws with (`stabcheck.Kernel.noise`). Then the draw is no matter of
chance: the id must maximise z_i − log E_i over what is kept (Gumbel-max; Yellott, J. Math. Psych. 15, 1977; as an exponential race,
exp(z_i)/E_i), up to the errors of the two scores. Without it any kept id will do here, and the laws on many draws tell the distribution.
A row with NaN or +inf, or all -inf, may give any id in [0, V). Kernels: TokenSpeed #280, vLLM's Gumbel sampler, FlashInfer's samplers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, log_error, quotient_error
from stabcheck.devices import U
from stabcheck.operations.base import Expected, Input, Operation, Output, Results
from stabcheck.operations.filters import (
    FILTER_ERRORS,
    FILTER_INPUTS,
    Counts,
    choosy,
    exchangeable,
    kept_counts,
    policies,
    undefined,
    with_first,
)
from stabcheck.operations.sorted_rows import Sorted, sorted_rows
from stabcheck.operations.temperature_softmax import TEMPERATURES

SEEDS = (0, 1, 2, 42, -1, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, -(2**63), 0xDEADBEEF)
POSITIONS = (0, 1, 2, 7, 1000, 2**16, 2**31 - 8, 2**32 - 8, 2**40)


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """The id with the best score; `given` an id, that id if it is legal."""
    rows = sorted_rows(batch, contract)
    counts = kept_counts(rows, batch, contract)
    log_e = _log_noise(batch, contract)
    score, slack = scores(rows, log_e, contract)
    free = undefined(batch, rows, counts, contract)[:, 0] | (rows.x[:, 0] == -torch.inf)
    best = (score.masked_fill(rows.places >= counts.least[:, None], -torch.inf)).argmax(-1, keepdim=True)
    value = rows.order.gather(1, best)[:, 0]
    either = exchangeable(rows, counts, contract)
    close = score + slack >= _best((score - slack).masked_fill(either, -torch.inf), counts.least)
    rivals = close & (either | (rows.places < counts.most[:, None])) & (rows.x > -torch.inf)

    def given(results: Results) -> Expected:
        got = results["ids"].long()
        return expected(torch.where(_legal(rows, got, counts, log_e, contract), got, value))

    def expected(ids: torch.Tensor) -> Expected:
        return Expected(ids.double(), torch.zeros_like(ids, dtype=torch.float64), free, apart=rivals.sum(-1) > 1, given=given)

    return {"ids": expected(value)}


def _log_noise(batch: Batch, contract: Contract) -> torch.Tensor | None:
    """[R, V] log E by id, where the kernel declares it."""
    if contract.noise is None:
        return None
    return contract.noise(batch.inputs["seed"], batch.inputs["position"], batch.logits.shape[1]).log()


def scores(rows: Sorted, log_e: torch.Tensor | None, contract: Contract) -> tuple[torch.Tensor, torch.Tensor]:
    """(z − log E, how far off a kernel may have it), by place; all alike where the kernel declares no noise.

    Errors: of z (κ); of E, relative, absolute in its logarithm; of that logarithm, or of the quotient exp(z)/E; the rounding of sums and
    differences of the two.
    """
    if log_e is None:
        return torch.zeros_like(rows.z), torch.zeros_like(rows.z)
    log_e = log_e.gather(1, rows.order)
    rounding = 3 * U * (rows.z.clamp(min=-1e6).abs() + log_e.abs())
    slack = rows.reach + contract.noise_error + log_error(log_e, contract) + quotient_error(contract) + rounding
    return rows.z - log_e, slack


def _legal(rows: Sorted, got: torch.Tensor, counts: Counts, log_e: torch.Tensor | None, contract: Contract) -> torch.Tensor:
    """[R] bool: ids that a correct kernel may draw: kept, and no kept id scores better for certain."""
    vocab = rows.x.shape[1]
    inside = (got >= 0) & (got < vocab)
    at = got.clamp(0, vocab - 1)[:, None]
    score, slack = scores(rows, log_e, contract)
    again = rows
    if choosy(contract):  # among exchangeable tokens the kernel may have kept this one and any others: those with the worst scores
        worst_first = rows.to_columns(score).argsort(-1, descending=True).argsort(-1) / vocab
        again = with_first(rows, worst_first.scatter(1, at, 1.0).double(), counts, contract)
        score, slack = scores(again, log_e, contract)
    place = (again.order == at).to(torch.int8).argmax(-1, keepdim=True)
    fewest = torch.maximum(counts.least, place[:, 0] + 1)  # of the counts that keep the id
    good = (score + slack).gather(1, place) >= _best(score - slack, torch.minimum(fewest, counts.most))
    return inside & (place[:, 0] < counts.most) & (again.x.gather(1, place)[:, 0] > -torch.inf) & good[:, 0]


def _best(score: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """[R, 1] the best of the first n [R] places."""
    return score.cummax(-1).values.gather(1, n[:, None] - 1)


OPERATION = Operation(
    name="sample",
    summary="logits [R, V], temperature [R], top_k [R], top_p [R], min_p [R], seed [R], position [R] -> ids [R]",
    inputs=(
        replace(FILTER_INPUTS[0], values=(*TEMPERATURES, 0.0, 0.0), under=None),
        *FILTER_INPUTS[1:],
        Input("seed", SEEDS),
        Input("position", POSITIONS, counts=True),
    ),
    outputs=(Output("ids", per="row", dtype="index", low=0, high=lambda vocab: vocab - 1),),
    policies=policies(),
    reference=reference,
    traits={"filters": (), "draws": (), "ids": ()},
    output="fp32",
    interpreted=6,
    error_models=FILTER_ERRORS,
)
