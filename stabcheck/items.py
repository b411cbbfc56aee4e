"""Test items: one pytest item per kernel × property × dtype, each a Hypothesis test of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import seed as seeded

from stabcheck.devices import give_back
from stabcheck.findings import Broken, Finding
from stabcheck.laws import Law
from stabcheck.operations import operation
from stabcheck.outcomes import Outcomes, Session
from stabcheck.profiles import LIMITS, settings_for
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.registry import Kernel
from stabcheck.reproducers import save
from stabcheck.shrinking import shrink
from stabcheck.strategies import drawn, space_for
from stabcheck.targets import dotted
from stabcheck.trial import Trial

RERUNS = 3
CPU_WEIGHT = 2  # the interpreter is too slow for a law's full share of examples
GATE_ON_CPU = 0.16  # of the examples a gate draws on a GPU: all kernels pass two cores within eight minutes
MUTANT_WEIGHT = 6


class LawItem(Outcomes, pytest.Function):  # type: ignore[misc]  # pytest's own classes disagree on repr_failure
    """Runs one trial. What Hypothesis finds is confirmed, shrunk to concrete rows, saved and told in a few lines."""

    trial: Trial

    @property
    def identity(self) -> dict[str, str]:
        return self.trial.identity

    @property
    def target(self) -> str:
        return self.trial.kernel.target

    def tally(self) -> dict[str, Any]:
        return self.trial.tally.data()

    def examine(self) -> None:
        self.trial.known_kinds = frozenset(entry.kind for entry in self.known)
        try:
            self.trial.on_hang = self.tell_and_end
            pytest.Function.runtest(self)
        except (Broken, BaseExceptionGroup) as raised:
            found, foreign = _findings(raised)
            self.found = [self.settle(f) for f in found]
            if foreign:
                raise
        finally:
            give_back(self.trial.device)
        self.found += [self.settle(f) for f in self.trial.aside.values()]

    def settle(self, finding: Finding) -> Finding:
        """Confirm a finding by running it again, shrink it, save it; saved as it is first, in case shrinking breaks something."""
        report_dir, kernel = self.session_state.report_dir, self.trial.kernel
        if self.trial.lost:
            return save(finding, kernel, report_dir)
        save(finding, kernel, report_dir)
        again = [self.trial.examine(finding.recipe) for _ in range(RERUNS)]
        if right := sum(outcome.ok and not outcome.refusal for outcome in again):
            detail = f"{finding.kind} at first, right in {right} of {RERUNS} runs of the same input"
            finding = finding.with_(witness=finding.witness.as_kind("not deterministic"), detail=detail)
        elif not self.trial.law.once:  # whose input is fixed
            finding = self.shrunk(finding)
        return save(finding, kernel, report_dir)

    def tell_and_end(self, finding: Finding) -> None:
        """A kernel hangs on the GPU: what is known is saved and told; no more can be done in this process."""
        told = save(finding, self.trial.kernel, self.session_state.report_dir).text()
        sys.__stderr__.write(f"\n{told}\nthe device answers no more: the session ends here\n")  # type: ignore[union-attr]
        sys.__stderr__.flush()  # type: ignore[union-attr]
        os._exit(1)

    def shrunk(self, finding: Finding) -> Finding:
        try:
            return shrink(self.trial, finding)
        except Exception as error:  # a shrinker that breaks must not cost the finding
            return finding.with_(detail=f"not shrunk: {type(error).__name__}: {error}")


def items_for(collector: Any, name: str, laws: list[Law], kernels: Iterable[Kernel], session: Session) -> Iterator[LawItem]:
    """The items of some laws and kernels, named so that -k finds each part."""
    asked = collector.config.getoption("--hypothesis-seed", None)
    for law in laws:
        for kernel in kernels:
            if kernel.mutant and law.name not in kernel.mutant.killed_by:
                continue
            for dtype in _dtypes(law, kernel):
                trial = Trial(kernel, law, dtype, session.device)
                parts = [kernel.operation, kernel.name, dtype] if name.removeprefix("test_") == law.name else [law.name, dtype]
                item = LawItem.from_parent(collector, name=f"{name}[{'-'.join(parts)}]", callobj=_test(trial, session.profile, asked))
                if law.big:
                    item.add_marker(pytest.mark.big)
                item.trial, item.session_state, item.why_not = trial, session, law.why_not(kernel, session.device)
                yield item


def _dtypes(law: Law, kernel: Kernel) -> tuple[str, ...]:
    """The dtypes a law is put to a kernel in; none where it says nothing about the operation."""
    if not law.applies(kernel):
        return ()
    return tuple(d for d in (kernel.dtypes[:1] if kernel.mutant else kernel.dtypes) if d in law.dtypes)


def _test(trial: Trial, profile: str | None, asked: str | None) -> Callable[[], None]:
    """The Hypothesis test of a trial, or a plain one for laws that run a fixed case.

    asked: the seed of the command line. Each trial gets one of its own made of it; else all would draw the same examples.
    """
    if trial.law.once:

        def fixed() -> None:
            vocab = min(trial.kernel.max_vocab or trial.law.vocab, trial.law.vocab)
            options = tuple((name, values[0]) for name, values in trial.kernel.options.items())
            trial(Recipe(trial.kernel.operation, trial.dtype, vocab, (Row(Background("bell", (0.0, 5.0))),), options=options))

        return fixed

    def drawn_test(recipe: Recipe) -> None:
        trial(recipe)

    # Hypothesis keeps examples, and seeds derandomised runs, by the test's source; its own plugin sets this for parametrised tests.
    key = f"{trial.law.name} {dotted(trial.kernel.target)} {trial.kernel.id} {trial.dtype}"
    drawn_test._hypothesis_internal_add_digest = key.encode()  # type: ignore[attr-defined]
    on_gpu = trial.device.is_gpu
    limits = LIMITS[on_gpu] | {"max_vocab": min(LIMITS[on_gpu]["max_vocab"], trial.law.max_vocab)}
    if not on_gpu:
        limits["max_rows"] = min(limits["max_rows"], operation(trial.kernel.operation).interpreted)
    space = space_for(trial.kernel, trial.dtype, **limits, fixed_options=trial.law.fixed_options(trial.kernel))
    weight = trial.law.weight if on_gpu else min(trial.law.weight, CPU_WEIGHT) * (GATE_ON_CPU if profile == "gate" else 1)
    if trial.kernel.mutant:
        profile, weight = "gate", MUTANT_WEIGHT  # the same examples in every run, and enough of them
    test: Callable[[], None] = settings_for(profile, on_gpu, weight)(given(recipe=drawn(space))(drawn_test))
    return test if asked is None else seeded(f"{asked} {key}")(test)


def _findings(raised: BaseException) -> tuple[list[Finding], bool]:
    """(the findings inside what Hypothesis raised, which groups distinct failures; whether there was anything else)."""
    if isinstance(raised, Broken):
        return [raised.finding], False
    if not isinstance(raised, BaseExceptionGroup):
        return [], True
    inner = [_findings(error) for error in raised.exceptions]
    return [finding for found, _ in inner for finding in found], any(foreign for _, foreign in inner)
