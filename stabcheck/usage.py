"""The pieces for anyone's own test: exact results with their bounds, and an assertion that explains itself.

got = my_softmax(logits, temperature)
stabcheck.assert_within_bound("temperature_softmax", got, logits, temperature)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract
from stabcheck.devices import describe
from stabcheck.errors import UsageError
from stabcheck.floats import FORMATS, name_of
from stabcheck.operations import operation as find_operation
from stabcheck.operations.base import IGNORED, Expected, Operation
from stabcheck.verdicts import Comparison, agreement, witness


def reference(
    operation: str,
    logits: torch.Tensor,
    *inputs: torch.Tensor,
    output: torch.dtype | None = None,
    policies: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    error_model: str = "shift_first",
    tile: int = 1024,
    noise: Callable[..., torch.Tensor] | None = None,
    noise_error: float = 0.0,
) -> dict[str, Expected]:
    """The exact results of an operation in fp64 and the largest errors a correct kernel can make, elementwise, by the outputs' names.

    Parameters
    ----------
    operation: e.g. "temperature_softmax".
    logits: [R, V], fp32, bf16 or fp16; taken to fp64 bit for bit.
    inputs: the operation's per-row inputs, [R] each, e.g. temperature in fp32; inputs left out at the end have
        their defaults, but for those that name a column.
    output: dtype the kernel returns; the operation's own choice unless given.
    policies: edge policies other than the operation's defaults.
    options: options other than the operation's defaults, e.g. {"label_smoothing": 0.1}; reduction may be "none", "sum" or "mean".
    error_model, tile, noise, noise_error: what the kernel declares, see `stabcheck.Kernel`.

    Raises
    ------
    UsageError: an unknown operation, dtype, policy or option; inputs of the wrong number or shape.
    """
    op = find_operation(operation)
    wanted = dict(op.policies)
    for name, answer in (policies or {}).items():
        if answer not in wanted.get(name, ()):
            raise UsageError(f"unknown policy {name}={answer!r}; {operation} has {wanted}")
    for name, value in (options or {}).items():
        if name not in (known := [option.name for option in op.options]):
            raise UsageError(f"unknown option {name!r}; {operation} has {', '.join(known) or 'none'}")
        if (choices := op.option(name).choices) and value not in choices:
            raise UsageError(f"unknown {name} {value!r}; use one of {', '.join(choices)}")
    if error_model not in op.error_models:
        raise UsageError(f"unknown error_model {error_model!r}; use one of {', '.join(op.error_models)}")
    if logits.ndim != 2 or not logits.shape[1] or len(inputs) > len(op.inputs) or any(i.shape != logits.shape[:1] for i in inputs):
        given = ", ".join(str(list(t.shape)) for t in (logits, *inputs))
        raise UsageError(f"{operation} takes {op.summary.partition(' ->')[0]}; got shapes {given}")
    stored = FORMATS[name_of(output or (torch.float32 if op.output == "fp32" else logits.dtype))]
    given_inputs = _with_defaults(op, logits, inputs)
    _check_inputs(op, logits, given_inputs, options or {})
    profile = describe("cpu" if logits.device.type == "cpu" else str(logits.device)).profile
    answers = op.default_policies() | dict(policies or {})
    contract = Contract(FORMATS[name_of(logits.dtype)], stored, profile, answers, error_model, tile, noise=noise, noise_error=noise_error)
    return op.reference(Batch(logits, given_inputs, options=dict(options or {})), contract)


def _with_defaults(op: Operation, logits: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    given = {spec.name: values for spec, values in zip(op.inputs, inputs, strict=False)}
    for spec in op.inputs[len(inputs) :]:
        if spec.column:
            raise UsageError(f"{op.name} takes {op.summary.partition(' ->')[0]}; {spec.name} is missing")
        dtype = torch.float32 if isinstance(spec.default, float) else torch.int64
        given[spec.name] = torch.full(logits.shape[:1], spec.default, dtype=dtype, device=logits.device)
    return given


def _check_inputs(op: Operation, logits: torch.Tensor, inputs: dict[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """Raise UsageError for inputs of a dtype the operation does not have, and for columns out of range."""
    for spec in op.inputs:
        values, wanted = inputs[spec.name], torch.float32 if isinstance(spec.default, float) else torch.int64
        if values.dtype != wanted:
            raise UsageError(f"{spec.name} has dtype {values.dtype}; pass {spec.name}.to({wanted})")
        if spec.column:
            bad = ((values < 0) | (values >= logits.shape[1])) & (values != options.get("ignore_index", IGNORED))
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise UsageError(
                    f"{spec.name} is {int(values[row])} in row {row} of logits with {logits.shape[1]} columns; pass one of them"
                )


def assert_within_bound(
    operation: str,
    got: torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    logits: torch.Tensor,
    *inputs: torch.Tensor,
    **declared: Any,
) -> None:
    """Assert that every element of a result is within its derived bound.

    Parameters
    ----------
    got: the output, or several in the operation's order or by name, e.g. {"loss": loss, "grad": logits.grad}.
    declared: as in `reference`; the dtype of outputs is taken from `got`.

    Raises
    ------
    AssertionError: naming the worst element, what was expected there and its bound.
    UsageError: an unknown output or a result of another shape, and as in `reference`.
    """
    names = [output.name for output in find_operation(operation).outputs]
    first, parts = names[0], [got] if isinstance(got, torch.Tensor) else got
    results = dict(parts) if isinstance(parts, Mapping) else dict(zip(names, parts, strict=False))
    unknown = sorted(set(declared) - set(inspect.signature(reference).parameters))
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]!r}; options of the operation go into options={{{unknown[0]!r}: …}}")
    if first in results and results[first].is_floating_point():
        declared = {"output": results[first].dtype, **declared}
    exact = reference(operation, logits, *inputs, **declared)
    for name, values in results.items():
        if name not in exact:
            raise UsageError(f"unknown output {name!r}; {operation} has {', '.join(exact)}")
        _assert_output(f"{operation}" + (f"'s {name}" if len(exact) > 1 else ""), values, exact[name].settled(results), logits)


def _assert_output(what: str, got: torch.Tensor, exact: Expected, logits: torch.Tensor) -> None:
    if got.shape != exact.value.shape:
        found, wanted = list(got.shape), list(exact.value.shape)
        raise UsageError(f"the result has shape {found} for logits of shape {list(logits.shape)}, not {wanted}; pass the kernel's output")
    comparison = Comparison(got, exact.value, exact.bound, exact.free)
    if exact.free is not None and bool(exact.free.all()) and got.numel():
        raise AssertionError(f"nothing to compare: the policies of {what} leave every element undefined")
    failed = int(agreement(comparison).sum())
    if failed:
        w = witness(comparison)
        place = f"row {w.row}" if w.column is None else f"({w.row}, {w.column})"
        raise AssertionError(
            f"{failed} of {got.numel()} elements of {what} are {w.kind}; the worst at {place}: "
            f"got {w.got:.9g}, expected {w.expected:.9g}, bound {w.bound:.2g}"
        )
