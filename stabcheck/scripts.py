"""Standalone scripts: a finding as a short Python file that needs torch and the kernel only.

The script carries the input, the exact result and its bounds as literals, runs the kernel in the way the law ran it (fresh output, or in
place, or twice) and exits 1 if it is still wrong, or 125, which `git bisect run` takes as "cannot be tested", if the kernel does not load.
Another kernel is put in its place by naming it: `python repro_ID.py module:function`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from stabcheck.cases import Case, KernelFault
from stabcheck.devices import describe
from stabcheck.errors import UsageError
from stabcheck.findings import Finding
from stabcheck.operations.base import Expected
from stabcheck.recipe import Recipe
from stabcheck.registry import Kernel, target_of
from stabcheck.trial import LOST_DEVICE
from stabcheck.variations import run_in_place
from stabcheck.verdicts import summarise

MOST_RUNS = 2000

USAGE = """# Usage: python {name} [MODULE:FUNCTION | FILE.py:FUNCTION]
# Its exit status: 0 right, 1 still wrong, 125 the kernel cannot be loaded (git bisect run then skips the commit)"""
LOADING = '''def nearest(target):
    """The target; a file that is not here is looked for from this script's folder upwards."""
    place, colon, name = target.partition(":")
    files = [folder / place for folder in Path(__file__).resolve().parents if (folder / place).is_file()]
    if not place.endswith(".py") or Path(place).is_file() or not files:
        return target
    print("the kernel is of", files[0])
    return f"{files[0]}{colon}{name}"


def not_loaded(what, error, cure):
    why = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"cannot load {what}: {why}; {cure}", file=sys.stderr)
    sys.exit(125)'''

TEMPLATE = '''{text}
#
{usage}
from __future__ import annotations

import importlib, importlib.util, os, sys
from pathlib import Path


{loading}


try:
    import torch
except Exception as error:
    not_loaded("torch", error, "install it where this script runs")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # Triton kernels then run in Python
inf, nan = float("inf"), float("nan")


def rows(*runs):
    """Each row as runs (value, count)."""
    return torch.tensor([[value for value, count in row for _ in range(count)] for row in runs], dtype=torch.float64)


def kernel(target):
    place, _, name = target.partition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location("kernel_under_test", place)
            module = importlib.util.module_from_spec(spec)
            sys.modules["kernel_under_test"] = module
            sys.path.append(os.path.dirname(os.path.abspath(place)))  # what lies beside it can be imported, as for python FILE
            spec.loader.exec_module(module)
        else:
            sys.path.append(os.getcwd())  # a module may lie here, as for python -m
            module = importlib.import_module(place)
        function = getattr(module, name)
        if not callable(function):
            raise TypeError(f"{{name}} is no function")
    except (Exception, SystemExit) as error:
        not_loaded(target, error, f"name one that loads: python {{sys.argv[0]}} FILE.py:FUNCTION or MODULE:FUNCTION")
    return function


{source}

logits = rows({logits}).to(torch.{dtype})
inputs = [{inputs}]
options = {options}
expected = {expected}
bound = {bound}
function = kernel(sys.argv[1] if len(sys.argv) > 1 else nearest({target!r}))


def run():
    {lay}results = call(function, {x}, *(i.to(DEVICE) for i in inputs), **options)
    results = results if isinstance(results, tuple) else (results,)
    return dict(zip(expected, (r.double().cpu() for r in results)))


{call}
wrong = 0
for name, exact in expected.items():
    got, allowed = results[name], bound[name]
    good = ((got - exact).abs() <= allowed) | (got == exact) | (got.isnan() & exact.isnan()) | (allowed < 0)
    print(name, "got     ", got.flatten()[:8].tolist())
    print(name, "expected", exact.flatten()[:8].tolist())
    print(name, "bound   ", allowed.flatten()[:8].tolist())
    wrong += int((~good).sum())
print(f"WRONG in {{wrong}} elements" if wrong else "right")
sys.exit(1 if wrong else 0)
'''

ONCE = "results = run()"
TWICE = """runs = [run() for _ in range(20)]
results = runs[0]
same = lambda a, b: bool(((a == b) | (a.isnan() & b.isnan())).all())
expected = next((r for r in runs if not all(same(r[n], results[n]) for n in results)), results)
bound = {name: torch.zeros_like(values) for name, values in expected.items()}"""
WITH_STABCHECK = """{text}
#
# The evidence of this law is more than one call's output, so the script asks stabcheck itself.
{usage}
import contextlib, io, sys
from pathlib import Path


{loading}


try:
    from stabcheck.cli import main
except Exception as error:
    not_loaded("stabcheck", error, "install it where this script runs")

kernel = sys.argv[1] if len(sys.argv) > 1 else nearest({place!r})
with contextlib.redirect_stdout(io.StringIO()) as shown:
    status = main(["replay", str(Path(__file__).with_name({data!r})), "--kernels", kernel])
tested = status in (0, 1)
sys.stdout.reconfigure(errors="backslashreplace")
print(shown.getvalue(), end="", file=sys.stdout if tested else sys.stderr)
sys.exit(status if tested else 125)
"""


