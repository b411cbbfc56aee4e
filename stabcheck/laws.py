"""Laws: what the property suites are written in.

A property is a generator that takes a Case (one kernel, one batch) and yields Comparisons:

    @law("every probability is within its derived bound of the fp64 reference")
    def test_accuracy(case):
        yield case.against_reference(case.run())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from stabcheck.batches import Batch, materialise
from stabcheck.bounds import Contract, sum_error
from stabcheck.devices import Device
from stabcheck.errors import UnsupportedInput
from stabcheck.floats import by_name
from stabcheck.operations import operation
from stabcheck.operations.base import Expected, Operation
from stabcheck.recipe import Recipe
from stabcheck.registry import Function, Kernel
from stabcheck.verdicts import Comparison

Check = Callable[["Case"], Iterator[Comparison]]


class KernelFault(Exception):
    """The kernel raised, or returned something that is no output; carries the kind of finding it is."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Law:
    """A property: its name, its one-sentence statement, the check, and where it applies.

    weight: multiplies the profile's number of examples. traits: what it needs of the operation. requires: what it needs of the kernel, as
    a field name that must be truthy. row_local: each row fails or holds by itself, so the shrinker may try many rows in one launch.
    once: runs one fixed case instead of drawn ones. big: needs tens of GiB of device memory.
    """

    name: str
    statement: str
    check: Check
    weight: float = 1.0
    traits: frozenset[str] = frozenset()
    requires: str | None = None
    gpu: bool = False
    row_local: bool = True
    once: bool = False
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
        missing = self.traits - operation(kernel.operation).traits
        return f"{kernel.operation} is not {', '.join(sorted(missing))}" if missing else None


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


@dataclass(frozen=True)
class Case:
    """One kernel on one batch: what a law runs, varies and compares."""

    kernel: Kernel
    device: Device
    recipe: Recipe

    @cached_property
    def operation(self) -> Operation:
        return operation(self.kernel.operation)

    @cached_property
    def contract(self) -> Contract:
        policies = self.operation.default_policies() | dict(self.kernel.policies)
        output = by_name("fp32" if self.kernel.output == "fp32" else self.recipe.dtype)
        kernel = self.kernel
        return Contract(output, self.device.profile, policies, kernel.error_model, kernel.tile, kernel.lanes)

    @cached_property
    def outputs(self) -> list[torch.Tensor]:
        """Results of this case's calls, kept alive so that a buffer returned twice is noticed."""
        return []

    @cached_property
    def batch(self) -> Batch:
        return materialise(self.recipe, self.device.name)

    @cached_property
    def expected(self) -> Expected:
        return self.operation.reference(self.batch, self.contract)

    def expect(self, batch: Batch) -> Expected:
        """The reference of another batch."""
        return self.operation.reference(batch, self.contract)

    def run(self, batch: Batch | None = None, function: Function | None = None) -> torch.Tensor:
        """Call the kernel (or one of its other functions) and check that it returned an output of the right shape, dtype and device.

        Raises KernelFault for anything else, UnsupportedInput where the kernel refuses.
        """
        if batch is None:  # the reference is taken before the kernel can touch its input
            batch, _ = self.batch, self.expected
        try:
            with np.errstate(all="ignore"):  # Triton's interpreter computes in numpy, which warns of what the laws judge
                output = (function or self.kernel.function)(*batch.args)
        except UnsupportedInput:
            raise
        except Exception as error:  # whatever a kernel raises is a finding, not our traceback
            raise KernelFault(
                "crash", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            ) from error
        checked = _checked(output, batch, self.contract)
        if any(checked.untyped_storage().data_ptr() == o.untyped_storage().data_ptr() for o in self.outputs if checked.numel()):
            raise KernelFault("memory", "returned the buffer of an earlier call, whose result the caller may still hold")
        self.outputs.append(checked)
        return checked

    def against_reference(self, got: torch.Tensor, batch: Batch | None = None, what: str = "") -> Comparison:
        """got within the derived bound of the fp64 reference."""
        expected = self.expected if batch is None else self.expect(batch)

        def explained() -> torch.Tensor:
            return self.explained_by_scaling(got, expected, batch or self.batch)

        checks = None if self.contract.error_model == "scale_first" else explained
        return Comparison(got, expected.value, expected.bound, expected.free, explained=checks, what=what)

    def explained_by_scaling(self, got: torch.Tensor, expected: Expected, batch: Batch) -> torch.Tensor:
        """Elements within the scale-first bound, in rows that show scaling first and nothing else.

        Such a row is right once the maximum has been subtracted beforehand, and whatever its exponents' errors it sums to one, but for the
        summation, the quotients and the rounding to the output. Without these, a bound that is vacuous would explain any result.
        """
        try:
            shifted_result = self.run(self.minus_maximum(batch))
        except (KernelFault, UnsupportedInput):
            return torch.zeros_like(got, dtype=torch.bool)
        loose = self.operation.reference(batch, replace(self.contract, error_model="scale_first")).bound
        exact = self.expect(self.minus_maximum(batch))
        right = ((shifted_result.double() - exact.value).abs() <= exact.bound).all(-1, keepdim=True)
        if "row_sum_one" in self.operation.traits:
            right = right & ((got.double().sum(-1, keepdim=True) - 1).abs() <= sum_error(got.shape[1], self.contract))
        return ((got.double() - expected.value).abs() <= loose) & right

    def minus_maximum(self, batch: Batch) -> Batch:
        """The batch with each row's maximum subtracted."""
        x = batch.logits.double()
        return batch.with_logits((x - x.amax(-1, keepdim=True)).to(batch.logits.dtype))

    def no_fault(self, fault: torch.Tensor, what: str) -> Comparison:
        """A map of memory faults, which must be empty."""
        return Comparison(fault, torch.zeros((), device=fault.device), 0.0, kind="memory", what=what, aligned=False)

    def within(
        self, got: torch.Tensor, other: torch.Tensor, bound: torch.Tensor | float, free: torch.Tensor | None = None, **more: Any
    ) -> Comparison:
        """Two results of the kernel that may differ by `bound`."""
        return Comparison(got, other, bound, free, **more)

    def same_bits(self, got: torch.Tensor, other: torch.Tensor, **more: Any) -> Comparison:
        """Two tensors that must agree bit for bit (NaN equals NaN)."""
        return Comparison(got, other, 0.0, **more)


def _checked(output: Any, batch: Batch, contract: Contract) -> torch.Tensor:
    logits = batch.logits
    if not isinstance(output, torch.Tensor):
        raise KernelFault("wrong", f"returned {type(output).__name__}, not a tensor")
    if output.shape != logits.shape:
        raise KernelFault("wrong", f"returned shape {list(output.shape)} for logits of shape {list(logits.shape)}")
    if output.dtype != contract.output.torch:
        raise KernelFault("wrong", f"returned {output.dtype}, declared {contract.output.torch}; declare output='fp32' if that is meant")
    if output.device != logits.device:
        raise KernelFault("wrong", f"returned a tensor on {output.device} for logits on {logits.device}")
    return output
