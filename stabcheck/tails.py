"""Tails: many tokens far below the head, each rare, whose mass must be drawn in full."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stabcheck.cases import Case
from stabcheck.draws import bins_of, confirmed, drawing, told
from stabcheck.statistics import draws_needed
from stabcheck.verdicts import Comparison, summarise

GAPS = {12: 0.07, 14: 0.07, 16: 0.07, 18: 0.1, 20: 0.25}  # gap of the tail below the head -> deficit of its mass to be found
LEAST_EFFECT = 1e-5  # of a tail's mass; a smaller one takes more than 10^8 draws


def tail_masses(case: Case) -> Iterator[Comparison]:
    """The mass of a tail at each gap; stops at the first that fails."""
    for gap, deficit in GAPS.items():
        for comparison in tail_mass(case, gap, deficit):
            yield comparison
            if summarise([comparison])[0].failed:
                return


def tail_mass(case: Case, gap: int, deficit: float) -> Iterator[Comparison]:
    """Draws from a head and V − 1 tokens `gap` below it, as many as find a deficit of their mass."""
    vocab, plain = case.recipe.vocab, {spec.name: spec.default for spec in case.operation.inputs}
    row = case.batch.pick(slice(0, 1))
    row = row.with_inputs(**{name: torch.full_like(row.inputs[name], value) for name, value in plain.items()})
    logits = torch.full_like(row.logits, -float(gap))
    logits[0, case.recipe.seed % vocab] = 0.0
    row = row.with_logits(logits)
    if (bins := bins_of(case, row)) is not None:
        most, least = float(1 - bins.low[0]), float(1 - bins.high[0])  # of the tail: bin 0 is the argmax
        if (effect := deficit * least - (most - least)) < LEAST_EFFECT:
            return  # too few tokens to have a tail; or a CPU, which may sum in any order: its bounds let more than the deficit pass
        interval, drawn, made = confirmed(drawing(case, row, bins), bins.low, bins.high, draws_needed(most, effect))
        yield told(interval, made, bins.names, f"{drawn} draws, a head and {vocab - 1} tokens {gap} below it")
