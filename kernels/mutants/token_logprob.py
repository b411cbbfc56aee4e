"""Token-logprob mutants, and the correct kernel they are made of: two passes for m and d, a third one for the entropy.

    z_i = (x_i - m)/T    d = Σ exp(z_i)    logprob = z_label - log d    entropy = log d - (Σ z_i · exp(z_i))/d

A label outside [0, V) raises.
"""

import torch
import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import mutant, tile, two_passes


@triton.jit
def halved_shifted_then_scaled(x, m, T):
    """z = (x - m) / T, where halves cannot overflow when subtracted"""
    return (0.5 * x - 0.5 * m) / T * 2.0


@triton.jit
def nothing_of_nothing(z, e):
    """z · exp(z), and 0 · log 0 = 0"""
    return tl.where(e > 0, z * e, 0.0)


@triton.jit(do_not_specialize=range(9))
def logprob_and_entropy(
    x, labels, temperature, out, V, x_row, x_col, l_row, t_row,
    TERM: tl.constexpr = nothing_of_nothing,
    EXPONENT: tl.constexpr = halved_shifted_then_scaled,
    BLOCK: tl.constexpr = 128,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * x_row
    T = tl.load(temperature + row * t_row)
    m, d = two_passes(x, V, x_col, T, EXPONENT, float("-inf"), float("-inf"), BLOCK)
    moment = tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)  # [BLOCK]
        z = EXPONENT(tile(x, columns, V, x_col, float("-inf")), m, T)  # [BLOCK]
        moment += tl.sum(tl.where(columns < V, TERM(z, tl.exp(z)), 0.0), axis=0)
    label = tl.load(labels + row * l_row)
    log_d = tl.log(d)
    tl.store(out + row, EXPONENT(tl.load(x + label * x_col).to(tl.float32), m, T) - log_d)
    tl.store(out + tl.num_programs(0).to(tl.int64) + row, log_d - moment / d)


def token_logprob(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor, **slots) -> tuple[torch.Tensor, torch.Tensor]:
    """The correct kernel, but for what is put into its slots."""
    rows, vocab = logits.shape
    if bool(((labels < 0) | (labels >= vocab)).any()):
        raise ValueError(f"labels are {labels.tolist()} but logits have a vocab of {vocab}; pass 0 to {vocab - 1}")
    out = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    if rows:
        strides = (*logits.stride(), *labels.stride(), *temperature.stride())
        logprob_and_entropy[(rows,)](logits, labels, temperature, out, vocab, *strides, **slots)
    return out[0], out[1]


@triton.jit
def _product(z, e):
    """z · exp(z)"""
    return z * e


@mutant("CE8", "token_logprob", killed_by=("finiteness",), vocab=2, policies={"bad_target": "error"})
def nothing_times_infinity(logits, labels, temperature):
    """The entropy of a row with a masked token adds up 0 × -inf, which is NaN (the cross-entropy set)."""
    return token_logprob(logits, labels, temperature, TERM=_product)
