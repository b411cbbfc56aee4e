"""The domain shrinker: from a failing recipe to the smallest concrete rows that fail in the same way.

Hypothesis has shrunk the recipe; here the rows themselves are taken apart (`stabcheck.simpler`): fewer rows, plainer layout, fewer columns,
fewer and rounder values, T = 1. The first proposal that still fails is kept, until no pass helps or time is up.
Where rows fail by themselves (`Law.row_local`) many proposals of one size are tried as rows of one launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice

import torch

from stabcheck.batches import Batch, empty_layout
from stabcheck.cases import Case
from stabcheck.devices import seconds
from stabcheck.findings import Finding
from stabcheck.operations import operation
from stabcheck.operations.base import IGNORED
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.simpler import PASSES, Hints, State, fewer_rows
from stabcheck.trial import Outcome, Trial

MOST_RUNS = 4096  # a literal row longer than this is no reproducer; the recipe stays as Hypothesis left it
ROWS_AT_ONCE = {True: 256, False: 8}  # by "on a GPU": the interpreter pays for every row
ELEMENTS_AT_ONCE = 1 << 22
SECONDS = {True: 6.0, False: 10.0}


def shrink(trial: Trial, finding: Finding) -> Finding:
    """The finding with the smallest recipe found; unchanged if its recipe does not fail any more."""
    shrinker = _Shrinker(trial, finding, seconds(trial.device) + SECONDS[trial.device.is_gpu])
    recipe = shrinker.run()
    outcome = trial.examine(recipe) if recipe else None
    if recipe is None or outcome is None or outcome.ok or outcome.witness().kind != finding.kind:
        return finding
    return trial.finding(recipe, outcome).with_(steps=shrinker.steps, shrunk_from=finding.recipe)


class _Shrinker:
    def __init__(self, trial: Trial, finding: Finding, deadline: float) -> None:
        self.trial, self.original, self.kind, self.deadline = trial, finding.recipe, finding.kind, deadline
        self.steps = 0
        batch = Case(trial.kernel, trial.device, finding.recipe).batch
        self.state = State(
            batch.logits.contiguous(), dict(batch.inputs), finding.recipe.layout, finding.recipe.seed, finding.recipe.options
        )
        w, op = finding.witness, operation(trial.kernel.operation)
        self.hints = Hints(w.row, w.column or 0, trial.law.row_local, int(finding.recipe.siblings > 1), op)

    def run(self) -> Recipe | None:
        """Shrink as far as time allows; None if no starting point fails or the result is too long to write down."""
        starts = [*islice(fewer_rows(self.state, self.hints), 1), self.state] if self.hints.row_local else [self.state]
        failing = next((state for state in starts if self.fails(state)), None)
        if failing is None:
            return None
        self.state, before = failing, -1
        while before != self.steps and self.in_time():
            before = self.steps
            for propose in PASSES:
                while (better := self.first_failing(propose(self.state, self.hints))) is not None and self.in_time():
                    self.state, self.steps = better, self.steps + 1
        return self.recipe()

    def recipe(self) -> Recipe | None:
        """The state as a recipe of literal rows, or None if that would be too long."""
        rows, named = [], self.hints.operation.column_input
        ignored = dict(self.state.options).get("ignore_index", IGNORED)
        for k in range(self.state.logits.shape[0]):
            values, counts = torch.unique_consecutive(self.state.logits[k], return_counts=True)
            if len(counts) > MOST_RUNS:
                return None
            background = Background("literal", tuple(values.double().tolist()), tuple(counts.tolist()))
            inputs = {name: v[k].item() for name, v in self.state.inputs.items()}
            if named and inputs[named] == ignored:  # which may lie beyond V; a recipe takes columns modulo V, but not codes
                inputs[named] = IGNORED
            rows.append(Row(background, inputs=tuple(inputs.items())))
        return self.skeleton(self.state).with_(rows=tuple(rows))

    def skeleton(self, state: State) -> Recipe:
        """A recipe of the state's sizes, for laws that read them."""
        vocab = state.logits.shape[1]
        return self.original.with_(vocab=vocab, siblings=1, fan="reseed", seed=state.seed, layout=state.layout, options=state.options)

    def fails(self, state: State) -> bool:
        """Whether the state alone fails with the finding's kind."""
        outcome = self.examine(state)
        return not outcome.ok and outcome.witness().kind == self.kind

    def examine(self, state: State) -> Outcome:
        """Run the law on a state, its tensors standing in for a recipe's."""
        recipe = self.skeleton(state)
        logits = empty_layout((state.logits.shape[0], recipe.vocab), state.logits.dtype, state.layout, state.logits.device)
        logits.copy_(state.logits)
        case = Case(self.trial.kernel, self.trial.device, recipe)
        case.__dict__["batch"] = Batch(  # what `cached_property` would hold
            logits, {k: v.clone() for k, v in state.inputs.items()}, options=dict(state.options)
        )
        return self.trial.examine(recipe, case)

    def first_failing(self, proposals: Iterator[State]) -> State | None:
        """The first proposal that fails; those of one shape are screened together where the law allows."""
        together = self.hints.row_local and self.state.logits.shape[0] == 1 and self.state.layout.contiguous
        at_once = max(1, min(ROWS_AT_ONCE[self.trial.device.is_gpu], ELEMENTS_AT_ONCE // self.state.logits.shape[1]))
        for _, group in groupby(proposals, key=lambda s: (s.logits.shape, s.options)):
            size = 1  # the boldest alone: where it fails, as when a row is halved again and again, the others need not run
            while chunk := list(islice(group, size if together else 1)):
                if not self.in_time():
                    return None
                size = at_once
                for state in self.screened(chunk) if len(chunk) > 1 else chunk:
                    if self.fails(state):
                        return state
        return None

    def in_time(self) -> bool:
        return seconds(self.trial.device) < self.deadline

    def screened(self, states: list[State]) -> list[State]:
        """Those of the one-row states that fail as rows of a common batch; all of them if rows cannot be told apart."""
        inputs = {k: torch.cat([s.inputs[k] for s in states]) for k in states[0].inputs}
        outcome = self.examine(replace(states[0], logits=torch.cat([s.logits for s in states]), inputs=inputs))
        if outcome.ok:
            return []
        failing = outcome.failing_rows()
        return states if failing is None else [s for s, bad in zip(states, failing.tolist(), strict=True) if bad]
