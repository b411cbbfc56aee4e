"""The rows of a cross-entropy: their losses, their gradients and how far a correct kernel may be from them; notation in `cross_entropy`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import (
    MOST_ERROR,
    MOST_NEGATIVE,
    Contract,
    argument_error,
    log_error,
    quotient_error,
    scaled_overflow,
    slope,
    summation_error,
)
from stabcheck.devices import FLUSH, U
from stabcheck.floats import FP32
from stabcheck.operations.base import IGNORED, Option
from stabcheck.operations.parts import Shifted, shift

OPTIONS = {
    option.name: option
    for option in (
        Option("ignore_index", (IGNORED, 0, 2)),
        Option("label_smoothing", (0.0, 0.1, 0.5)),
        Option("lse_square_scale", (0.0, 1e-4, 1e-2)),
        Option("softcap", (0.0, 30.0, 1.0)),
        Option("reduction", ("none",), choices=("none", "sum", "mean")),
    )
}


@dataclass(frozen=True)
class Problem:
    """The tensors of a batch; `bent`: how far y is off, relative to |y|, where it comes of a softcap; `taking`: part in the smoothing."""

    batch: Batch
    contract: Contract
    y: torch.Tensor
    tanh: torch.Tensor | None
    bent: float
    parts: Shifted
    target: torch.Tensor
    taking: torch.Tensor

    def option(self, name: str) -> Any:
        return self.batch.options.get(name, OPTIONS[name].default)

    @property
    def ignored(self) -> torch.Tensor:
        return self.target == int(self.option("ignore_index"))

    @property
    def upstream(self) -> torch.Tensor:
        """[R] fp64; autograd gives it the loss's dtype."""
        return self.batch.inputs["upstream"].to(self.contract.output.torch).double()

    @property
    def undefined(self) -> torch.Tensor | None:
        """[R] rows of which a looser kernel promises nothing: sums of its smoothing, or logits it scales first, overflow, to inf − inf."""
        undefined = None
        if self.contract.error_model == "scale_first":
            undefined = scaled_overflow(self.y, self.contract)[:, 0] & (self.y < torch.inf).all(-1)
        if self.contract.error_model == "shift_first" or not self.option("label_smoothing"):
            return undefined
        heights = torch.where(self.taking, self.y.abs(), 0.0).sum(-1)
        of_sums = (heights > FP32.max) | ((self.smoothed * self.lse.abs())[:, 0] > FP32.max)
        return of_sums if undefined is None else of_sums | undefined

    @property
    def in_range(self) -> torch.Tensor:
        return (self.target >= 0) & (self.target < self.y.shape[1])

    @property
    def at(self) -> torch.Tensor:
        """[R, 1] the target's column, some column where there is none."""
        return self.target.clamp(0, self.y.shape[1] - 1)[:, None]

    @cached_property
    def of_log_d(self) -> torch.Tensor:
        return self.parts.of_log_d(self.contract)

    @cached_property
    def lse(self) -> torch.Tensor:
        return self.parts.m + self.parts.log_d

    @property
    def of_lse(self) -> torch.Tensor:
        return self.of_log_d + U * self.lse.abs() + self.bent * self.parts.m.abs()

    @property
    def smoothed(self) -> torch.Tensor:
        """[R, 1] number of classes that take part in the smoothing."""
        return self.taking.sum(-1, keepdim=True).double()

    def of_arguments(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Error of z = y − m."""
        error = argument_error(y, self.parts.m, z, self.contract)
        return error + self.bent * (y.abs() + self.parts.m.abs()) if self.bent else error


def problem_of(batch: Batch, contract: Contract) -> Problem:
    x, cap = batch.logits.double(), float(batch.options.get("softcap", 0.0))
    profile = contract.profile
    tanh = torch.tanh(x / cap) if cap else None
    y = x if tanh is None else cap * tanh
    bent = (profile.tanh + profile.divide + 2) * U if cap else 0.0  # x/c (which tanh does not amplify), tanh, the product with c
    spread = bent * (y.abs() + y.abs().amax(-1, keepdim=True)) if cap else None
    taking = (y > -torch.inf) if contract.policies["masked_smoothing"] == "skip" else torch.ones_like(y, dtype=torch.bool)
    return Problem(batch, contract, y, tanh, bent, shift(y, contract, spread), batch.inputs["target"], taking)


def row_losses(q: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """[R] losses and their errors: of log d, of each z, of the smoothed classes' sum (terms of one sign, rescaled as d is), of lse².

    An unshifted kernel forms lse − x: its roundings are relative to those.
    """
    eps, zeta, vocab = float(q.option("label_smoothing")), float(q.option("lse_square_scale")), q.y.shape[1]
    summed = 2 * summation_error(vocab, q.contract) + 2 * U
    log_d, y_t, z_t = q.parts.log_d, q.y.gather(1, q.at), q.parts.z.gather(1, q.at)
    loss = (1 - eps) * (log_d - z_t) if eps < 1 else torch.where(z_t == -torch.inf, torch.inf, 0.0 * log_d)  # a masked target: always inf
    error = (1 - eps) * (q.of_log_d + q.of_arguments(y_t, z_t))
    unshifted = (1 - eps) * (q.lse.abs() + y_t.abs()) * 3 * U
    if eps:
        share = eps / vocab
        far, heights = (torch.where(q.taking, t.abs(), 0.0).sum(-1, keepdim=True) for t in (q.parts.z, q.y))
        of_far = torch.where(q.taking, q.of_arguments(q.y, q.parts.z), 0.0).sum(-1, keepdim=True)
        loss = loss + share * (q.smoothed * log_d + far)
        error = error + share * (q.smoothed * (q.of_log_d + summed * log_d) + of_far + summed * far)
        error = torch.where(far > FP32.max, torch.inf, error)
        unshifted = unshifted + share * (3 * U + summed) * (q.smoothed * q.lse.abs() + heights)
    if zeta:
        square = q.lse.square()
        loss = loss + zeta * square
        error = error + zeta * (2 * q.lse.abs() * q.of_lse + q.of_lse.square() + 3 * U * square)
        error = torch.where(square > FP32.max, torch.inf, error)
    error = error + 2 * U * loss.abs()
    return loss[:, 0], (error if q.contract.error_model == "shift_first" else error + unshifted)[:, 0]


def row_gradients(q: Problem, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, V] gradients and their errors before the output's rounding: |g|·(p_i·rel_i + roundings of the bracket, relative to its terms).

    p is exp(z)/d or exp(z − log d): the errors of both are allowed, for the second the rounding of its argument, u·|z| and slope·u·log d.
    Near p_t → 1 the bracket p_t − 1 is small, its error p_t·rel + O(u) is not; the output's rounding is relative to what is left.
    """
    eps, zeta, vocab = float(q.option("label_smoothing")), float(q.option("lse_square_scale")), q.y.shape[1]
    contract, parts = q.contract, q.parts
    exponents = parts.kappa + (parts.of_d + quotient_error(contract) + log_error(parts.log_d, contract) + slope(contract) * U * parts.log_d)
    exponents = exponents - U * parts.z.clamp(min=-MOST_NEGATIVE)
    if contract.error_model != "shift_first":
        exponents = exponents + (3 * U * (q.y.abs() + q.lse.abs())).masked_fill(q.y == -torch.inf, 0.0)
    relative = torch.expm1(exponents.clamp(max=MOST_ERROR))
    scale = 1 - eps + eps * q.smoothed / vocab + 2 * zeta * q.lse
    pulled = scale * parts.p
    weights = (q.taking.double() * (eps / vocab)).scatter_add(1, q.at, torch.full_like(parts.m, 1 - eps))
    bracket = pulled - weights
    of_bracket = pulled.abs() * (relative + 4 * U) + 4 * U * weights + scale.abs() * FLUSH
    of_bracket = of_bracket + 2 * zeta * q.of_lse * parts.p if zeta else of_bracket
    if q.tanh is not None:
        square = q.tanh.square()
        of_slope = (2 * square * (contract.profile.tanh + contract.profile.divide + 1) + 1) * U
        of_bracket, bracket = (1 - square) * of_bracket + of_slope * bracket.abs(), (1 - square) * bracket
    g = upstream[:, None]
    return g * bracket, g.abs() * (of_bracket + 4 * U * bracket.abs())


def row_upstream(q: Problem) -> torch.Tensor:
    """[R] what each row's gradient is multiplied with; under a mean also 1/(rows not ignored)."""
    upstream, how = q.upstream, q.option("reduction")
    if how == "none":
        return upstream
    count = (~q.ignored).sum().clamp(min=1) if how == "mean" else 1
    return upstream[:1].expand_as(upstream) / count
