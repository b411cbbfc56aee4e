"""Reproducers: a finding as a JSON file that replays anywhere, and as a standalone script that needs torch and the kernel only."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabcheck.devices import Device, describe, versions
from stabcheck.errors import NotAllowed, UsageError
from stabcheck.findings import Finding
from stabcheck.laws import all_laws
from stabcheck.operations import operation
from stabcheck.recipe import Recipe, from_data, to_data
from stabcheck.registry import FUNCTIONS, Kernel, make_kernel, target_of
from stabcheck.scripts import script
from stabcheck.targets import BUILT_IN, function_of, load, short
from stabcheck.trial import Trial

SCHEMA = "stabcheck-reproducer/1"
FIELDS = ("id", "kernel", "target", "operation", "declared", "functions", "routes", "property", "dtype", "kind")
OTHERS = ("results.json", "durations.json", "mutants.json")  # what else a folder of reports holds
DECLARED = ("dtypes", "output", "error_model", "tile", "lanes", "blocks", "max_vocab", "strides", "batch_invariant", "noise_error")
DECLARED_TABLES = ("policies", "options")
NAME_IT = "name a reproducer's JSON file, its id or a directory of them"
RESTORE_IT = "restore it, or run the suite again to write a new one"


@dataclass(frozen=True)
class Reproducer:
    """What a file holds: enough to run one law on one recipe again."""

    id: str
    kernel: str
    target: str
    operation: str
    declared: dict[str, Any]
    property_name: str
    dtype: str
    kind: str
    functions: dict[str, str]
    routes: dict[str, str]
    recipe: Recipe
    text: str


def save(finding: Finding, kernel: Kernel, directory: Path) -> Finding:
    """Write ID.json and repro_ID.py atomically; the finding with the files' names."""
    directory.mkdir(parents=True, exist_ok=True)
    data_file, script_file = directory / f"{finding.id}.json", directory / f"repro_{finding.id}.py"
    finding = finding.with_(files=(short(data_file), short(script_file)))
    data = {
        "schema": SCHEMA,
        "id": finding.id,
        "kernel": kernel.name,
        "target": finding.target,
        "operation": kernel.operation,
        "declared": {name: _plain(getattr(kernel, name)) for name in (*DECLARED, *DECLARED_TABLES)},
        "functions": {role: target_of(function) for role in FUNCTIONS if (function := getattr(kernel, role))},
        "routes": {name: target_of(function) for name, function in kernel.routes.items()},
        "property": finding.property_name,
        "dtype": finding.dtype,
        "kind": finding.kind,
        "recipe": to_data(finding.recipe),
        "shrunk_from": to_data(finding.shrunk_from) if finding.shrunk_from else None,
        "device": finding.device,
        "versions": versions(),
        "text": finding.text().splitlines(),
    }
    _write(data_file, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    _write(script_file, script(finding, kernel))
    return finding


def read(path: Path) -> Reproducer:
    """Read a reproducer. Raises UsageError for a missing, truncated, damaged or foreign file, which whoever tells of it has to name."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}; {NAME_IT}") from error
    except ValueError as error:
        raise UsageError(f"the file is truncated or no JSON ({error}); {RESTORE_IT}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UsageError(f"the file has schema {found!r}; this version reads {SCHEMA!r}: use the stabcheck that wrote it")
    try:
        data.setdefault("functions", {"in_place": data["in_place"]} if data.get("in_place") else {})  # as version 0.1 wrote it
        fields = {name: data[name] for name in FIELDS}
        if not all(isinstance(fields[name], str) for name in ("id", "kernel", "target", "operation", "property", "dtype", "kind")):
            raise TypeError("text where it should have some: id, kernel, target, operation, property, dtype or kind")
        fields["property_name"] = fields.pop("property")
        return Reproducer(**fields, recipe=from_data(data["recipe"]), text="\n".join(data["text"]))
    except (KeyError, TypeError) as error:
        raise UsageError(f"the file lacks {error}; {RESTORE_IT}") from error


def find(name: str, directories: Iterable[Path]) -> list[Path]:
    """The files meant by an id, a file or a directory."""
    path = Path(name)
    if path.is_dir():
        files = sorted(p for p in path.glob("*.json") if p.name not in OTHERS)
        if not files:
            raise UsageError(f"{name} holds no reproducers; run the suites first, or name another directory")
        return files
    if path.suffix == ".json" and not path.exists():
        raise UsageError(f"cannot read {name}: No such file or directory; {NAME_IT}")
    if path.suffix == ".json":
        return [path]
    matches = [file for directory in directories if (file := directory / f"{name}.json").is_file()]
    if not matches:
        raise UsageError(
            f"no reproducer {name!r} in {', '.join(map(str, directories))}; give a file, a directory or an id that a run printed"
        )
    return matches[:1]


def kernel_of(reproducer: Reproducer, allowed: Iterable[str]) -> Kernel:
    """The kernel a reproducer speaks of, or the one that stands in for it: a single allowed `module:function`.

    Imports nothing but stabcheck's own kernels and the targets the user allowed. Raises UsageError for any other.
    """
    allowed = list(allowed)
    if len(allowed) == 1 and ":" in allowed[0]:
        return load(allowed, reproducer.operation)[0]
    target = _located(reproducer.id, reproducer.target, allowed)
    try:
        for kernel in load([target.partition(":")[0]]):
            if (kernel.name, kernel.operation) == (reproducer.kernel, reproducer.operation):
                return kernel
    except UsageError:
        pass  # nothing registered there: the function itself may do
    beside, routed = (  # where all of them lie is asked before one of them is imported
        {name: _located(reproducer.id, other, allowed) for name, other in others.items()}
        for others in (reproducer.functions, reproducer.routes)
    )
    functions: dict[str, Any] = {role: function_of(other) for role, other in beside.items() if role in FUNCTIONS}
    routes = {route: function_of(other) for route, other in routed.items()}
    function, declared = function_of(target), reproducer.declared
    return make_kernel(reproducer.operation, function, name=reproducer.kernel, routes=routes, **functions, **declared)


def _located(id: str, target: str, allowed: list[str]) -> str:
    """The target, its file as the user named it. Raises NotAllowed if it is neither stabcheck's own nor named by the user."""
    place, _, name = target.partition(":")
    if _is_named(os.path.normpath(place), allowed):
        return target
    files = [file for a in allowed if _ends_in(file := a.partition(":")[0], place)]
    if len({os.path.realpath(file) for file in files}) == 1:
        return f"{files[0]}:{name}"
    if files:
        raise NotAllowed(f"reproducer {id} is about a kernel of {place}, which may be {' or '.join(files)}; name one of them")
    cure = f"allow it with --kernels {_name_for(place, name)}"
    raise NotAllowed(f"reproducer {id} is about a kernel of {place}, which is not imported unasked; {cure}")


def _name_for(place: str, name: str) -> str:
    """What to hand to --kernels here; the file of another machine has another path, to its end or, if that was absolute, throughout."""
    if not place.endswith(".py") or Path(place).exists():
        return place
    return f"path/to/{Path(place).name}:{name}" if os.path.isabs(place) else f"path/to/{place}"


def _is_named(place: str, allowed: list[str]) -> bool:
    """Whether a module or file is stabcheck's own, or named by the user as it stands."""
    named = [os.path.normpath(a.partition(":")[0]) for a in allowed]
    own = re.fullmatch(re.escape(BUILT_IN) + r"(\.[A-Za-z_]\w*)*", place) is not None and not place.endswith(".py")
    return own or any(place == a or place.startswith(a + ".") for a in named)


def _ends_in(file: str, place: str) -> bool:
    """Whether a file's path ends in that of a reproducer, which was relative to the directory the run was started in."""
    wanted = Path(os.path.normpath(place)).parts
    paths = (Path(os.path.abspath(file)), Path(file).resolve())
    return place.endswith(".py") and any(path.parts[-len(wanted) :] == wanted for path in paths)


def trial_of(reproducer: Reproducer, kernel: Kernel, device: Device) -> Trial:
    """The trial a reproducer is an example of. Raises UsageError for a file that says what cannot be."""
    laws = all_laws()
    if reproducer.property_name not in laws:
        known = ", ".join(laws)
        raise UsageError(f"reproducer {reproducer.id} is about the property {reproducer.property_name!r}; stabcheck knows {known}")
    op = operation(kernel.operation)
    given = {name for row in reproducer.recipe.rows for name, _ in row.inputs} | {name for name, _ in reproducer.recipe.options}
    unknown = sorted(given - {spec.name for spec in op.inputs} - {option.name for option in op.options})
    if (reproducer.recipe.operation, reproducer.recipe.dtype) != (kernel.operation, reproducer.dtype):
        raise UsageError(f"reproducer {reproducer.id} is of {kernel.operation}, {reproducer.dtype}, its recipe is not; restore the file")
    if unknown:
        raise UsageError(f"reproducer {reproducer.id} gives {unknown} but {kernel.operation} takes {op.summary}; restore the file")
    for name, value in reproducer.recipe.options:
        spec = op.option(name)
        if type(value) is not type(spec.default) or (spec.choices and value not in spec.choices):
            raise UsageError(f"reproducer {reproducer.id} gives {name} = {value!r}, which {kernel.operation} cannot have; restore the file")
    return Trial(kernel, laws[reproducer.property_name], reproducer.dtype, device)


def replay(reproducer: Reproducer, kernel: Kernel, device: Device | None = None) -> Finding | None:
    """Run the law on the recipe once more: the finding, or None if the kernel passes now."""
    trial = trial_of(reproducer, kernel, device or describe("cpu"))
    if why := trial.law.why_not(kernel, trial.device):
        raise UsageError(f"reproducer {reproducer.id} cannot run on {trial.device}: {why}")
    outcome = trial.examine(reproducer.recipe)
    if outcome.refusal:
        raise UsageError(f"{kernel.id} does not take the input of reproducer {reproducer.id}: {outcome.refusal}")
    return None if outcome.ok else trial.finding(reproducer.recipe, outcome)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if hasattr(value, "items") else value


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a crash never meets half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
