"""Power of the laws with statistics, shown: a perfect sampler that never alarms, and planted errors that are found in every run.

The samplers draw in fp64 from the exact probabilities of the row, with an error planted in them, through the very code that judges kernels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from stabcheck.cases import Case
from stabcheck.devices import Device, describe, gpu_available, versions
from stabcheck.draws import law_of_draws
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.registry import Kernel, make_kernel
from stabcheck.statistics import ALPHA
from stabcheck.tails import GAPS, tail_mass
from stabcheck.verdicts import Comparison, summarise

RUNS, PERFECT_RUNS = 20, 1000
VOCAB, TAIL_VOCAB, GAP = 512, 128256, 14

Plant = Callable[[torch.Tensor], torch.Tensor]


def perfect(p: torch.Tensor) -> torch.Tensor:
    return p


def wrong_head(p: torch.Tensor) -> torch.Tensor:
    """1 % of all mass moved from the likeliest token to the next: a total variation of 1 %."""
    likeliest = p.topk(2).indices
    return p.index_add(0, likeliest, p.new_tensor([-0.01, 0.01]))


def thin_tail(p: torch.Tensor) -> torch.Tensor:
    """7 % of the mass beside the likeliest token is missing."""
    thin = p * 0.93
    return thin.scatter(0, p.argmax()[None], 1 - 0.93 * (1 - p.amax()[None]))


def sampler(plant: Plant) -> Kernel:
    """A sampler for rows that are all the same: the draws of the laws with statistics."""

    def draws(logits: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        temperature, seed, position = inputs[0], inputs[-2], inputs[-1]
        p = (logits[0].double() / temperature[0].double()).softmax(-1)
        generator = torch.Generator(logits.device).manual_seed((int(seed[0]) + 0x9E3779B97F4A7C15 * int(position[0])) % 2**63)
        return torch.multinomial(plant(p).clamp(min=0.0), len(logits), replacement=True, generator=generator)

    return make_kernel("sample", draws, name=plant.__name__, dtypes=["fp32"])


def head_law(device: Device, plant: Plant, seed: int) -> Iterable[Comparison]:
    """The law of the draws on a bell-shaped row."""
    return law_of_draws(Case(sampler(plant), device, Recipe("sample", "fp32", VOCAB, (Row(Background("bell", (0.0, 2.0))),), seed=seed)))


def tail_law(device: Device, plant: Plant, seed: int) -> Iterable[Comparison]:
    """The law of the tail mass at gap 14."""
    return tail_mass(Case(sampler(plant), device, Recipe("sample", "fp32", TAIL_VOCAB, seed=seed)), GAP, GAPS[GAP])


def show_power(out_dir: Path | None, console: Console) -> int:
    """Run all, print and write power.json and power.md; 1 if an error was missed or the perfect sampler alarmed."""
    device = describe("cuda" if gpu_available() else "cpu")
    plans = [
        ("perfect sampler, law of the draws", head_law, perfect, PERFECT_RUNS // 2, 0),
        (f"perfect sampler, tail mass at gap {GAP}, V = {TAIL_VOCAB}", tail_law, perfect, PERFECT_RUNS // 2, 0),
        ("1 % of total variation in the head", head_law, wrong_head, RUNS, RUNS),
        (f"7 % of the tail's mass missing at gap {GAP}, V = {TAIL_VOCAB}", tail_law, thin_tail, RUNS, RUNS),
    ]
    found: list[dict[str, Any]] = []
    for name, law, plant, runs, wanted in plans:
        begin = time.monotonic()
        outcomes = [summarise(law(device, plant, seed)) for seed in track(range(runs), name, console=console, transient=True)]
        alarms, draws = sum(any(s.failed for s in o) for o in outcomes), sum(s.draws for o in outcomes for s in o)
        found.append(
            {"what": name, "runs": runs, "alarms": alarms, "wanted": wanted, "assertions": sum(len(o) for o in outcomes), "draws": draws}
        )
        console.print(f"{name}: {alarms} alarms in {runs} runs, {draws:.3g} draws, {time.monotonic() - begin:.0f} s", highlight=False)
    if out_dir:
        _write(out_dir, found, device)
    return int(any(line["alarms"] != line["wanted"] for line in found))


def _write(out_dir: Path, found: list[dict[str, Any]], device: Device) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    about = {"schema": "stabcheck-power/1", "device": str(device), "alpha": ALPHA, "command": "stabcheck bench power", **versions()}
    (out_dir / "power.json").write_text(json.dumps({**about, "found": found}, indent=1) + "\n")
    rows = [[str(line[key]) for key in ("what", "runs", "alarms", "wanted", "assertions", "draws")] for line in found]
    head = ["sampler and law", "runs", "runs with an alarm", "wanted", "assertions", "draws"]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    text = f"Each assertion fails by chance with probability {ALPHA:g} at most. Command: `{about['command']} --out reports/h200`"
    (out_dir / "power.md").write_text(f"# Power of the laws with statistics on {device}\n\n{text}; torch {about['torch']}.\n\n{table}\n")
