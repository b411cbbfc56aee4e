"""A trial: one kernel × property × dtype on one device. Examines cases, keeps the tally, and raises what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from stabcheck.cases import Case, KernelFault
from stabcheck.devices import Device, alone, crowded, out_of_memory, seconds
from stabcheck.errors import ShortOfMemory, UnsupportedInput
from stabcheck.findings import Broken, Finding, broken
from stabcheck.laws import Law
from stabcheck.recipe import Recipe
from stabcheck.regimes import magnitude, regimes
from stabcheck.registry import Kernel
from stabcheck.verdicts import ULPS, Comparison, Summary, Witness, failing_rows, summarise, witness
from stabcheck.watchdog import Hung, watched

NO_NUMBER = float("nan")
LOST_DEVICE = "CUDA error"
CROWDED = "the memory that others left of the device did not suffice; give it fewer workers (-n), or a larger GPU"
SHRINK_SECONDS = {True: 4.0, False: 6.0}  # by "on a GPU": how long Hypothesis may shrink a recipe


@dataclass
class Tally:
    """What a trial went through, and how much of it meant something."""

    examples: int = 0
    rows: int = 0
    elements: int = 0
    vacuous: int = 0  # examples in which nothing was compared
    unsupported: int = 0  # examples the kernel refused
    short: int = 0  # examples for which others had left too little device memory
    refusal: str = ""  # why, the first time that either happened
    killed_at: int = 0  # the number of the first example that failed
    total: Summary = field(default_factory=Summary)
    regimes: Counter[str] = field(default_factory=Counter)
    by_vocab: dict[int, float] = field(default_factory=dict)  # floor(log2 V) -> worst use of the bound in examples of that size
    by_magnitude: dict[int, float] = field(default_factory=dict)  # the same by `regimes.magnitude`

    def count(self, recipe: Recipe, outcome: Outcome) -> None:
        """Add one examined recipe."""
        self.examples += 1
        self.unsupported += bool(outcome.refusal) and not outcome.short
        self.short += outcome.short
        self.refusal = self.refusal or outcome.refusal
        if outcome.refusal and not outcome.total.compared:
            return  # refused: not exercised
        self.rows += recipe.total_rows
        self.elements += recipe.elements
        self.vacuous += outcome.ok and recipe.elements > 0 and not outcome.total.compared
        self.total += outcome.total
        self.regimes.update(regimes(recipe))
        for worst, key in ((self.by_vocab, recipe.vocab.bit_length() - 1), (self.by_magnitude, magnitude(recipe))):
            worst[key] = max(worst.get(key, 0.0), outcome.total.utilisation)

    def data(self) -> dict[str, Any]:
        """JSON-able; figures to four digits, since sums of the reference may be added in any order on a GPU."""
        total = asdict(self.total) | {"utilisation": _short(self.total.utilisation), "ulp": _short(self.total.ulp)}
        by = {name: {key: _short(value) for key, value in getattr(self, name).items()} for name in ("by_vocab", "by_magnitude")}
        ulps = {k: n for k, n in zip(ULPS, total.pop("ulps"), strict=True) if n}
        return asdict(self) | by | {"total": total, "ulps": ulps, "regimes": dict(self.regimes)}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Outcome:
    """The result of one law on one case: the summary, and the failed comparison or fault if there is one."""

    total: Summary = field(default_factory=Summary)
    failed: Comparison | None = None
    fault: KernelFault | None = None
    refusal: str = ""  # why the case was not, or not wholly, examined
    short: bool = False  # for lack of memory

    @property
    def ok(self) -> bool:
        return self.failed is None and self.fault is None

    def witness(self) -> Witness:
        """The element that shows the failure; for a fault, only its kind."""
        if self.failed is not None:
            return witness(self.failed)
        assert self.fault is not None
        return Witness(self.fault.kind, 0, 0, NO_NUMBER, NO_NUMBER, NO_NUMBER, 1, 1, "")

    def failing_rows(self) -> torch.Tensor | None:
        """[R] bool where rows can be told apart, else None."""
        return failing_rows(self.failed) if self.failed is not None and self.failed.aligned else None


HUNG = Outcome(fault=KernelFault("hang", "the kernel had not come back when the watchdog's time was up"))


class Trial:
    """Examines recipes; a failing one raises the exception of its kind, and raises the same again whenever it comes back."""

    def __init__(self, kernel: Kernel, law: Law, dtype: str, device: Device) -> None:
        self.kernel, self.law, self.dtype, self.device = kernel, law, dtype, device
        self.tally = Tally()
        self._known: dict[str, Broken] = {}
        self._shrink_until = 0.0
        self.lost = False  # the device's context died in a crash, or the kernel hung: running it again would not help
        self.known_kinds: frozenset[str] = frozenset()  # of the ledger: they are kept aside, and the search goes on for others
        self.aside: dict[str, Finding] = {}
        self.on_hang: Callable[[Finding], None] = lambda finding: None

    @property
    def identity(self) -> dict[str, str]:
        """What reports and the ledger know the trial by."""
        return {"kernel": self.kernel.id, "property": self.law.name, "dtype": self.dtype}

    def __call__(self, recipe: Recipe) -> None:
        """Put the law to one recipe; raises Broken.

        A recipe known to fail is not run again: a kernel that fails now and then must not look like a flaky test.
        """
        found = self._known.get(recipe.to_json()) if self._known else None
        if found is None and (self.lost or (self._known and seconds(self.device) > self._shrink_until)):
            return  # enough of the recipe's shrinking; the domain shrinker goes on from the smallest known to fail
        if found is None:
            outcome = self.examine(recipe)
            self.tally.count(recipe, outcome)
            if outcome.ok:
                return
            if (kind := outcome.witness().kind) in self.known_kinds:
                self.aside.setdefault(kind, self.finding(recipe, outcome))
                return
            if not self._known:
                self.tally.killed_at = self.tally.examples
                self._shrink_until = seconds(self.device) + SHRINK_SECONDS[self.device.is_gpu]
            found = self._known[recipe.to_json()] = broken(self.finding(recipe, outcome))
        raise found.with_traceback(None)  # the one place: Hypothesis tells bugs apart by type and line

    def examine(self, recipe: Recipe, case: Case | None = None) -> Outcome:
        """Run the law once, counting nothing."""
        try:
            beside = alone(self.device) if self.law.big else nullcontext()
            with beside, watched(self.device.is_gpu, lambda: self.on_hang(self.finding(recipe, HUNG))):
                return self._examine(case or Case(self.kernel, self.device, recipe))
        except Hung:
            self.lost = True
            return HUNG

    def _examine(self, case: Case) -> Outcome:
        comparisons: list[Comparison] = []
        refusal, short = "", False
        try:
            try:
                for comparison in self.law.comparisons(case):
                    comparisons.append(comparison)
            except UnsupportedInput as error:  # what was compared before the refusal still counts
                refusal, short = str(error) or type(error).__name__, isinstance(error, ShortOfMemory)
            except Exception as error:
                if not self._for_lack_of_memory(error):
                    raise
                refusal, short = CROWDED, True
            summaries = summarise(comparisons)
        except KernelFault as fault:
            return Outcome(fault=KernelFault(fault.kind, fault.detail))  # without the frames of the run, which hold its tensors
        except RuntimeError as error:  # a launch fails when its result is waited for
            if self._for_lack_of_memory(error):
                return Outcome(refusal=CROWDED, short=True)
            if LOST_DEVICE not in str(error):
                raise
            self.lost = True
            return Outcome(fault=KernelFault("crash", f"{LOST_DEVICE}: {str(error).strip().splitlines()[0]}"))
        failed = next((c for c, s in zip(comparisons, summaries, strict=True) if s.failed), None)
        return Outcome(sum(summaries, Summary()), failed, refusal=refusal, short=short)

    def _for_lack_of_memory(self, error: Exception) -> bool:
        """Whether it was not the kernel that asked for too much: others hold most of the memory, or the law itself takes as much."""
        return out_of_memory(error) and (self.law.big or crowded(self.device))

    def finding(self, recipe: Recipe, outcome: Outcome) -> Finding:
        """Describe a failed outcome."""
        return Finding(
            kernel=self.kernel.id,
            target=self.kernel.target,
            property_name=self.law.name,
            law=self.law.statement,
            dtype=self.dtype,
            arch=self.device.arch,
            recipe=recipe,
            witness=outcome.witness(),
            device=str(self.device),
            on=self.device.name,
            detail=outcome.fault.detail if outcome.fault else "",
        )
