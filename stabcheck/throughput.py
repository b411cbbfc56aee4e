"""`stabcheck bench engine`: examples and rows a second of the accuracy law at V ≤ 4096, and where an example's time goes."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from rich.console import Console

from stabcheck.cases import Case
from stabcheck.devices import Device, describe, prepare, versions
from stabcheck.expansion import materialise
from stabcheck.laws import all_laws
from stabcheck.plugin import YOUNG_OBJECTS
from stabcheck.profiles import LIMITS
from stabcheck.recipe import Recipe
from stabcheck.regimes import regimes
from stabcheck.registry import Kernel
from stabcheck.strategies import drawn, space_for
from stabcheck.targets import load
from stabcheck.trial import Trial
from stabcheck.verdicts import summarise

MAX_VOCAB = 4096
EXAMPLES = {True: 3000, False: 500}  # by "on a GPU"
KERNEL = "stabcheck.kernels.softmax:auto"


def measure(device: str, out_dir: Path | None, console: Console, *, target: str = KERNEL, dtype: str = "fp32") -> dict[str, Any]:
    """Time the accuracy law on one kernel, whole and by parts; print it, and write engine.json and engine.md into `out_dir`.

    The parts are timed one after another over the same recipes, each as a loop that ends in a synchronisation, so on a GPU they overlap
    with what the whole has to wait for; their sum is below the whole.
    """
    on = describe(prepare(device))
    kernel = load([target])[0]
    limits = LIMITS[on.is_gpu] | {"max_vocab": MAX_VOCAB}
    space = space_for(kernel, dtype, **limits, fixed_options=())
    examples = EXAMPLES[on.is_gpu]
    quiet = settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))

    def run(body: Callable[[Recipe], None]) -> float:
        started = time.perf_counter()
        quiet(given(drawn(space))(lambda recipe: body(recipe)))()
        return time.perf_counter() - started

    run(Trial(kernel, all_laws()["accuracy"], dtype, on))  # compiles every size
    gc.set_threshold(YOUNG_OBJECTS)
    gc.freeze()  # as the pytest plugin does once everything is imported
    trial = Trial(kernel, all_laws()["accuracy"], dtype, on)
    seconds = run(trial)
    recipes: list[Recipe] = []
    parts = {"engine and draws": run(recipes.append) / examples * 1e3} | _parts(kernel, on, recipes[:500])
    tally = trial.tally
    result = {
        "schema": "stabcheck-engine/1",
        "device": str(on),
        "versions": versions(),
        "command": "stabcheck bench engine",
        "kernel": kernel.id,
        "dtype": dtype,
        "examples": tally.examples,
        "rows": tally.rows,
        "examples_per_second": round(tally.examples / seconds),
        "rows_per_second": round(tally.rows / seconds),
        "elements_per_second": round(tally.elements / seconds),
        "ms_per_example": round(seconds / tally.examples * 1e3, 3),
        "parts_ms": {name: round(ms, 3) for name, ms in parts.items()},
    }
    text = _text(result)
    console.print(text, markup=False, highlight=False)
    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "engine.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        (out_dir / "engine.md").write_text(f"# The engine on {on}\n\n{text}\n")
    return result


def _parts(kernel: Kernel, device: Device, recipes: Sequence[Recipe]) -> dict[str, float]:
    """Milliseconds an example of each part, over the same recipes."""
    parts: dict[str, float] = {}

    def timed(name: str, step: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        _synchronise(device)
        started = time.perf_counter()
        results = [step(item) for item in items]
        _synchronise(device)
        parts[name] = (time.perf_counter() - started) / len(items) * 1e3
        return results

    timed("materialise", lambda r: materialise(r, device.name), recipes)
    cases = [Case(kernel, device, r) for r in recipes]
    for case in cases:
        _ = case.batch
    timed("reference and bound", lambda c: c.expected, cases)
    outputs = timed("kernel", lambda c: c.run(), cases)
    comparisons = [c.against_reference(got)[0] for c, got in zip(cases, outputs, strict=True)]
    timed("compare and read back", lambda c: summarise([c]), comparisons)
    timed("regimes", regimes, recipes)
    return parts


def _text(r: dict[str, Any]) -> str:
    v = ", ".join(f"{name} {version}" for name, version in r["versions"].items())
    head = f"{r['examples_per_second']} examples/s, {r['rows_per_second']} rows/s, {r['elements_per_second'] / 1e6:.0f} M elements/s"
    lines = [
        f"{head}: accuracy of {r['kernel']}, {r['dtype']}, V ≤ {MAX_VOCAB}, {r['examples']} examples, {r['rows']} rows on {r['device']}.",
        "",
    ]
    lines += ["| part | ms an example |", "| --- | --- |", *(f"| {name} | {ms:.3f} |" for name, ms in r["parts_ms"].items())]
    return "\n".join([*lines, f"| whole | {r['ms_per_example']:.3f} |", "", f"Command: `{r['command']}`; {v}."])


def _synchronise(device: Device) -> None:
    if device.is_gpu:
        torch.cuda.synchronize()
