"""What an operation is: named inputs, an fp64 reference with its error bound, and edge policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract


@dataclass(frozen=True)
class Input:
    """A per-row scalar input: name, Python type of its values, and the values to draw, simple to nasty."""

    name: str
    values: tuple[float | int, ...]


@dataclass(frozen=True)
class Expected:
    """The exact result of a batch and how far a correct kernel may be from it, elementwise, fp64.

    value: what is computed; NaN where the policy says NaN.
    bound: largest error allowed; 0 where the value is exact.
    free:  elements the policy leaves undefined; nothing is compared there.
    order: on demand, how far an element may stand below one of a smaller logit: what its row shares cancels.
    """

    value: torch.Tensor
    bound: torch.Tensor
    free: torch.Tensor | None = None
    order: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Operation:
    """An operation over logits [R, V].

    policies: name -> the answers allowed, the default first.
    traits: what laws may assume: row_sum_one, shift_invariant, permutation_equivariant, monotone, masking.
    reference: (batch, contract) -> Expected.
    """

    name: str
    summary: str
    inputs: tuple[Input, ...]
    policies: Mapping[str, tuple[str, ...]]
    reference: Callable[[Batch, Contract], Expected]
    traits: frozenset[str] = field(default_factory=frozenset)

    def default_policies(self) -> dict[str, str]:
        """Each policy's default."""
        return {name: answers[0] for name, answers in self.policies.items()}
