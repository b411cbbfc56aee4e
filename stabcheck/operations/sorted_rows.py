"""Rows in the order in which filters keep their tokens, with the errors of what is compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import MOST_ERROR, Contract, summation_error
from stabcheck.devices import U
from stabcheck.operations.parts import shift


@dataclass(frozen=True)
class Sorted:
    """Rows sorted by logit, largest first, lowest id first among equals; [R, V] fp64 unless said otherwise.

    order: [R, V] int64, the id at each place. x, z, e, kappa: logit, exponent, exponential and its error, at each place.
    ends: [R, V] int64, the number of tokens whose logit is at least that of the place.
    of_sum: relative error of a sum beyond that of its terms.
    """

    order: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor
    e: torch.Tensor
    kappa: torch.Tensor
    ends: torch.Tensor
    of_sum: float

    @cached_property
    def places(self) -> torch.Tensor:
        return torch.arange(self.x.shape[1], device=self.x.device).expand_as(self.x)

    @cached_property
    def mass(self) -> torch.Tensor:
        """Σ e over the first 1, 2, … places."""
        return self.e.cumsum(-1)

    @cached_property
    def error(self) -> torch.Tensor:
        """Σ e·κ over the first 1, 2, … places."""
        return (self.e * self.kappa).cumsum(-1)

    @cached_property
    def reach(self) -> torch.Tensor:
        """How far off an exponent may be; infinite where its error was cut."""
        return torch.where(self.kappa >= MOST_ERROR, torch.inf, self.kappa)

    def total(self, running: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        """[R, 1] a running sum over the first n [R] ≥ 1 places."""
        return running.gather(1, n[:, None] - 1)

    def end_of_ties(self, n: torch.Tensor) -> torch.Tensor:
        """[R] n, moved behind the last token that ties with place n − 1."""
        return self.ends.gather(1, n[:, None] - 1)[:, 0].clamp(min=1)

    def near(self, n: torch.Tensor, contract: Contract) -> torch.Tensor:
        """[R, V] bool: places that nothing tells from place n − 1: ties; under scale_first, whose kernels compare x/T or probabilities
        after a rounding, also those whose exponents differ by no more than their errors: κ each, and 4u for two probabilities rounded."""
        ties = self.x == self.total(self.x, n)
        if contract.error_model == "shift_first":
            return ties
        return ties | ((self.z - self.total(self.z, n)).abs() <= self.reach + self.total(self.reach, n) + 4 * U)

    def end_of_near(self, n: torch.Tensor, contract: Contract) -> torch.Tensor:
        """[R] n, moved behind the last token that may be merged with place n − 1."""
        return torch.maximum(n, (self.near(n, contract) * (self.places + 1)).amax(-1))

    def to_columns(self, values: torch.Tensor) -> torch.Tensor:
        """Values by place as values by id."""
        return torch.empty_like(values).scatter_(1, self.order, values)


def sorted_rows(batch: Batch, contract: Contract) -> Sorted:
    """The rows of a batch in the order in which filters keep them. Rows of T = 0 are sorted as if T were 1."""
    x = batch.logits.float() + 0.0  # fp32 holds every format; −0 and +0 are ties
    t = batch.inputs["temperature"].double()[:, None]
    parts = shift(x.double(), contract, t=torch.where(t == 0, 1.0, t), smallest_t=batch.smallest("temperature"))
    values, order = x.sort(stable=True, dim=-1, descending=True)
    flipped = (-values).contiguous()
    ends = torch.searchsorted(flipped, flipped, right=True)
    z, kappa = parts.z.gather(1, order), parts.kappa.gather(1, order)
    return Sorted(order, values.double(), z, z.exp(), kappa, ends, summation_error(x.shape[1], contract))
