"""What operations over logits share: the softmax in its shifted form, with the errors of its parts; all fp64, [R, V] or [R, 1].

m = max x,  z_i = (x_i − m)/T,  d = Σ exp(z_i),  p_i = exp(z_i)/d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stabcheck.bounds import MOST_ERROR, Contract, exponent_error, log_error, summation_error


@dataclass(frozen=True)
class Shifted:
    """kappa: error of each exponent; of_d: relative error of d = Σ exp(z), the errors of its terms weighted with p and their summation."""

    m: torch.Tensor
    z: torch.Tensor
    p: torch.Tensor
    d: torch.Tensor
    kappa: torch.Tensor
    of_d: torch.Tensor

    @property
    def log_d(self) -> torch.Tensor:
        return self.d.log()

    def of_log_d(self, contract: Contract) -> torch.Tensor:
        """Error of log d: that of d, relative, becomes absolute (expm1 covers the higher orders), and the logarithm's own."""
        error = torch.expm1(self.of_d)
        return error + log_error(self.log_d + error, contract)


def shift(x: torch.Tensor, contract: Contract, spread: torch.Tensor | None = None, **temperature: Any) -> Shifted:
    """The parts for x [R, V]; `spread`: how far exponents are off before they are formed; `temperature` as in `exponent_error`.

    An error κ_j of the j-th exponent moves d by p_j·κ_j relatively, to first order.
    """
    m = x.amax(-1, keepdim=True)
    z = x - m
    if (t := temperature.get("t")) is not None:
        z = z / t
    e = z.exp()
    d = e.sum(-1, keepdim=True)
    p = e / d  # NaN where m is infinite or NaN, as torch has it
    kappa = exponent_error(x, m, z, contract, **temperature)
    kappa = kappa if spread is None else kappa + spread
    of_d = (p * kappa).sum(-1, keepdim=True) + summation_error(x.shape[1], contract)
    lost = kappa.amax(-1, keepdim=True) >= MOST_ERROR  # such a term may be anything, however small its exact value is: d with it
    return Shifted(m, z, p, d, kappa, of_d.masked_fill_(lost, MOST_ERROR))
