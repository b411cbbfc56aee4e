"""Accuracy baselines: the worst a kernel was seen to do on an architecture, as a ratchet beneath the bounds.

`<directory>/<arch>/<operation>-<kernel>.json` holds the worst use of the bound and the worst error in ulp of every property and dtype: one
metric a line, sorted. They are compared in profile gate only, whose examples are the same in every run. Figures are kept to two digits,
rounded up: the last bits of a maximum over a sample say nothing of a kernel.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any

from stabcheck.errors import UsageError
from stabcheck.ledger import Trial

DIGITS = Context(prec=2, rounding=ROUND_CEILING)
METRICS = ("utilisation", "ulp")
TARGET = "target"  # the one line that is no metric: where the kernel was
Metrics = dict[str, float]  # "accuracy.bf16.ulp" -> worst
Change = dict[str, Any]  # kernel, metric, was, now


@dataclass
class Ratchet:
    """What a run says of the baselines of one architecture."""

    arch: str
    directory: str
    state: str = "compared"  # or absent, updated
    missing: list[str] = field(default_factory=list)  # measured, without a baseline
    stale: list[str] = field(default_factory=list)  # left over: no trial of theirs is there any more
    loosened: list[Change] = field(default_factory=list)
    tighter: list[Change] = field(default_factory=list)
    accepted: list[Change] = field(default_factory=list)  # loosened, and recorded as asked
    removed: list[str] = field(default_factory=list)  # were left over, until they were told to go


def rounded(value: float) -> float:
    """Two significant digits, upwards."""
    return float(DIGITS.create_decimal(Decimal(repr(value))))


def measured(items: Iterable[dict[str, Any]]) -> dict[str, Metrics]:
    """Kernel -> metrics of the trials that held and compared something; those left to chance, or short of memory, have none."""
    found: dict[str, Metrics] = {}
    for item in items:
        tally = item["tally"]
        held = item["outcome"] == "passed" and not item["corpus"]
        if not held or not tally["total"]["compared"] or tally["total"]["chances"] or tally["short"]:
            continue
        for metric in METRICS if tally["ulps"] else METRICS[:1]:
            found.setdefault(item["kernel"], {})[f"{item['property']}.{item['dtype']}.{metric}"] = rounded(tally["total"][metric])
    return found


def hold(
    items: list[dict[str, Any]], collected: set[Trial] | None, directory: Path, arch: str, update: str = "", targets: Sequence[str] = ()
) -> Ratchet:
    """Hold a run against the baselines of its architecture, and write them if asked.

    Parameters
    ----------
    collected: every trial of the kernels under test, run or not; None if the run did not collect them all, so that none is left over.
    update: "better" records what is new or better, "all" what is worse too.
    targets: what was asked for; files of kernels that are elsewhere are left alone.

    Raises
    ------
    UsageError: a damaged file.
    """
    home = directory / arch
    ratchet = Ratchet(arch, str(directory), "compared" if home.is_dir() or update else "absent")
    if ratchet.state == "absent":
        return ratchet
    files = {file_of(item["kernel"]) for item in items}
    refused = [item for item in items if item["outcome"] == "skipped" and item["tally"]["examples"] and not item["tally"]["short"]]
    figures, silent = measured(items), {_of(item) for item in refused}
    homes = {item["kernel"]: {TARGET: item["target"]} if item.get("target") else {} for item in items}
    for kernel in sorted({item["kernel"] for item in items}):
        now = figures.get(kernel, {})
        was = _read(home / file_of(kernel))
        _judge(ratchet, kernel, was, now)
        there = {_trial(kernel, metric) for metric in was} if collected is None else collected
        gone = [metric for metric in was if _trial(kernel, metric) not in there - silent]
        ratchet.stale += [f"{kernel} {metric}" for metric in gone]
        if update and (was or now):
            _write(home / file_of(kernel), _updated(was, now, gone, update) | homes[kernel])
    if collected is not None:
        files |= {file_of(kernel) for kernel, _, _ in collected}
        left_over = sorted(path for path in home.glob("*.json") if path.name not in files and _asked_for(path, targets))
        ratchet.stale += [str(path) for path in left_over]
        for path in left_over if update else ():
            path.unlink()
    if update:
        accepted = ratchet.loosened if update == "all" else []
        loosened = [] if accepted else ratchet.loosened
        return Ratchet(arch, str(directory), "updated", loosened=loosened, accepted=accepted, removed=ratchet.stale)
    return ratchet


def check(directory: Path) -> None:
    """Raise UsageError for a damaged file, before anything has run."""
    for path in sorted(directory.glob("*/*.json")):
        _data(path)


def file_of(kernel: str) -> str:
    """temperature_softmax[online] -> temperature_softmax-online.json; an odd name is made plain, and told from others by a digest."""
    name = kernel.removesuffix("]").replace("[", "-", 1)
    plain = re.sub(r"[^\w.-]+", "-", name)
    return plain + ("" if plain == name else "-" + hashlib.sha256(name.encode()).hexdigest()[:6]) + ".json"


def advice(ratchet: dict[str, Any]) -> list[str]:
    """What to do about missing, left over, loosened and tighter baselines, one line each."""
    told = []
    where = f"{ratchet['directory']}/{ratchet['arch']}"
    if missing := ratchet["missing"]:
        kernels = ", ".join(dict.fromkeys(text.rpartition(" ")[0] for text in missing))
        told.append(f"missing: {len(missing)} metrics of {kernels} have no baseline in {where}; record them with stabcheck gate --update")
    if stale := ratchet["stale"]:
        told.append(f"left over: no trial measures {', '.join(stale)} any more; remove them with stabcheck gate --update")
    told += [f"loosened: {_change(c)}" for c in ratchet["loosened"]]
    if ratchet["loosened"]:
        told.append("mend the kernel, or accept what is looser with stabcheck gate --update-all")
    told += [f"accepted: {_change(c)}" for c in ratchet["accepted"]]
    if removed := ratchet.get("removed"):
        told.append(f"removed: {', '.join(removed)}")
    if tighter := ratchet["tighter"]:
        told.append(f"can be tightened: {len(tighter)} baselines, such as {_change(tighter[0])}; keep it with stabcheck gate --update")
    return told


def _change(change: Change) -> str:
    return f"{change['kernel']} {change['metric']} {change['was']:g} → {change['now']:g}"


def _judge(ratchet: Ratchet, kernel: str, was: Metrics, now: Metrics) -> None:
    for metric, value in sorted(now.items()):
        if metric not in was:
            ratchet.missing.append(f"{kernel} {metric}")
        elif value != was[metric]:
            changes = ratchet.loosened if value > was[metric] else ratchet.tighter
            changes.append({"kernel": kernel, "metric": metric, "was": was[metric], "now": value})


def _updated(was: Metrics, now: Metrics, gone: list[str], update: str) -> Metrics:
    better = {metric: value for metric, value in now.items() if update == "all" or value <= was.get(metric, value)}
    return {metric: value for metric, value in (was | better).items() if metric not in gone}


def _of(item: dict[str, Any]) -> Trial:
    return (item["kernel"], item["property"], item["dtype"])


def _asked_for(path: Path, targets: Sequence[str]) -> bool:
    """Whether the kernel of a file would be among the targets, if it were still there."""
    place = str(_data(path).get(TARGET, "")).partition(":")[0]
    places = [target.partition(":")[0] for target in targets]
    return not targets or not place or any(place == asked or place.startswith(asked + ".") for asked in places)


def _trial(kernel: str, metric: str) -> Trial:
    name, dtype, _ = metric.split(".")
    return (kernel, name, dtype)


def _read(path: Path) -> Metrics:
    return {metric: value for metric, value in _data(path).items() if metric != TARGET}


def _data(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the baseline {path}: {error}; restore it, or delete it and record it anew") from error
    good = isinstance(data, dict) and all(key == TARGET or (key.count(".") == 2 and _is_figure(value)) for key, value in data.items())
    if not good:
        raise UsageError(f"{path} is no baseline: it maps property.dtype.metric to numbers; restore it, or delete it and record it anew")
    return data  # type: ignore[no-any-return]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
