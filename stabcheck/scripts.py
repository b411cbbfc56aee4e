"""Standalone scripts: a finding as a short Python file that needs torch and the kernel only.

The script carries the input, the exact result and its bounds as literals, runs the kernel in the way the law ran it (fresh output, or in
place, or twice) and exits 1 if it is still wrong. Another kernel is put in its place by naming it: `python repro_ID.py module:function`.
"""

from __future__ import annotations

from typing import Any

import torch

from stabcheck.devices import describe
from stabcheck.errors import UsageError
from stabcheck.findings import Finding
from stabcheck.laws import Case, KernelFault
from stabcheck.recipe import Recipe
from stabcheck.registry import Kernel, target_of
from stabcheck.trial import LOST_DEVICE
from stabcheck.variations import run_in_place
from stabcheck.verdicts import summarise

MOST_RUNS = 2000

TEMPLATE = '''{text}
#
# Usage: python {name} [MODULE:FUNCTION | FILE.py:FUNCTION]      exit status: 0 right, 1 still wrong
import importlib, importlib.util, os, sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # Triton kernels then run in Python
inf, nan = float("inf"), float("nan")


def rows(*runs):
    """Each row as runs (value, count)."""
    return torch.tensor([[value for value, count in row for _ in range(count)] for row in runs], dtype=torch.float64)


def kernel(target):
    place, _, name = target.partition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("kernel_under_test", place)
        module = importlib.util.module_from_spec(spec)
        sys.modules["kernel_under_test"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, name)


logits = rows({logits}).to(torch.{dtype})
{inputs}
expected = rows({expected})
bound = rows({bound})

{call}
good = ((got - expected).abs() <= bound) | (got == expected) | (got.isnan() & expected.isnan()) | (bound == inf)
print("got     ", got.flatten()[:8].tolist())
print("expected", expected.flatten()[:8].tolist())
print("bound   ", bound.flatten()[:8].tolist())
print("right" if good.all() else f"WRONG in {{int((~good).sum())}} of {{good.numel()}} elements")
sys.exit(0 if good.all() else 1)
'''

OUT_OF_PLACE = """function = kernel(sys.argv[1] if len(sys.argv) > 1 else {target!r})
{lay}got = function({x}, {args}).double().cpu()"""
IN_PLACE = """function = kernel(sys.argv[1] if len(sys.argv) > 1 else {target!r})
got = function(logits.to(DEVICE), {args}).double().cpu()"""
TWICE = """function = kernel(sys.argv[1] if len(sys.argv) > 1 else {target!r})
runs = [function(logits.to(DEVICE), {args}).double().cpu() for _ in range(20)]
got = runs[0]
expected, bound = next((r for r in runs if not torch.equal(r, got)), got), torch.zeros_like(bound)"""
WITH_STABCHECK = """{text}
#
# The evidence of this law is more than one call's output, so the script asks stabcheck itself.
# Usage: python {name} [MODULE:FUNCTION | FILE.py:FUNCTION]      exit status: 0 right, 1 still wrong
import sys
from pathlib import Path

from stabcheck.cli import main

kernel = sys.argv[1] if len(sys.argv) > 1 else {place!r}
sys.exit(main(["replay", str(Path(__file__).with_name({data!r})), "--kernels", kernel]))
"""


def script(finding: Finding, kernel: Kernel) -> str:
    """The text of the standalone script of a finding."""
    case = Case(kernel, describe(finding.on), finding.recipe)
    text = "\n".join(f"# {line}".rstrip() for line in finding.text().splitlines())
    if not _one_call_shows(finding, case):
        place = finding.target.partition(":")[0]
        return WITH_STABCHECK.format(text=text, name=f"repro_{finding.id}.py", place=place, data=f"{finding.id}.json")
    logits, expected = case.batch.logits, case.expected
    bound = expected.bound if expected.free is None else expected.bound.masked_fill(expected.free, torch.inf)
    inputs = "\n".join(f"{name} = torch.tensor({v.tolist()!r}, dtype={v.dtype})" for name, v in case.batch.inputs.items())
    return TEMPLATE.format(
        text=text,
        name=f"repro_{finding.id}.py",
        dtype=str(logits.dtype).removeprefix("torch."),
        logits=_literal(logits),
        inputs=inputs,
        expected=_literal(expected.value),
        bound=_literal(bound.expand_as(expected.value)),
        call=_call(finding, kernel, finding.recipe),
    )


def _one_call_shows(finding: Finding, case: Case) -> bool:
    """Whether the call a script makes is wrong by itself, and short enough; laws on memory and the like look at more than one output."""
    if "<" in finding.target or LOST_DEVICE in finding.detail:  # no name to import; no device to try on
        return False
    if not case.batch.logits.numel() or _longest(case.batch.logits) > MOST_RUNS:
        return False
    if finding.property_name == "determinism":
        return True
    try:
        got = run_in_place(case) if finding.property_name == "in_place" else case.run()
    except (KernelFault, UsageError):
        return True
    return summarise([case.against_reference(got)])[0].failed > 0


def _call(finding: Finding, kernel: Kernel, recipe: Recipe) -> str:
    args = ", ".join(f"{name}.to(DEVICE)" for name, _ in recipe.rows[0].inputs)
    target = finding.target
    if finding.property_name == "in_place" and kernel.in_place is not None:
        return IN_PLACE.format(target=target_of(kernel.in_place), args=args)
    if finding.property_name == "determinism":
        return TWICE.format(target=target, args=args)
    layout = recipe.layout
    if layout.contiguous:
        return OUT_OF_PLACE.format(target=target, args=args, lay="", x="logits.to(DEVICE)")
    stride = recipe.vocab * layout.step + layout.pad
    lay = f"flat = torch.full(({layout.offset} + logits.shape[0] * {stride} + 16,), nan, dtype=logits.dtype)\n"
    lay += f"laid = flat.as_strided(logits.shape, ({stride}, {layout.step}), {layout.offset})\n"
    lay += "laid.copy_(logits)  # the memory around the rows stays NaN\n"
    x = f"flat.to(DEVICE).as_strided(laid.shape, laid.stride(), {layout.offset})"
    return OUT_OF_PLACE.format(target=target, args=args, lay=lay, x=x)


def _longest(matrix: torch.Tensor) -> int:
    return max(len(torch.unique_consecutive(row)) for row in matrix)


def _literal(matrix: torch.Tensor) -> str:
    """Rows as runs; repr of a float is exact."""
    return ", ".join(_row(row) for row in matrix)


def _row(row: torch.Tensor) -> str:
    values, counts = torch.unique_consecutive(row, return_counts=True)
    pairs: list[Any] = list(zip(values.double().tolist(), counts.tolist(), strict=True))
    return repr(pairs)
