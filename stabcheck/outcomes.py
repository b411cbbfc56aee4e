"""What any item of stabcheck does with what it found: hold it against the ledger, carry its results, and tell the finding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stabcheck.apart import run_apart
from stabcheck.devices import Device
from stabcheck.errors import UsageError
from stabcheck.findings import Broken, Finding, broken
from stabcheck.ledger import APART, Entry, Ledger
from stabcheck.results import PROPERTY


@dataclass(frozen=True)
class Session:
    """What the items of one pytest session share."""

    device: Device
    report_dir: Path
    ledger: Ledger
    profile: str | None = None
    targets: tuple[str, ...] = ()
    adopted: set[str] = field(default_factory=set)  # modules and files whose kernels suites in test files put under test


class Outcomes:
    """Mixed into a pytest item, which says what it is, and looks for findings in `examine`."""

    session_state: Session
    corpus = ""  # the id of the reproducer that is replayed
    why_not: str | None = None
    found: list[Finding]
    apart: list[dict[str, Any]]  # findings of a process of its own
    apart_tally: dict[str, Any] | None = None
    examined = False
    user_properties: list[tuple[str, object]]

    @property
    def identity(self) -> dict[str, str]:
        """kernel, property, dtype"""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """Where the kernel is: `module:name` or `file.py:name`."""
        raise NotImplementedError

    def examine(self) -> None:
        """Fill `found`."""
        raise NotImplementedError

    def tally(self) -> dict[str, Any]:
        """JSON-able: what was gone through."""
        raise NotImplementedError

    def runtest(self) -> None:
        self.found, self.apart = [], []
        try:
            if self.why_not:
                pytest.skip(self.why_not)
            if fatal := next((entry.kind for entry in self.known if entry.kind in APART), ""):
                self.apart, self.apart_tally = run_apart(self, fatal)
            else:
                self.examine()
            self.examined = True
        finally:
            results = self.results()
            self.user_properties.append((PROPERTY, json.dumps(results)))
            self.user_properties += for_junit(results)
        self.conclude(results)

    @property
    def known(self) -> list[Entry]:
        """What the ledger knows of this trial."""
        trial = (self.identity["kernel"], self.identity["property"], self.identity["dtype"])
        return self.session_state.ledger.of(trial, self.session_state.device.arch)

    def results(self) -> dict[str, Any]:
        """JSON-able results of the item; `outcome` only where the ledger decides it."""
        device, tally = self.session_state.device, self.apart_tally or self.tally()
        findings = [finding.data() for finding in self.found] + self.apart
        told: dict[str, Any] = {
            "target": self.target,
            "device": str(device),
            "arch": device.arch,
            "corpus": self.corpus,
            "tally": tally,
            "findings": findings,
        }
        return self.identity | told | self._by_ledger([f["kind"] for f in findings], tally)

    def _by_ledger(self, kinds: Sequence[str], tally: dict[str, Any]) -> dict[str, str]:
        known = self.known if self.examined else []
        links = {"reason": ", ".join(dict.fromkeys(entry.issue for entry in known))}
        if kinds and set(kinds) <= {entry.kind for entry in known}:
            return {"outcome": "known"} | links
        passed = not kinds and not self.corpus and tally["total"]["compared"] > 0 and not tally["short"]
        return {"outcome": "unexpected pass"} | links if known and passed else {}

    def conclude(self, results: dict[str, Any]) -> None:
        """Raise what the item found, unless it is known to fail; an unexpected pass fails, and comparing nothing is no pass."""
        decided, kinds = results.get("outcome"), {entry.kind for entry in self.known}
        if decided == "known":
            pytest.xfail(f"known: {results['reason']}")
        if decided == "unexpected pass":
            cure = f"close {results['reason']} and remove the entry from {self.session_state.ledger.file}"
            pytest.fail(f"unexpected pass: {' · '.join(self.identity.values())} holds now; {cure}", pytrace=False)
        if fresh := [finding for finding in self.found if finding.kind not in kinds]:
            raise broken(fresh[0].with_(others=tuple(fresh[1:])))
        if told := [finding["text"] for finding in self.apart if finding["kind"] not in kinds]:
            pytest.fail("\n".join(told), pytrace=False)
        tally = results["tally"]
        if tally["examples"] and not tally["total"]["compared"]:
            why = f"every input was refused, at first with: {tally['refusal']}" if tally["refusal"] else "no element could be compared"
            pytest.skip(f"compared nothing: {why}")
        if self.corpus and tally["short"]:
            pytest.skip(tally["refusal"])

    def repr_failure(self, excinfo: Any) -> Any:
        """The finding's text, or wrong use, stands for itself; a traceback through the engine would hide it."""
        if isinstance(excinfo.value, Broken | UsageError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)  # type: ignore[misc]


def for_junit(results: dict[str, Any]) -> list[tuple[str, object]]:
    """The results as properties of a JUnit case, one each."""
    tally, ids = results["tally"], [finding["id"] for finding in results["findings"]]
    told = {name: results[name] for name in ("kernel", "property", "dtype", "arch")} | {"findings": " ".join(ids)}
    told |= {name: tally[name] for name in ("examples", "rows")}
    told |= {name: tally["total"][name] for name in ("compared", "ill", "utilisation", "ulp")}
    return [(f"{PROPERTY}.{name}", value) for name, value in told.items()]
