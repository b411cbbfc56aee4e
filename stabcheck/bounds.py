"""Building blocks of the error bounds: how far a correct kernel may be from the exact result on this very input.

Nothing here is tuned. Each block is derived in its docstring from u = 2^-24 (kernels compute in fp32), the device's documented constants
(`stabcheck.devices.Profile`) and the data. All tensors are fp64.

Sources: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 4 (summation); P. Blanchard, D. J. Higham and
N. J. Higham, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41 (2021); NVIDIA PTX ISA manual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from stabcheck.devices import FLUSH, Profile, U
from stabcheck.floats import Format


@dataclass(frozen=True)
class Contract:
    """What a kernel's output is held against: format of the output, edge policies, error model and the arithmetic of the device."""

    output: Format
    profile: Profile
    policies: Mapping[str, str] = field(default_factory=dict)
    error_model: str = "shift_first"
    tile: int = 1024

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


def exponent_error(x: torch.Tensor, m: torch.Tensor, z: torch.Tensor, t: torch.Tensor, contract: Contract) -> torch.Tensor:
    """κ: error of log(exp(z)) for z = (x − m)/T computed by subtracting, dividing, multiplying by log2 e and one exponential.

    Subtraction rounds once (u), division by T costs `divide`, the product with log2 e and the rounding of that constant `log2e`: each
    relative to z, hence a·u·|z| with a = 1 + divide + log2e. Folding log2 e/T into one factor costs the same a.
    The exponential itself adds `exp`·u. Inputs or differences below 2^-126 may be flushed: 2^-126/T for each that is.
    A kernel that declares scale_first computes x/T and m/T, each with a division's error relative to itself, and rounds their difference.
    """
    profile = contract.profile
    a = 1 + profile.divide + profile.log2e
    flushed = _flushable(x) + _flushable(m) + _flushable(x - m)
    kappa = a * U * z.abs() + profile.exp * U + flushed * (FLUSH / t)
    if contract.error_model == "scale_first":
        kappa = kappa + (1 + profile.divide) * U * (x.abs() + m.abs()) / t
    return torch.where(z == -torch.inf, 0.0, kappa)  # an exact zero


def summation_error(columns: int, contract: Contract) -> float:
    """Relative error of Σ e_j beyond that of its terms, for positive terms (Higham, sec. 4.2: the height of the summation tree times u).

    Each tile is summed as a tree of height log2(tile), and the n = ceil(V/tile) tile sums one after another in n − 1 additions.
    An online or split kernel rescales a running sum where the maximum grows, at most once at each later tile: one more exponential and
    product. The scale factors' own exponents telescope into |z| and are in κ. This is part of the contract of every kernel.
    """
    tiles = math.ceil(columns / contract.tile)
    height = math.ceil(math.log2(min(contract.tile, columns))) + tiles - 1
    return (height + (tiles - 1) * (contract.profile.exp + 1)) * U


def rounded(value: torch.Tensor, relative: torch.Tensor, contract: Contract) -> torch.Tensor:
    """|value|·(rel(1 + u_o) + u_o) + floor: a relative error, then the rounding to the output."""
    relative = relative.clamp(max=1e300)  # a larger one is as vacuous, and 0 × inf is not a bound
    return value.abs() * (relative * (1 + contract.u_out) + contract.u_out) + contract.floor


def _flushable(x: torch.Tensor) -> torch.Tensor:
    return ((x != 0) & (x.abs() < FLUSH)).double()
