"""What `stabcheck list` shows."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stabcheck.laws import all_laws
from stabcheck.operations import all_operations
from stabcheck.targets import BUILT_IN, load


def show_all(console: Console) -> None:
    """Print the operations, stabcheck's own kernels and the properties."""
    operations = Table("operation", "what a kernel takes and returns", "policies and error models (default first)", title="operations")
    for op in all_operations().values():
        choices = {**op.policies, **({"error_model": tuple(op.error_models)} if len(op.error_models) > 1 else {})}
        told = "; ".join(f"{name}: {' | '.join(answers)}" for name, answers in choices.items())
        operations.add_row(op.name, op.signature or op.summary, told)
    kernels = Table("kernel", "dtypes", "declares", title=f"kernels of {BUILT_IN}")
    for k in load([BUILT_IN]):
        declared = [f"{name}={answer}" for name, answer in k.policies.items()]
        declared += [name for name in ("in_place", "routes", "batch_invariant", "gpu_only") if getattr(k, name)]
        declared += [f"max_vocab={k.max_vocab}"] if k.max_vocab else []
        kernels.add_row(escape(k.id), ", ".join(k.dtypes), ", ".join(declared))
    properties = Table("property", "law", "needs", title="properties")
    for law in all_laws().values():
        needs = [*(["a GPU"] if law.gpu else []), *([law.requires] if law.requires else [])]
        properties.add_row(law.name, law.statement, ", ".join(needs))
    for table in (operations, kernels, properties):
        console.print(table)
