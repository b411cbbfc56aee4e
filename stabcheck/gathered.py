"""What one pytest session gathers on its way: results, and what it takes to notice that some are missing. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Gathered:
    """Results of trials, and what was collected and selected. Under xdist the workers collect, and hand over what they know."""

    results: list[dict[str, Any]] = field(default_factory=list)
    laws: set[str] = field(default_factory=set)  # collected for every kernel
    trials: set[tuple[str, ...]] = field(default_factory=set)  # kernel, property, dtype
    selected: set[str] = field(default_factory=set)  # ids of tests that are to report
    passed_over: set[str] = field(default_factory=set)  # skipped by a marker or a fixture, before they could run
    deselected: int = 0

    def parcel(self) -> list[Any]:
        """What a worker sends home; plain types."""
        return [sorted(self.laws), sorted(map(list, self.trials)), sorted(self.selected), self.deselected]

    def unpack(self, parcel: list[Any]) -> None:
        """Add what a worker has sent; all collect the same."""
        laws, trials, selected, deselected = parcel
        self.laws.update(laws)
        self.trials.update(map(tuple, trials))
        self.selected.update(selected)
        self.deselected = max(self.deselected, deselected)

    def session(self, exitstatus: int) -> dict[str, Any]:
        """How the session ended, JSON-able: pytest's status, trials that never reported, that were passed over, that were not selected."""
        reported = {item["test"] for item in self.results}
        return {
            "status": int(exitstatus),
            "lost": sorted(self.selected - reported - self.passed_over),
            "passed_over": sorted(self.selected & self.passed_over),
            "deselected": self.deselected,
        }