def script(finding: Finding, kernel: Kernel) -> str:
    """The text of the standalone script of a finding."""
    case = Case(kernel, describe(finding.on), finding.recipe)
    text = "\n".join(f"# {line}".rstrip() for line in finding.text().splitlines())
    usage = USAGE.format(name=f"repro_{finding.id}.py")
    if not _one_call_shows(finding, case):
        place = finding.target.partition(":")[0]
        return WITH_STABCHECK.format(text=text, usage=usage, loading=LOADING, place=place, data=f"{finding.id}.json")
    batch, op = case.batch, case.operation
    lay, x = _layout(finding.recipe)
    in_place = finding.property_name == "in_place" and kernel.in_place is not None
    return TEMPLATE.format(
        text=text,
        usage=usage,
        loading=LOADING,
        source=inspect.getsource(op.call),
        dtype=str(batch.logits.dtype).removeprefix("torch."),
        logits=_literal(batch.logits),
        inputs=", ".join(f"torch.tensor({v.tolist()!r}, dtype={v.dtype})" for v in batch.inputs.values()),
        options=dict(batch.options),
        expected=_tensors({name: e.value for name, e in case.expected.items()}),
        bound=_tensors({name: _allowed(e) for name, e in case.expected.items()}),
        target=target_of(kernel.in_place) if in_place and kernel.in_place else finding.target,
        lay=lay,
        x=x,
        call=TWICE if finding.property_name == "determinism" else ONCE,
    )


def _allowed(expected: Expected) -> torch.Tensor:
    """The bound; -1 where an element is free."""
    bound = expected.bound.expand_as(expected.value)
    return bound if expected.free is None else bound.masked_fill(expected.free, -1.0)


def _tensors(named: dict[str, torch.Tensor]) -> str:
    """A dictionary of tensors as source text."""
    parts = (f"{name!r}: rows({_literal(t.reshape(1, -1) if t.ndim < 2 else t)}).reshape({list(t.shape)})" for name, t in named.items())
    return "{" + ", ".join(parts) + "}"


def _one_call_shows(finding: Finding, case: Case) -> bool:
    """Whether the call a script makes is wrong by itself, and short enough; laws on memory and the like look at more than one output."""
    if "<" in finding.target or LOST_DEVICE in finding.detail or finding.kind == "hang":  # no name to import; nothing to try on
        return False
    if not case.batch.logits.numel() or _longest(case.batch.logits) > MOST_RUNS:
        return False
    if finding.property_name == "determinism":
        return True
    if any(e.given for e in case.expected.values()):
        return False  # what is right depends on the sides the kernel takes where rounding decides
    try:
        got = run_in_place(case) if finding.property_name == "in_place" else case.run()
    except (KernelFault, UsageError):
        return True
    return sum(s.failed for s in summarise(case.against_reference(got))) > 0


def _layout(recipe: Recipe) -> tuple[str, str]:
    """(lines that lay the logits out as the recipe does, the expression for them)."""
    layout = recipe.layout
    if layout.contiguous:
        return "", "logits.to(DEVICE)"
    stride = recipe.vocab * layout.step + layout.pad
    lay = f"flat = torch.full(({layout.offset} + logits.shape[0] * {stride} + 16,), nan, dtype=logits.dtype)\n    "
    lay += f"laid = flat.as_strided(logits.shape, ({stride}, {layout.step}), {layout.offset})\n    "
    lay += "laid.copy_(logits)  # the memory around the rows stays NaN\n    "
    return lay, f"flat.to(DEVICE).as_strided(laid.shape, laid.stride(), {layout.offset})"


def _longest(matrix: torch.Tensor) -> int:
    return max(len(torch.unique_consecutive(row)) for row in matrix)


def _literal(matrix: torch.Tensor) -> str:
    """Rows as runs; repr of a float is exact."""
    return ", ".join(_row(row) for row in matrix)


def _row(row: torch.Tensor) -> str:
    values, counts = torch.unique_consecutive(row, return_counts=True)
    pairs: list[Any] = list(zip(values.double().tolist(), counts.tolist(), strict=True))
    return repr(pairs)
