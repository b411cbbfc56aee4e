"""Adoption in a test file: every property of an operation, on your own kernel, as one attribute.

test_fused_softmax = stabcheck.suite("temperature_softmax", fused_softmax, dtypes=["bf16", "fp32"])
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stabcheck.errors import UsageError
from stabcheck.operations import operation as find_operation
from stabcheck.registry import DTYPES, Function, Kernel, make_kernel


@dataclass(frozen=True)
class Suite:
    """What pytest collects under the attribute's name: the kernel against every property, or those in `properties`."""

    kernel: Kernel
    properties: tuple[str, ...] = ()


def suite(operation: str, function: Function, *, dtypes: Iterable[str] = DTYPES, properties: Iterable[str] = (), **declared: Any) -> Suite:
    """Assign the result to a name that starts with `test_`, in a test module.

    Parameters
    ----------
    operation: what the function computes, e.g. "temperature_softmax".
    function: called as users call it: inputs by position, e.g. (logits [R, V], temperature [R]), options by keyword where they are not the
        defaults; returns the output, or a tuple of them. A loss is called as (logits, target, reduction=…, …) and gets its gradient from
        torch.autograd.
    dtypes: logit dtypes to test, among "fp32", "bf16", "fp16".
    properties: names of properties to test; all that apply unless given.
    declared: what the kernel promises, see `stabcheck.Kernel`: in_place, output, policies, options, error_model, tile, max_vocab, …

    Raises
    ------
    UsageError: an unknown operation, dtype or field.
    """
    find_operation(operation)
    if isinstance(properties, str):
        raise UsageError(f"properties is {properties!r}; pass a list, e.g. [{properties!r}]")
    return Suite(make_kernel(operation, function, dtypes=dtypes, **declared), tuple(properties))
