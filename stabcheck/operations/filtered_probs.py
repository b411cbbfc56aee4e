"""Probabilities after temperature, top-k, top-p and min-p: p_i = exp(z_i) / Σ_{j kept} exp(z_j), z_i = (x_i − m)/T; 0 where dropped.

input        shape   dtype             meaning
logits       [R, V]  fp32, bf16, fp16  x; -inf masks a column
temperature  [R]     fp32              T > 0; T = 0 is greedy, one-hot at the lowest index of the maximum, or undefined
top_k        [R]     int64             k; off where k ≤ 0 or k ≥ V
top_p        [R]     fp32              p; off where p ≥ 1
min_p        [R]     fp32              least exp(z_i); off where min_p ≤ 0
probs        [R, V]  fp32              renormalised over what is kept, exactly 0 elsewhere

Policies (the default first): the order of the filters, ties of the k-th value and of the value that crosses p, whether the token that
crosses p is kept, and a row of -inf: all zeros, or NaN. `stabcheck.operations.filters` has the mathematics and libraries' conventions.
A row with NaN or +inf may be anything, other rows are untouched by it. Kernels: TokenSpeed #280, FlashInfer's renorm family, vLLM, SGLang.
"""

from __future__ import annotations

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract
from stabcheck.operations.base import Expected, Operation, Output, Results
from stabcheck.operations.filters import (
    FILTER_ERRORS,
    FILTER_INPUTS,
    Counts,
    exchangeable,
    kept_counts,
    policies,
    probabilities,
    undefined,
    with_first,
)
from stabcheck.operations.sorted_rows import Sorted, sorted_rows


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """The probabilities for the fewest tokens that may be kept; `given` a result, those for as many as it kept, within what is legal."""
    rows = sorted_rows(batch, contract)
    counts = kept_counts(rows, batch, contract)
    free = undefined(batch, rows, counts, contract).expand_as(batch.logits)
    apart = counts.undecided | rows.to_columns(exchangeable(rows, counts, contract))

    def expected(rows: Sorted, n: torch.Tensor) -> Expected:
        value, bound = _with_edges(*probabilities(rows, n, contract), batch, contract)
        return Expected(value, bound, free, apart=apart, given=given)

    def given(results: Results) -> Expected:
        kept = results["probs"] > 0
        again = with_first(rows, kept.double(), counts, contract)
        return expected(again, kept_by(again, kept, counts, contract))

    return {"probs": expected(rows, counts.least)}


def kept_by(rows: Sorted, kept: torch.Tensor, counts: Counts, contract: Contract) -> torch.Tensor:
    """[R] how many places a kernel kept, `kept` [R, V] by id: up to its last one, within what is legal."""
    last = (kept.gather(1, rows.order) * (rows.places + 1)).amax(-1).clamp(min=1)
    if contract.policies["top_p_ties"] == "keep_all":
        last = rows.end_of_ties(last)
    return torch.minimum(torch.maximum(last, counts.least), counts.most)


def _with_edges(p: torch.Tensor, bound: torch.Tensor, batch: Batch, contract: Contract) -> tuple[torch.Tensor, torch.Tensor]:
    """T = 0 is one-hot exactly; a row of -inf is what its policy says."""
    empty = (batch.logits == -torch.inf).all(-1, keepdim=True)
    value = p.masked_fill(empty, 0.0 if contract.policies["empty_row"] == "zeros" else torch.nan)
    return value, bound.masked_fill(empty | (batch.inputs["temperature"] == 0)[:, None], 0.0)


OPERATION = Operation(
    name="filtered_probs",
    summary="logits [R, V], temperature [R], top_k [R], top_p [R], min_p [R] -> probs [R, V]",
    inputs=FILTER_INPUTS,
    outputs=(Output("probs", low=0.0, high=lambda vocab: 1.0),),
    policies=policies(zero_temperature=("greedy", "undefined"), empty_row=("zeros", "nan")),
    reference=reference,
    traits={
        "accurate": (),
        "real": (),
        "row_sum_one": (),
        "ranges": (),
        "shift_equivariant": (),
        "permutation_equivariant": (),
        "masking": (),
        "filters": (),
        "kept": (),
    },
    error_models=FILTER_ERRORS,
    output="fp32",
    interpreted=6,
)
