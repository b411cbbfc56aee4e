"""The pieces for anyone's own test: exact results with their bounds, and an assertion that explains itself.

got = my_softmax(logits, temperature)
stabcheck.assert_within_bound("temperature_softmax", got, logits, temperature)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract
from stabcheck.devices import describe
from stabcheck.errors import UsageError
from stabcheck.floats import FORMATS, name_of
from stabcheck.operations import operation as find_operation
from stabcheck.operations.base import Expected
from stabcheck.registry import ERROR_MODELS
from stabcheck.verdicts import Comparison, agreement, witness


def reference(
    operation: str,
    logits: torch.Tensor,
    *inputs: torch.Tensor,
    output: torch.dtype | None = None,
    policies: Mapping[str, str] | None = None,
    error_model: str = "shift_first",
    tile: int = 1024,
) -> Expected:
    """The exact result of an operation in fp64 and the largest error a correct kernel can make, elementwise.

    Parameters
    ----------
    operation: e.g. "temperature_softmax".
    logits: [R, V], fp32, bf16 or fp16; taken to fp64 bit for bit.
    inputs: the operation's per-row inputs, [R] each, e.g. temperature in fp32.
    output: dtype the kernel returns; the logits' dtype unless given.
    policies: edge policies other than the operation's defaults.
    error_model, tile: what the kernel declares, see `stabcheck.Kernel`.

    Raises
    ------
    UsageError: an unknown operation, dtype or policy; inputs of the wrong number or shape.
    """
    op = find_operation(operation)
    wanted = dict(op.policies)
    for name, answer in (policies or {}).items():
        if answer not in wanted.get(name, ()):
            raise UsageError(f"unknown policy {name}={answer!r}; {operation} has {wanted}")
    if error_model not in ERROR_MODELS:
        raise UsageError(f"unknown error_model {error_model!r}; use one of {', '.join(ERROR_MODELS)}")
    if logits.ndim != 2 or not logits.shape[1] or len(inputs) != len(op.inputs) or any(i.shape != logits.shape[:1] for i in inputs):
        given = ", ".join(str(list(t.shape)) for t in (logits, *inputs))
        raise UsageError(f"{operation} takes {op.summary.partition(' ->')[0]}; got shapes {given}")
    fmt = FORMATS[name_of(output or logits.dtype)]
    profile = describe("cpu" if logits.device.type == "cpu" else str(logits.device)).profile
    contract = Contract(fmt, profile, op.default_policies() | dict(policies or {}), error_model, tile)
    return op.reference(Batch(logits, dict(zip((i.name for i in op.inputs), inputs, strict=True))), contract)


def assert_within_bound(operation: str, got: torch.Tensor, logits: torch.Tensor, *inputs: torch.Tensor, **declared: object) -> None:
    """Assert that every element of `got` [R, V] is within its derived bound; `declared` as in `reference`, the output dtype from `got`.

    Raises
    ------
    AssertionError: naming the worst element, what was expected there and its bound.
    UsageError: a result of another shape, and as in `reference`.
    """
    exact = reference(operation, logits, *inputs, output=got.dtype, **declared)  # type: ignore[arg-type]
    if got.shape != logits.shape:
        raise UsageError(f"the result has shape {list(got.shape)} for logits of shape {list(logits.shape)}; pass the kernel's output")
    comparison = Comparison(got, exact.value, exact.bound, exact.free)
    if exact.free is not None and bool(exact.free.all()) and got.numel():
        raise AssertionError(f"nothing to compare: the policies of {operation} leave every element undefined, such as rows of T = 0")
    failed = int(agreement(comparison).sum())
    if failed:
        w = witness(comparison)
        raise AssertionError(
            f"{failed} of {got.numel()} elements of {operation} are {w.kind}; the worst at ({w.row}, {w.column}): "
            f"got {w.got:.9g}, expected {w.expected:.9g}, bound {w.bound:.2g}"
        )
