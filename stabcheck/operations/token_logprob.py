"""Log-probability of one token per row and the entropy of the row, at a temperature: the forward pass of RL trainers.

    z_i = (x_i − m)/T    d = Σ exp(z_i)    p_i = exp(z_i)/d    logprob = z_label − log d    entropy = log d − Σ_i p_i z_i

input        shape   dtype             meaning
logits       [R, V]  fp32, bf16, fp16  x; -inf masks a column
labels       [R]     int64             a column each, in [0, V)
temperature  [R]     fp32              T > 0
logprob      [R]     fp32              ≤ 0; -inf for a masked label
entropy      [R]     fp32              in [0, log V]; 0·log 0 = 0

Rows of -inf, and rows with NaN or +inf, give NaN. Policy bad_target: a label outside [0, V) raises, or makes its row NaN.
Kernels: verl's (#2656, #2899) and those of other RL trainers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, argument_error, quotient_error, scaled_overflow, settled, slope, summation_error
from stabcheck.devices import U
from stabcheck.floats import FP32
from stabcheck.operations.base import LARGEST, SMALLEST, Expected, Input, Operation, Output
from stabcheck.operations.parts import Shifted, shift
from stabcheck.operations.temperature_softmax import TEMPERATURES


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """Exact values and their bounds.

    logprob: the errors of z_label and of log d.
    entropy: that of log d; each term p_i·z_i as p_i (numerator, denominator, quotient) and z_i; their sum, all of one sign, kept beside d:
             a rescaling of it costs a product and a sum more, so twice the summation error.
    An unshifted kernel forms lse − x/T: it rounds relative to those.
    """
    x, labels = batch.logits.double(), batch.inputs["labels"]
    t = batch.inputs["temperature"].double()[:, None]
    vocab = x.shape[1]
    temperature: dict[str, Any] = {"t": t, "smallest_t": batch.smallest("temperature")}
    parts = shift(x, contract, **temperature)
    of_log_d = parts.of_log_d(contract)
    valid = (labels >= 0) & (labels < vocab)
    at = labels.clamp(0, vocab - 1)[:, None]
    z = parts.z.gather(1, at)
    logprob = (z - parts.log_d)[:, 0]
    error = (argument_error(x.gather(1, at), parts.m, z, contract, **temperature) + of_log_d)[:, 0]
    error = torch.where((parts.m - x.gather(1, at))[:, 0] > FP32.max, torch.inf, error)  # the difference overflows before T can shrink it
    terms = torch.where(parts.p == 0, parts.p, parts.p * parts.z).abs_()  # 0·log 0 = 0
    of_terms = torch.expm1(parts.kappa + parts.of_d + quotient_error(contract)) + (slope(contract, t) + 2) * U
    spread = (terms * of_terms).sum(-1) + 2 * summation_error(vocab, contract) * terms.sum(-1)
    entropy, of_entropy = parts.log_d[:, 0] + terms.sum(-1), of_log_d[:, 0] + spread
    if contract.error_model != "shift_first":
        more, of_sum = _unshifted(x, t, at, parts, of_terms, contract)
        error, of_entropy = error + more, of_entropy + of_sum
    free = ~valid if contract.policies["bad_target"] == "error" else None
    free = _and_bad_temperatures(free, batch, contract, x, t)
    return {
        "logprob": Expected(torch.where(valid, logprob, torch.nan), settled(logprob, error, contract), free),
        "entropy": Expected(torch.where(valid, entropy, torch.nan), settled(entropy, of_entropy, contract), free),
    }


def _unshifted(
    x: torch.Tensor, t: torch.Tensor, at: torch.Tensor, parts: Shifted, of_terms: torch.Tensor, contract: Contract
) -> tuple[torch.Tensor, torch.Tensor]:
    """What lse − x_label/T and lse − Σ p x/T add to the errors: roundings relative to lse and x/T, each with its division."""
    each = (contract.profile.divide + 2) * U
    lse = (parts.m / t).abs() + parts.log_d
    scaled = torch.where(parts.p == 0, parts.p, parts.p * (x / t).abs())
    label = each * (lse + (x.gather(1, at) / t).abs())[:, 0]
    return label, each * lse[:, 0] + (scaled * (of_terms + each + 2 * summation_error(x.shape[1], contract))).sum(-1)


def _and_bad_temperatures(
    free: torch.Tensor | None, batch: Batch, contract: Contract, x: torch.Tensor, t: torch.Tensor
) -> torch.Tensor | None:
    """T ≤ 0 and NaN mean nothing; where x/T overflows, a kernel that forms it promises nothing."""
    if contract.error_model == "scale_first":
        bad = scaled_overflow(x, contract, t)[:, 0] | ~(t[:, 0] > 0)
    elif contract.error_model == "unshifted":
        bad = (x.abs().masked_fill(x == -torch.inf, 0.0).amax(-1, keepdim=True) / t > FP32.max)[:, 0] | ~(t[:, 0] > 0)
    elif batch.smallest("temperature") > 0:
        return free
    else:
        bad = ~(t[:, 0] > 0)
    return bad if free is None else free | bad


OPERATION = Operation(
    name="token_logprob",
    summary="logits [R, V], labels [R], temperature [R] -> logprob [R], entropy [R]",
    inputs=(Input("labels", (0, LARGEST, SMALLEST), column=True), Input("temperature", TEMPERATURES, ladder=True, symbol="T")),
    outputs=(Output("logprob", per="row", high=lambda vocab: 0.0), Output("entropy", per="row", low=0.0, high=math.log)),
    policies={"bad_target": ("error", "nan")},
    reference=reference,
    traits={"accurate": (), "real": (), "ranges": (), "shift_equivariant": (), "permutation_equivariant": (), "masking": (), "targets": ()},
    error_models={
        "shift_first": "",
        "unshifted": "the log-probability is formed as lse − x/T, which rounds relative to the logits. Form (x − m)/T − log d",
        "scale_first": "the kernel loses accuracy as |x|/T grows. Subtract the maximum before dividing by T",
    },
    output="fp32",
)
