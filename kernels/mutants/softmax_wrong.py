"""Softmax mutants that are plainly wrong, and that `allclose(rtol=1e-2, atol=1e-2)` accepts at a real vocab: p is 1e-5 there."""

import torch

from stabcheck.kernels.mutants.skeleton import launch, mutant, softmax


@mutant("V1", killed_by=("accuracy", "normalisation"), vocab=2)
def zeros(logits, temperature):
    """Returns zeros (the sanity set)."""
    return torch.zeros_like(launch(softmax, logits, temperature))


@mutant("V2", killed_by=("accuracy",), vocab=2)
def uniform(logits, temperature):
    """Returns 1/V everywhere, whatever the logits (the sanity set)."""
    return torch.full_like(launch(softmax, logits, temperature), 1 / logits.shape[1])


@mutant("V3", killed_by=("accuracy", "normalisation"), vocab=2)
def five_percent_too_much(logits, temperature):
    """Returns 1.05 × p (the sanity set)."""
    return launch(softmax, logits, temperature) * 1.05


@mutant("V4", killed_by=("accuracy",), vocab=2)
def rolled(logits, temperature):
    """Returns p rolled by one along the row (the sanity set)."""
    return launch(softmax, logits, temperature).roll(1, dims=1)
