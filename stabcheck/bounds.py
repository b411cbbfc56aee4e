"""Building blocks of the error bounds: how far a correct kernel may be from the exact result on this very input.

Nothing here is tuned. Each block is derived in its docstring from u = 2^-24 (kernels compute in fp32), the device's documented constants
(`stabcheck.devices.Profile`) and the data. All tensors are fp64.

Sources: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 4 (summation); P. Blanchard, D. J. Higham and
N. J. Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41 (2021); NVIDIA PTX ISA manual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stabcheck.devices import FLUSH, Profile, U
from stabcheck.floats import FP32, Format

MOST_NEGATIVE = 1e6  # exp(-1e6) = 0 in any format
MOST_ERROR = 300.0  # a larger error of an exponent is as vacuous, and expm1 of it still finite
VACUOUS = torch.finfo(torch.float64).max  # the bound where an error reached that: any finite value will do, however small p = exp(z) is
TINY_T = 2.0**-92


@dataclass(frozen=True)
class Contract:
    """What a kernel is held against: formats of the logits and of its output, edge policies, error model, arithmetic of the device.

    noise: (seed [R], position [R], V) -> [R, V] fp64: the exponential variates −log u that the kernel says it draws with, as it realises
    them up to `noise_error`, relative.
    """

    input: Format
    output: Format
    profile: Profile
    policies: Mapping[str, str] = field(default_factory=dict)
    error_model: str = "shift_first"
    tile: int = 1024
    lanes: int = 128
    noise: Callable[..., torch.Tensor] | None = None
    noise_error: float = 0.0

    @property
    def u_out(self) -> float:
        """Relative error of rounding a result to the output; 0 for fp32, in which it was computed."""
        if self.output.name == "fp32":
            return 0.0
        return self.output.u * (self.profile.bf16_store if self.output.name == "bf16" else 1.0)

    @property
    def floor(self) -> float:
        """Absolute error near zero: one subnormal step of the output, and fp32 results that the hardware flushes."""
        return self.output.subnormal + FLUSH


def argument_error(
    x: torch.Tensor,
    m: torch.Tensor,
    z: torch.Tensor,
    contract: Contract,
    t: torch.Tensor | None = None,
    smallest_t: float = 1.0,
    more: float = 0.0,
) -> torch.Tensor:
    """Error of z = (x − m)/T, times log2 e, computed by subtracting, dividing and multiplying; t is None where there is no T.

    Subtraction rounds once (u); division by T costs `divide`, its reciprocal and a product one u more; the product with log2 e and the
    rounding of that constant `log2e`: each relative to z, hence a·u·|z| with a = 2 + divide + log2e, or 1 + log2e without T. Folding
    log2 e/T costs less. Inputs or differences below 2^-126 may be flushed, which moves z by their magnitude over T. A kernel that declares
    scale_first computes x·(log2 e)/T and m·(log2 e)/T, each relative to itself, and rounds their difference.

    `smallest_t` is the smallest of t, which the host knows: where no T is below 2^-92 all flushing together moves z by less than 3·2^-34,
    and that constant is used in place of looking at the data. `more` is added.
    """
    a = slope(contract, t)
    flushing = 3 * FLUSH / (1.0 if t is None else TINY_T)
    error = torch.rsub(z, flushing + more, alpha=a * U)  # a·u·|z|, since z ≤ 0: one launch
    if t is not None and not smallest_t >= TINY_T:
        error += (_flushable(x) + _flushable(m) + _flushable(x - m)) / t
    if contract.error_model == "scale_first":
        scaled = (x.abs() + m.abs()) * ((a - 1) * U)
        error += (scaled if t is None else scaled / t).masked_fill(x == -torch.inf, 0.0)
    return error


def exponent_error(x: torch.Tensor, m: torch.Tensor, z: torch.Tensor, contract: Contract, **temperature: Any) -> torch.Tensor:
    """κ: error of log(exp(z)): that of its argument (`argument_error`) and `exp`·u of the exponential itself.

    |z| is cut at 10^6: beyond, the exact result is 0 and κ multiplies it.
    """
    error = argument_error(x, m, z.clamp(min=-MOST_NEGATIVE), contract, more=contract.profile.exp * U, **temperature)
    plain = contract.error_model != "scale_first" and temperature.get("smallest_t", 1.0) >= TINY_T
    return error if plain else error.clamp_(max=MOST_ERROR)


def scaled_overflow(x: torch.Tensor, contract: Contract, t: torch.Tensor | None = None) -> torch.Tensor:
    """[R, 1] bool: rows in which x·(log2 e)/T, formed before the maximum is subtracted, may overflow fp32: inf − inf follows.

    The product as computed is off by at most (a − 1)·u relatively, a as in `argument_error`: its steps (1 + k·u) multiply to at most
    exp((a − 1)·u). So no |x|·(log2 e)/T whose product with that is at most the largest number of fp32 can overflow, and x/T < x·(log2 e)/T
    does not overflow where that does not.
    """
    grown = math.log2(math.e) * math.exp((slope(contract, t) - 1) * U)
    height = x.abs().masked_fill(x == -torch.inf, 0.0).amax(-1, keepdim=True) * grown
    return (height if t is None else height / t) > FP32.max


def slope(contract: Contract, t: torch.Tensor | None = None) -> float:
    """a: how many u·|z| an exponent z = (x − m)/T is off."""
    return 1 + contract.profile.log2e + (0 if t is None else contract.profile.divide + 1)


def summation_error(columns: int, contract: Contract) -> float:
    """Relative error of Σ e_j beyond that of its terms, for positive terms (Higham, sec. 4.2: the height of the summation tree times u).

    A tile is summed by `lanes` threads: each adds its tile/lanes terms one after another, then the lanes are combined as a tree. The
    n = ceil(V/tile) tile sums follow one after another. The height is tile/lanes − 1 + log2(lanes) + n − 1. Both are declared by the
    kernel; 1024 and 128, Triton's default of 4 warps, unless it says otherwise. On a CPU nothing is known of the order (torch adds a
    row's terms in 8 lanes, or one after another, by its layout): the row is one tile and one lane there.
    An online or split kernel rescales a running sum where the maximum grows, at most once at each later tile, and once more where it folds
    running sums kept side by side: one exponential and one product each. The scale factors' own exponents telescope into |z| and are in κ.
    This is part of the contract of every kernel.
    """
    profile, later_tiles = contract.profile, math.ceil(columns / contract.tile) - 1
    tile, lanes = (columns, 1) if profile.sums_in_any_order else (min(contract.tile, columns), min(contract.lanes, columns))
    height = math.ceil(tile / lanes) - 1 + math.ceil(math.log2(lanes)) + later_tiles
    rescalings = later_tiles + (columns > 1)
    return (height + rescalings * (profile.exp + 1)) * U


def quotient_error(contract: Contract) -> float:
    """Relative error of e/d: one division, or a reciprocal and a product."""
    return (contract.profile.divide + 1) * U


def sum_error(columns: int, contract: Contract) -> float:
    """How far Σ p_i may be from 1 whatever the errors of the exponents: p_i = ê_i/d with d = Σ ê_j up to its summation, then rounding."""
    return summation_error(columns, contract) + quotient_error(contract) + contract.u_out + columns * contract.floor


def rounded(value: torch.Tensor, relative: torch.Tensor, contract: Contract) -> torch.Tensor:
    """|value|·(rel(1 + u_o) + u_o) + floor: a relative error, then the rounding to the output. Overwrites `relative`."""
    if contract.u_out:
        relative.mul_(1 + contract.u_out).add_(contract.u_out)
    return relative.mul_(value.abs()).add_(contract.floor)


def log_error(log_d: torch.Tensor, contract: Contract) -> torch.Tensor:
    """Error of log d for d ≥ 1: that of the function, relative, and where d is near one absolute (the last bits of d are gone there)."""
    return contract.profile.log * U * log_d.abs() + contract.profile.log_near_one * U


def settled(value: torch.Tensor, error: torch.Tensor, contract: Contract) -> torch.Tensor:
    """The bound of a stored result: its error, its rounding to fp32 and to the output, and the floor.

    Where the result with its error passes the output's largest number, infinity is as right as any finite value: the bound is infinite.
    """
    magnitude = value.abs()
    bound = error * (1 + contract.u_out) + magnitude * (U + contract.u_out) + contract.floor
    bound = torch.where(magnitude + bound > contract.output.max, torch.inf, bound)
    return torch.where(magnitude < torch.inf, bound, 0.0)  # infinities and NaN are exact


def _flushable(x: torch.Tensor) -> torch.Tensor:
    """|x| where it is below the smallest normal number, else 0."""
    magnitude = x.abs()
    return torch.where(magnitude < FLUSH, magnitude, 0.0)
