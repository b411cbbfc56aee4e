"""The ledger: known failures, each with a link to its issue. They still run; one that passes unexpectedly fails the run.

# stabcheck-ledger.toml
[[known]]
kernel = "temperature_softmax[online]"
property = "accuracy"
dtype = "bf16"
kind = "wrong"
issue = "https://github.com/me/kernels/issues/12"
arch = "sm_90"  # or "interpreter"; left away: on every architecture
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stabcheck.errors import UsageError
from stabcheck.registry import DTYPES
from stabcheck.verdicts import KINDS

FIELDS = ("kernel", "property", "dtype", "kind", "issue")
ARCH = "arch"  # which an entry may have as well
APART = ("crash", "hang")  # kinds that cost the process: such a trial runs in one of its own
Trial = tuple[str, str, str]  # kernel, property, dtype


@dataclass(frozen=True)
class Entry:
    """One known failure: the identity of a finding, and where it is discussed."""

    kernel: str
    property: str
    dtype: str
    kind: str
    issue: str
    arch: str = ""  # the architecture it speaks of; "" is every one

    def on(self, arch: str) -> bool:
        """Whether it speaks of an architecture."""
        return self.arch in ("", arch)

    def trial(self) -> Trial:
        """What the entry speaks of."""
        return (self.kernel, self.property, self.dtype)

    def __str__(self) -> str:
        return " · ".join(filter(None, (self.property, self.kernel, self.dtype, self.kind, self.arch)))


class Ledger:
    """The entries of a file by the trial they speak of; none where there is no file."""

    def __init__(self, entries: Iterable[Entry] = (), file: str = "") -> None:
        self.entries, self.file = tuple(entries), file

    def of(self, trial: Trial, arch: str) -> list[Entry]:
        """The known failures of a trial on an architecture."""
        return [entry for entry in self.entries if entry.trial() == trial and entry.on(arch)]

    def states(self, items: Iterable[dict[str, Any]], collected: Iterable[Trial] | None) -> list[dict[str, str]]:
        """Each entry with what the run says of it: known, unexpected pass, not run, not seen where the trial failed in another way, or
        stale if no trial collected is what it speaks of.

        collected: None where a run cannot tell, since it did not collect every trial.
        """
        ran = list(items)
        there = None if collected is None else set(collected)
        return [asdict(entry) | {"state": _state(entry, ran, there)} for entry in self.entries]


def _state(entry: Entry, items: list[dict[str, Any]], collected: set[Trial] | None) -> str:
    if collected is not None and entry.trial() not in collected:
        return "stale"
    here = [item for item in items if entry.on(item["arch"]) and not item.get("corpus")]
    mine = [item for item in here if (item["kernel"], item["property"], item["dtype"]) == entry.trial()]
    if any(finding["kind"] == entry.kind for item in mine for finding in item["findings"]):
        return "known"
    if any(item["outcome"] in ("passed", "unexpected pass") for item in mine):
        return "unexpected pass"
    return "not seen" if any(item["outcome"] != "skipped" for item in mine) else "not run"


def advice(states: Iterable[dict[str, str]]) -> list[str]:
    """What to do about entries that no longer hold, one line each."""
    cures = {
        "unexpected pass": "unexpected pass: {0} holds now; close {issue} and remove its entry from the ledger",
        "stale": "stale entry: no trial is {0}; mend or remove the entry of {issue} in the ledger",
    }
    entries = [(raw["state"], Entry(**{name: value for name, value in raw.items() if name != "state"})) for raw in states]
    return [cures[state].format(entry, issue=entry.issue) for state, entry in entries if state in cures]


def load(path: Path) -> Ledger:
    """Read a ledger; a missing file is an empty one. Raises UsageError naming the entry, what is wrong with it and the cure."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Ledger()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; name another ledger") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}; write it in UTF-8") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}; an entry starts with [[known]]") from error
    unknown = [key for key in data if key != "known"]
    if unknown or not isinstance(data.get("known", []), list):
        raise UsageError(f"{path} has {unknown[0] if unknown else 'known'!r}; it holds [[known]] entries and nothing else")
    entries = [_entry(path, number, raw) for number, raw in enumerate(data.get("known", []), 1)]
    if twice := [entry for i, entry in enumerate(entries) if any(_same(entry, other) for other in entries[:i])]:
        raise UsageError(f"{path} has two entries for {twice[0]}; keep one")
    return Ledger(entries, str(path))


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries speak of one failure on one architecture."""
    return (one.trial(), one.kind) == (other.trial(), other.kind) and (one.on(other.arch) or other.on(one.arch))


def _entry(path: Path, number: int, raw: Any) -> Entry:
    what = f"{path}, entry {number}"
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise UsageError(f"{what} is {raw!r}; give {', '.join(FIELDS)}, each a text")
    if unknown := [key for key in raw if key not in (*FIELDS, ARCH)]:
        raise UsageError(f"{what} has {unknown[0]!r}; an entry has {', '.join(FIELDS)}, and may have {ARCH}")
    if not raw.get("issue"):
        known = f" ({raw.get('property')} · {raw.get('kernel')})" if "kernel" in raw else ""
        raise UsageError(f'{what}{known} has no link to an issue; a known failure needs one: issue = "https://…"')
    if not re.match(r"https?://\S+$", raw["issue"]):
        raise UsageError(f"{what} gives issue = {raw['issue']!r}, which is no link; write it out: https://…")
    if missing := [name for name in FIELDS if not raw.get(name)]:
        raise UsageError(f"{what} lacks {missing[0]!r}; copy it from the finding's first line")
    for name, allowed in (("kind", KINDS), ("dtype", DTYPES)):
        if raw[name] not in allowed:
            raise UsageError(f"{what} has {name} = {raw[name]!r}; use one of {', '.join(allowed)}")
    if ARCH in raw and not re.fullmatch(r"sm_\d+|interpreter", raw[ARCH]):
        raise UsageError(f"{what} has {ARCH} = {raw[ARCH]!r}; use the one a run names behind its device, such as sm_90, or interpreter")
    return Entry(**raw)
