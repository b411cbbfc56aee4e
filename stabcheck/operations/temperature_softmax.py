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
from stabcheck.bounds import Contract, exponent_error, rounded, summation_error
from stabcheck.devices import U
from stabcheck.operations.base import Expected, Input, Operation

TEMPERATURES = (1.0, 0.5, 2.0, 0.1, 0.7, 1.3, 10.0, 100.0, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6, 1e-10, 1e-20, 1e-30, 1e-38, 1e-39, 2.0**-149)


def reference(batch: Batch, contract: Contract) -> Expected:
    """Exact probabilities of the given bits and the bound of DESIGN:

        rel_i = expm1(κ_i + Σ_j p_j κ_j + s + divide·u)        (numerator, denominator's terms, their summation s, the quotient)
        tol_i = p_i·(rel_i(1 + u_o) + u_o) + floor,  0 where x_i = −inf

    An error κ_j of the j-th exponent moves Σ e_j by p_j·κ_j relatively, to first order; expm1 covers the rest since log Σ exp is
    1-Lipschitz.
    """
    x = batch.logits.double()
    t = batch.inputs["temperature"].double()[:, None]
    m, first = x.max(-1, keepdim=True)
    z = (x - m) / t
    e = z.exp()
    p = e / e.sum(-1, keepdim=True)
    kappa = exponent_error(x, m, z, t, contract)
    quotient = contract.profile.divide * U
    shared = (p * kappa).sum(-1, keepdim=True) + summation_error(x.shape[1], contract) + quotient
    bound = torch.where(x == -torch.inf, 0.0, rounded(p, torch.expm1(kappa + shared), contract))

    def order() -> torch.Tensor:  # numerator errors only; the denominator is common, and at most a factor exp(shared) away
        slack = rounded(p * torch.exp(shared), torch.expm1(kappa + quotient), contract)
        return torch.where(t == 0, torch.inf, slack)

    return _edges(x, t, m, first, Expected(p, bound, order=order), contract)


def _edges(x: torch.Tensor, t: torch.Tensor, m: torch.Tensor, first: torch.Tensor, plain: Expected, contract: Contract) -> Expected:
    """Apply the policies to the rows they concern."""
    value, bound = plain.value, plain.bound
    greedy_row = (t == 0) & m.isfinite()
    one_hot = torch.zeros_like(x).scatter_(-1, first, 1.0)
    value = torch.where(greedy_row, one_hot, value)
    empty = 0.0 if contract.policies.get("empty_row") == "zeros" else torch.nan
    value = torch.where(m == -torch.inf, empty, value)
    value = torch.where(m.isnan() | (m == torch.inf), torch.nan, value)
    bound = torch.where(greedy_row | ~m.isfinite(), 0.0, bound)
    undefined = (t == 0) & (contract.policies.get("zero_temperature") != "greedy") | t.isnan() | (t < 0)
    return Expected(value, bound, undefined.expand_as(x), plain.order)


OPERATION = Operation(
    name="temperature_softmax",
    summary="logits [R, V], temperature [R] -> probs [R, V]",
    inputs=(Input("temperature", TEMPERATURES),),
    policies={"empty_row": ("nan", "zeros"), "zero_temperature": ("undefined", "greedy")},
    reference=reference,
    traits=frozenset({"row_sum_one", "shift_invariant", "permutation_equivariant", "monotone", "masking"}),
)
