"""Log-sum-exp of each row: m + log Σ_j exp(x_j − m), m = max x.

input     shape   dtype             meaning
logits    [R, V]  fp32, bf16, fp16  x; -inf masks a column
result    [R]     fp32              or the logits' dtype, if the kernel declares it

A row of -inf gives -inf, one with +inf and no NaN gives +inf, a NaN gives NaN, all as in torch.logsumexp.
Kernels: the two-level log-sum-exp of verl (#2656, #2899), Liger, flash-attention's cross-entropy.
"""

from __future__ import annotations

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, scaled_overflow, settled
from stabcheck.operations.base import Expected, Operation, Output
from stabcheck.operations.parts import shift


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """value = m + log d; bound = error of log d + the rounding of the sum, u·|value|, and of the output.

    A kernel that scales first promises nothing where its scaled logits may overflow; +inf among the logits is no overflow.
    """
    x = batch.logits.double()
    parts = shift(x, contract)
    value = (parts.m + parts.log_d).where(parts.m.abs() != float("inf"), parts.m)[:, 0]
    free = (scaled_overflow(x, contract) & (parts.m < float("inf")))[:, 0] if contract.error_model == "scale_first" else None
    return {"lse": Expected(value, settled(value, parts.of_log_d(contract)[:, 0], contract), free)}


OPERATION = Operation(
    name="logsumexp",
    summary="logits [R, V] -> lse [R]",
    inputs=(),
    outputs=(Output("lse", per="row"),),
    policies={},
    reference=reference,
    traits={"accurate": (), "real": (), "shift_equivariant": (), "permutation_equivariant": (), "masking": ()},
    error_models={
        "shift_first": "",
        "scale_first": "the logits are scaled by log2 e before the maximum is subtracted",
    },
    output="fp32",
)
