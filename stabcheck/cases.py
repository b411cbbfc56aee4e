"""Cases: one kernel on one batch, as a law sees it: what it runs, varies and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, sum_error
from stabcheck.devices import Device
from stabcheck.errors import UnsupportedInput
from stabcheck.expansion import materialise
from stabcheck.floats import by_name, name_of
from stabcheck.operations import operation
from stabcheck.operations.base import Expected, Operation, Results
from stabcheck.recipe import Recipe
from stabcheck.registry import Function, Kernel
from stabcheck.verdicts import Comparison


class KernelFault(Exception):
    """The kernel raised, or returned something that is no output; carries the kind of finding it is."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Case:
    """One kernel on one batch. Results and expectations are by the names of the operation's outputs."""

    kernel: Kernel
    device: Device
    recipe: Recipe

    @cached_property
    def operation(self) -> Operation:
        return operation(self.kernel.operation)

    @cached_property
    def contract(self) -> Contract:
        return self.contract_for(by_name(self.recipe.dtype).torch)

    def contract_for(self, dtype: torch.dtype) -> Contract:
        """What the kernel is held against for logits of a dtype."""
        kernel, given = self.kernel, by_name(name_of(dtype))
        output = by_name("fp32") if (kernel.output or self.operation.output) == "fp32" else given
        policies = self.operation.default_policies() | dict(kernel.policies)
        shape = (kernel.tile, kernel.lanes)
        return Contract(given, output, self.device.profile, policies, kernel.error_model, *shape, kernel.noise, kernel.noise_error)

    @cached_property
    def buffers(self) -> list[torch.Tensor]:
        """Results of this case's calls, kept alive so that a buffer returned twice is noticed."""
        return []

    @cached_property
    def batch(self) -> Batch:
        return materialise(self.recipe, self.device.name)

    @cached_property
    def expected(self) -> dict[str, Expected]:
        return self.expect(self.batch)

    @property
    def batches(self) -> list[Batch]:
        """The batch, and where the operation knows reductions also under the mean, a path of its own in many kernels."""
        return [self.batch, self.batch.with_options(reduction="mean")] if "reductions" in self.operation.traits else [self.batch]

    def expect(self, batch: Batch) -> dict[str, Expected]:
        """The reference of a batch."""
        return self.operation.reference(batch, self.contract_for(batch.logits.dtype))

    def run(self, batch: Batch | None = None, function: Function | None = None) -> Results:
        """Call the kernel (or one of its other functions) and check that its outputs have the right shapes, dtypes and device.

        Raises KernelFault for anything else, UnsupportedInput where the kernel refuses.
        """
        if batch is None:  # the reference is taken before the kernel can touch its input
            batch, _ = self.batch, self.expected
        try:
            returned = self.call(batch, function)
        except UnsupportedInput:
            raise
        except Exception as error:  # whatever a kernel raises is a finding, not our traceback
            told = str(error).strip().splitlines()[:1]
            raise KernelFault("crash", f"{type(error).__name__}: {''.join(told)}") from error
        results = self._checked(returned, batch)
        for values in results.values():
            if any(_share(values, earlier) for earlier in self.buffers):
                of_input = any(_share(values, given) for given in batch.args if isinstance(given, torch.Tensor))
                of_call = "the buffer of an earlier call, whose result the caller may still hold"
                raise KernelFault("memory", f"returned {'a view of its input, which the caller may change' if of_input else of_call}")
        self.buffers.extend(results.values())
        return results

    def call(self, batch: Batch, function: Function | None = None) -> Any:
        """The bare call: options are passed where they differ from the defaults; what the kernel raises comes through."""
        given = {name: value for name, value in batch.options.items() if not self.operation.plain(batch.options, [name])}
        with np.errstate(all="ignore"):  # Triton's interpreter computes in numpy, which warns of what the laws judge
            return self.operation.call(function or self.kernel.function, *batch.args, **given)

    def _checked(self, returned: Any, batch: Batch) -> Results:
        outputs, contract = self.operation.outputs, self.contract_for(batch.logits.dtype)
        values = returned if isinstance(returned, tuple | list) else (returned,)
        if len(values) != len(outputs):
            raise KernelFault("wrong", f"returned {len(values)} of its outputs, {', '.join(output.name for output in outputs)}")
        for output, value in zip(outputs, values, strict=True):
            declared = contract.input.torch if output.dtype == "input" else contract.output.torch
            dtypes = (torch.int64, torch.int32) if output.dtype == "index" else (declared,)
            if problem := _problem(value, output.shape(batch), dtypes, batch.logits):
                raise KernelFault("wrong", (f"{output.name}: " if len(outputs) > 1 else "") + problem)
        return {output.name: value for output, value in zip(outputs, values, strict=True)}

    def against_reference(self, got: Results, batch: Batch | None = None, what: str = "") -> list[Comparison]:
        """Each output within the derived bound of the fp64 reference."""
        batch, expected = (batch or self.batch), self.settled(got, batch)
        support = "row_sum_one" in self.operation.traits
        return [
            Comparison(
                got[name],
                e.value,
                e.bound,
                e.free,
                explanations=self._explanations(name, got, batch),
                what=self.named(name, what),
                support=support,
                reference=True,
            )
            for name, e in expected.items()
        ]

    def settled(self, got: Results, batch: Batch | None = None) -> dict[str, Expected]:
        """The reference of a batch for a kernel that returned `got`, the sides it took granted where rounding decides."""
        expected = self.expected if batch is None or batch is self.batch else self.expect(batch)
        return {name: e.settled(got) for name, e in expected.items()}

    def named(self, output: str, what: str) -> str:
        """What was compared, with the output's name where there are several."""
        return ": ".join(filter(None, (output if len(self.operation.outputs) > 1 else "", what)))

    def within(
        self,
        got: Results,
        other: Results,
        bounds: Mapping[str, torch.Tensor | float],
        free: Mapping[str, torch.Tensor | None] | None = None,
        what: str = "",
        **more: Any,
    ) -> list[Comparison]:
        """Two results of the kernel, output by output, that may differ by `bounds`."""
        free = free or {}
        return [Comparison(got[n], other[n], bounds[n], free.get(n), what=self.named(n, what), **more) for n in bounds]

    def same_bits(self, got: Results, other: Results, what: str = "", **more: Any) -> list[Comparison]:
        """Two results that must agree bit for bit (NaN equals NaN)."""
        return self.within(got, other, dict.fromkeys(got, 0.0), what=what, **more)

    def no_fault(self, fault: torch.Tensor, what: str) -> Comparison:
        """A map of memory faults, which must be empty."""
        return Comparison(fault, torch.zeros((), device=fault.device), 0.0, kind="memory", what=what, aligned=False)

    def minus_maximum(self, batch: Batch) -> Batch:
        """The batch with each row's maximum subtracted."""
        x = batch.logits.double()
        return batch.with_logits((x - x.amax(-1, keepdim=True)).to(batch.logits.dtype))

    def _explanations(self, name: str, got: Results, batch: Batch) -> dict[str, Callable[[], torch.Tensor]]:
        """For each error model looser than the kernel's own: on demand, the elements whose error it explains."""
        models = list(self.operation.error_models)
        looser = models[models.index(self.kernel.error_model) + 1 :]
        if not self.operation.plain(batch.options, self.operation.traits.get("shift_equivariant", ())):
            return {}  # such a row means something else once its maximum is subtracted
        return {model: lambda model=model: self._explained(model, name, got, batch) for model in looser}  # type: ignore[misc]

    def _explained(self, model: str, name: str, got: Results, batch: Batch) -> torch.Tensor:
        """Elements within the bound of a looser error model, in rows that show that model and nothing else.

        Such a row is right once the maximum has been subtracted beforehand; and if its outputs sum to one, they do whatever the errors of
        the exponents, but for the summation, the quotients and the rounding. Without these, a vacuous bound would explain any result.
        """
        values = got[name].double()
        plain = self.minus_maximum(batch)
        try:
            shifted = self.run(plain)
        except (KernelFault, UnsupportedInput):
            return torch.zeros_like(values, dtype=torch.bool)
        contract = self.contract_for(batch.logits.dtype)
        loose = self.operation.reference(batch, replace(contract, error_model=model))[name].settled(got)
        exact = self.settled(shifted, plain)[name]
        right = (shifted[name].double() - exact.value).abs() <= exact.bound
        right = right.all(-1, keepdim=True) if right.ndim == 2 else right
        if "row_sum_one" in self.operation.traits:
            right = right & ((values.sum(-1, keepdim=True) - 1).abs() <= sum_error(values.shape[1], contract))
        return ((values - loose.value).abs() <= loose.bound) & right


def _share(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(one.numel()) and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _problem(value: Any, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], logits: torch.Tensor) -> str:
    """What is wrong with a returned value, or ""."""
    if not isinstance(value, torch.Tensor):
        return f"returned {type(value).__name__}, not a tensor"
    if value.shape != shape:
        return f"returned shape {list(value.shape)} for logits of shape {list(logits.shape)}, not {list(shape)}"
    if value.dtype not in dtypes:
        cure = "return ids as integers" if len(dtypes) > 1 else "declare output='fp32' or output='input' if that is meant"
        return f"returned {value.dtype}, declared {dtypes[0]}; {cure}"
    if value.device != logits.device:
        return f"returned a tensor on {value.device} for logits on {logits.device}"
    return ""
