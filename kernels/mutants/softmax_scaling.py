"""Softmax mutants whose arithmetic is wrong: the exponent z, the sentinel below all logits, the denominator d."""

import triton
import triton.language as tl

from stabcheck.kernels.mutants.skeleton import launch, mutant, row_maximum, shifted_then_scaled, softmax, tile, two_passes

SENTINEL = -5e4


@triton.jit
def _scaled_then_shifted(x, m, T):
    """z = x/T - m/T"""
    return x / T - m / T


@mutant("SM1", killed_by=("finiteness",), vocab=2)
def scales_before_the_maximum(logits, temperature):
    """Scales by T before it subtracts the maximum: x/T overflows, and inf - inf is NaN (SGLang #20501)."""
    return launch(softmax, logits, temperature, EXPONENT=_scaled_then_shifted)


@triton.jit
def _scaled(x, T):
    """x/T, kept finite for a finite x"""
    largest = 3.4028234663852886e38
    return tl.where(tl.abs(x) < float("inf"), tl.minimum(tl.maximum(x / T, -largest), largest), x)


@triton.jit
def _scaled_within_range_then_shifted(x, m, T):
    return _scaled(x, T) - _scaled(m, T)


# fp32 only: between 16-bit logits a difference is either 0 or so large that x/T keeps enough of it
@mutant("SM2", killed_by=("accuracy",), vocab=3, dtypes=["fp32"])
def scales_first_without_overflow(logits, temperature):
    """Scales by T before the maximum, clamped so that nothing overflows: the error of z grows with |x|/T (SGLang #20501)."""
    return launch(softmax, logits, temperature, EXPONENT=_scaled_within_range_then_shifted)


@mutant("SM3", killed_by=("finiteness",), policies={"zero_temperature": "greedy"})
def divides_by_zero_temperature(logits, temperature):
    """Promises the greedy answer at T = 0 and divides by it like by any other T: 0/0 is NaN (SGLang #20501)."""
    return launch(softmax, logits, temperature)


@triton.jit
def _shifted_times_reciprocal(x, m, T):
    """z = (x - m) · (1/T)"""
    return (x - m) * (1 / T)


@mutant("SM5", killed_by=("accuracy", "finiteness"), vocab=3)
def multiplies_by_the_reciprocal(logits, temperature):
    """Multiplies by 1/T instead of dividing: rounds twice, and 1/T is infinite below T = 2.9e-39 (the softmax set)."""
    return launch(softmax, logits, temperature, EXPONENT=_shifted_times_reciprocal)


@mutant("SM9", killed_by=("accuracy",), vocab=2)
def finite_sentinel(logits, temperature):
    """Takes -5e4 for -inf: below it the maximum is no logit and the lanes beyond the row weigh most (FlashInfer #4267)."""
    return launch(softmax, logits, temperature, LEAST=SENTINEL, OTHER=SENTINEL)


@triton.jit
def _summed_in_bf16(x, V, x_col, T, EXPONENT: tl.constexpr, OTHER: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """d = Σ exp(z), rounded to bf16's 8 bits after each term"""
    m = row_maximum(x, V, x_col, OTHER, LEAST, BLOCK)
    d = tl.full([1], 0.0, tl.float32)
    for column in range(0, V):
        e = tl.exp(EXPONENT(tile(x, column + tl.arange(0, 1), V, x_col, OTHER), m, T))  # [1]
        d = (d + e).to(tl.bfloat16).to(tl.float32)
    return m, d


@mutant("SM10", killed_by=("accuracy", "normalisation"), max_vocab=1025)  # one addition at a time: slow at large V
def sums_in_bf16(logits, temperature):
    """Accumulates the denominator in bf16: 256 + 1 = 256, so 1000 equal logits count as 256 (the softmax set)."""
    return launch(softmax, logits, temperature, STATISTICS=_summed_in_bf16)


@triton.jit
def _with_epsilon(x, V, x_col, T, EXPONENT: tl.constexpr, OTHER: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """d = Σ exp(z) + 1e-6"""
    m, d = two_passes(x, V, x_col, T, EXPONENT, OTHER, LEAST, BLOCK)
    return m, d + 1e-6


# fp32 only: 0.999999 rounds to 1 in 16 bits
@mutant("SM11", killed_by=("accuracy",), vocab=1, dtypes=["fp32"])
def adds_epsilon(logits, temperature):
    """Adds 1e-6 to the denominator "for safety", although no denominator is below 1 (the softmax set)."""
    return launch(softmax, logits, temperature, STATISTICS=_with_epsilon)


@triton.jit
def _clamped(x, m, T):
    """z = max((x - m)/T, -80), and NaN stays NaN"""
    z = shifted_then_scaled(x, m, T)
    return tl.where(z < -80.0, -80.0, z)


# not fp16, which rounds exp(-80) to the 0 it should be
@mutant("SM13", killed_by=("masking", "accuracy"), vocab=2, dtypes=["fp32", "bf16"])
def clamps_the_exponent(logits, temperature):
    """Clamps z at -80: a token under -inf keeps the probability exp(-80) = 1.8e-35 (the softmax set)."""
    return launch(softmax, logits, temperature, EXPONENT=_clamped)
