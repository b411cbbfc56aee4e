"""Laws: what the property suites are written in.

A property is a generator that takes a Case (one kernel, one batch) and yields Comparisons:

    @law("every probability is within its derived bound of the fp64 reference")
    def test_accuracy(case):
        yield case.against_reference(case.run())

It may yield one Comparison or several at once, one for each output of the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stabcheck.cases import Case
from stabcheck.devices import Device
from stabcheck.operations import operation
from stabcheck.registry import DTYPES, Kernel
from stabcheck.verdicts import Comparison

Check = Callable[[Case], Iterator[Comparison | Iterable[Comparison]]]


@dataclass(frozen=True)
class Law:
    """A property: its name, its one-sentence statement, the check, and where it applies.

    weight: multiplies the profile's number of examples. traits: what it needs of the operation, with the options that break a trait kept
    at their defaults. requires: what it needs of the kernel, as a field name that must be truthy. promised: a policy the kernel must have
    declared before the law runs on a GPU, where breaking it could cost the device's context. dtypes: of the logits it is put to.
    row_local: each row fails or holds by itself, so the shrinker may try many rows in one launch. once: runs one fixed case instead of
    drawn ones, of `vocab` columns. max_vocab: of drawn inputs, for laws that run one row very often. big: needs tens of GiB of memory.
    """

    name: str
    statement: str
    check: Check
    weight: float = 1.0
    traits: frozenset[str] = frozenset()
    requires: str | None = None
    promised: str = ""
    dtypes: tuple[str, ...] = DTYPES
    gpu: bool = False
    row_local: bool = True
    once: bool = False
    vocab: int = 65537
    max_vocab: int = 1 << 31
    big: bool = False

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.check.__doc__

    def why_not(self, kernel: Kernel, device: Device) -> str | None:
        """Why the law cannot be put to this kernel on this device, or None."""
        if self.requires and not getattr(kernel, self.requires):
            return f"the kernel declares no {self.requires}"
        if (self.gpu or kernel.gpu_only) and not device.is_gpu:
            return "needs a GPU"
        if self.promised and device.is_gpu and self.promised not in kernel.policies:
            return f"the kernel declares no policy {self.promised!r}, and a kernel that traps would end the session"
        return None

    def applies(self, kernel: Kernel) -> bool:
        """Whether the law says anything about the kernel: its operation has the traits, and the kernel the defaults they need."""
        op = operation(kernel.operation)
        if not self.traits <= set(op.traits):
            return False
        return all(op.option(name).default in kernel.options.get(name, op.option(name).values) for name in self.fixed_options(kernel))

    def comparisons(self, case: Case) -> Iterator[Comparison]:
        """The check's comparisons, one by one."""
        for item in self.check(case):
            yield from [item] if isinstance(item, Comparison) else item

    def fixed_options(self, kernel: Kernel) -> frozenset[str]:
        """Options of the operation that must keep their defaults for the law to hold."""
        traits = operation(kernel.operation).traits
        return frozenset(option for trait in self.traits for option in traits[trait])


LAWS: dict[str, Law] = {}


def law(statement: str, **options: Any) -> Callable[[Check], Law]:
    """Turn a generator function `test_NAME(case)` into the property NAME; pytest collects it for every kernel × dtype."""

    def register(check: Check) -> Law:
        name = check.__name__.removeprefix("test_")
        options["traits"] = frozenset(options.get("traits", ()))
        LAWS[name] = made = Law(name=name, statement=statement, check=check, **options)
        return made

    return register


def all_laws() -> dict[str, Law]:
    """Every property of `stabcheck.properties`, by name."""
    import pkgutil
    from importlib import import_module

    package = import_module("stabcheck.properties")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        import_module(f"stabcheck.properties.{module}")
    return dict(sorted(LAWS.items()))
