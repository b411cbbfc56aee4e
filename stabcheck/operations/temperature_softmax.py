"""Softmax with a temperature per row: p_i = exp((x_i − m)/T) / Σ_j exp((x_j − m)/T), m = max x.

input        shape   dtype             meaning
logits       [R, V]  fp32, bf16, fp16  x; -inf masks a column
temperature  [R]     fp32              T > 0; what T = 0 means is a policy
result       [R, V]  the logits' dtype or fp32

Policies (the default first): a row of -inf is NaN as in torch, or zeros; T = 0 is undefined, or greedy: exactly one-hot at the lowest index
of the maximum. NaN or +inf in a row makes that row NaN, as in torch. Kernels: SGLang #20501 and #22166, FlashInfer's sampling.softmax.
"""

from __future__ import annotations

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import MOST_ERROR, VACUOUS, Contract, quotient_error, rounded, scaled_overflow
from stabcheck.devices import FLUSH
from stabcheck.operations.base import Expected, Input, Operation, Output
from stabcheck.operations.parts import shift

TEMPERATURES = (1.0, 0.5, 2.0, 0.1, 0.7, 1.3, 10.0, 100.0, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6, 1e-10, 1e-20, 1e-30, 1e-38, 1e-39, 2.0**-149)


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """Exact probabilities of the given bits and the bound of DESIGN:

        rel_i = expm1(κ_i + Σ_j p_j κ_j + s + q)               (numerator, denominator's terms, their summation s, the quotient q)
        tol_i = p_i·(rel_i(1 + u_o) + u_o) + floor,  0 where x_i = −inf

    expm1 covers what is beyond the first order, since log Σ exp is 1-Lipschitz.
    """
    x = batch.logits.double()
    t = batch.inputs["temperature"].double()[:, None]
    parts = shift(x, contract, t=t, smallest_t=batch.smallest("temperature"))
    m, p, kappa, quotient = parts.m, parts.p, parts.kappa, quotient_error(contract)
    shared = parts.of_d + quotient
    masked = x == -torch.inf
    bound = rounded(p, torch.expm1(kappa + shared), contract)
    bound = bound.masked_fill_(kappa + shared >= MOST_ERROR, VACUOUS).masked_fill_(masked, 0.0)

    def order() -> torch.Tensor:  # numerator errors only; the denominator is common, and at most a factor exp(shared) away
        slack = rounded(p * torch.exp(shared), torch.expm1(kappa + quotient), contract)
        return torch.where(t == 0, torch.inf, slack)

    if contract.policies["empty_row"] == "zeros":
        p, bound = p.masked_fill(m == -torch.inf, 0.0), bound.masked_fill(m == -torch.inf, 0.0)
    exact = Expected(p, bound, order=order)
    if contract.error_model == "scale_first":  # such a kernel promises nothing where its scaled logits may overflow
        exact = Expected(p, bound, free=(scaled_overflow(x, contract, t) | ~(t > 0)).expand_as(x), order=order)
    elif not batch.smallest("temperature") > 0:
        exact = _zero_temperature(x, t, m, exact, contract)
    return {"probs": exact}


def _zero_temperature(x: torch.Tensor, t: torch.Tensor, m: torch.Tensor, plain: Expected, contract: Contract) -> Expected:
    """Rows of T = 0 by policy: one-hot at the lowest index of the maximum, or free. T < 0 and NaN mean nothing: free.

    So is a choice among different subnormal numbers, which hardware that flushes its inputs sees as ties.
    """
    greedy = contract.policies["zero_temperature"] == "greedy"
    chosen = (t == 0) & m.isfinite()
    one_hot = torch.zeros_like(x).scatter_(-1, (x == m).to(torch.int8).argmax(-1, keepdim=True), 1.0)
    value = torch.where(chosen, one_hot, plain.value)
    empty = 0.0 if contract.policies["empty_row"] == "zeros" else torch.nan
    value = torch.where((t == 0) & ~m.isfinite(), torch.where(m == -torch.inf, empty, torch.nan), value)
    bound = plain.bound.masked_fill(t == 0, 0.0)
    flushed = (m.abs() < FLUSH) & ((x != m) & (x.abs() < FLUSH)).any(-1, keepdim=True)
    free = ((t == 0) & (flushed if greedy else True)) | ~(t >= 0)
    return Expected(value, bound, free.expand_as(x), plain.order)


OPERATION = Operation(
    name="temperature_softmax",
    summary="logits [R, V], temperature [R] -> probs [R, V]",
    inputs=(Input("temperature", TEMPERATURES, ladder=True, under=("zero_temperature", "greedy", (0.0,) * 3), symbol="T"),),
    outputs=(Output("probs", low=0.0, high=lambda vocab: 1.0),),
    policies={"empty_row": ("nan", "zeros"), "zero_temperature": ("undefined", "greedy")},
    reference=reference,
    traits={
        "accurate": (),
        "real": (),
        "row_sum_one": (),
        "ranges": (),
        "shift_equivariant": (),
        "permutation_equivariant": (),
        "monotone": (),
        "masking": (),
    },
    error_models={
        "shift_first": "",
        "scale_first": "the kernel loses accuracy as |x|/T grows. Subtract the maximum before dividing by T",
    },
)
