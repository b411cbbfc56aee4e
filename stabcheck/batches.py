"""Batches: the tensors a recipe materialises into, and how logits may lie in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stabcheck.recipe import Layout

TAIL = 16  # poisoned elements behind the last row of a padded layout


@dataclass(frozen=True)
class Batch:
    """logits [R, V] in the recipe's dtype and layout; inputs: name -> [R] fp32 or int64; options: constants of the call."""

    logits: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    known: Mapping[str, float] = field(default_factory=dict)  # smallest value of an input, where the host knows it
    options: Mapping[str, Any] = field(default_factory=dict)

    def smallest(self, name: str) -> float:
        """Smallest value of an input (1 for an empty batch; NaN if one is NaN); asks the device only if the host does not know."""
        if name in self.known:
            return self.known[name]
        values = self.inputs[name]
        return float(values.min()) if values.numel() else 1.0

    @property
    def args(self) -> tuple[torch.Tensor, ...]:
        """The logits and the operation's inputs, in its order."""
        return (self.logits, *self.inputs.values())

    def with_logits(self, logits: torch.Tensor) -> Batch:
        """The same inputs with other logits."""
        return replace(self, logits=logits)

    def with_inputs(self, **inputs: torch.Tensor) -> Batch:
        """The same batch with some inputs replaced."""
        return replace(self, inputs={**self.inputs, **inputs}, known={})

    def with_options(self, **options: Any) -> Batch:
        """The same batch with some options set."""
        return replace(self, options={**self.options, **options})

    def pick(self, rows: torch.Tensor | slice) -> Batch:
        """The batch of the given rows."""
        return replace(self, logits=self.logits[rows], inputs={k: v[rows] for k, v in self.inputs.items()}, known={})

    def digest(self) -> str:
        """sha256 of the bits of logits and inputs, the same on every device."""
        sha = hashlib.sha256()
        for tensor in self.args:
            if tensor.numel():
                plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                sha.update(plain.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def empty_layout(shape: tuple[int, int], dtype: torch.dtype, layout: Layout, device: Any) -> torch.Tensor:
    """A [rows, vocab] view in some layout; memory outside the view is NaN, so that whoever reads it is found out."""
    rows, vocab = shape
    if layout.contiguous or not rows:
        return torch.empty(rows, vocab, dtype=dtype, device=device)
    stride = vocab * layout.step + layout.pad
    flat = torch.full((layout.offset + rows * stride + TAIL,), torch.nan, dtype=dtype, device=device)
    return flat.as_strided((rows, vocab), (stride, layout.step), layout.offset)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: torch's copies of bf16 on a CPU rewrite the bits of NaN."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
