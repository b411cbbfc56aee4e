"""Guards: canaries and poison around every buffer a kernel touches, so that stray reads and writes show.

Inputs are copied between poisoned margins. While the kernel's launcher runs, a torch dispatch mode replaces each buffer it allocates by one
that is poisoned and has the same margins. Poison is a NaN with a payload of its own: no arithmetic produces its bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stabcheck.batches import Batch, bits_of
from stabcheck.cases import Case, KernelFault
from stabcheck.errors import ShortOfMemory, UnsupportedInput
from stabcheck.operations.base import IGNORED, Results, of_rows
from stabcheck.verdicts import Comparison

MARGIN = 64  # elements on each side
INT32_REACH = 1 << 31  # how far below its base an offset lands that wraps at 32 bits, in elements
POISON = {1: 0x5A, 2: 0x7FE5, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}  # by element size; a NaN in each float format but one byte
LARGE = 1 << 30
WITNESSES = 3


@dataclass(frozen=True)
class Guarded:
    """A tensor inside a larger poisoned buffer."""

    inner: torch.Tensor
    flat: torch.Tensor
    margin: int

    def overrun(self) -> torch.Tensor:
        """[2 × margin] bool: elements of the margins that were written."""
        bits = bits_of(self.flat)
        edges = torch.cat([bits[: self.margin], bits[len(bits) - self.margin :]])
        return edges != POISON[self.flat.element_size()]


@dataclass(frozen=True)
class Watched:
    """A guarded run: the results, and maps of what went wrong: [buffers, margins], one of each output's shape, [1, all inputs]."""

    results: Results
    overruns: torch.Tensor
    unwritten: dict[str, torch.Tensor]
    changed: torch.Tensor


def guard(shape: Any, stride: Any, dtype: torch.dtype, device: Any, margin: int = MARGIN) -> Guarded:
    """A poisoned tensor of the given shape and strides between two margins."""
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else 0
    flat = torch.empty(extent + 2 * margin, dtype=dtype, device=device)
    bits_of(flat).fill_(POISON[flat.element_size()])
    return Guarded(flat.as_strided(shape, stride, margin), flat, margin)


class GuardAllocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every uninitialised or zeroed tensor allocated inside it poison and margins; `made` lists them.

    `large`: the margin of buffers of 2^30 elements or more, into which an offset may wrap.
    """

    def __init__(self, large: int = MARGIN) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.large = large
        self.made: list[Guarded] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        if name not in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros", "zeros_like", "new_zeros"):
            return made
        if not made.numel() or made.element_size() not in POISON:
            return made
        guarded = guard(made.shape, made.stride(), made.dtype, made.device, self.large if made.numel() >= LARGE else MARGIN)
        if "zeros" in name:
            guarded.inner.zero_()
        self.made.append(guarded)
        return guarded.inner


def guarded_batch(batch: Batch, margin: int = MARGIN) -> tuple[Batch, list[Guarded]]:
    """The batch with its tensors copied between poisoned margins, and these."""
    guards = [_guarded_copy(t, margin) for t in batch.args]
    inputs = {name: g.inner for name, g in zip(batch.inputs, guards[1:], strict=True)}
    return replace(batch, logits=guards[0].inner, inputs=inputs), guards


def run_guarded(case: Case, original: Batch | None = None) -> Watched:
    """Run the kernel with every buffer guarded and compare the bits around and inside them before and after."""
    original = original or case.batch
    batch, inputs = guarded_batch(original)
    allocations = GuardAllocations()
    with allocations:
        results = case.run(batch)
    buffers = [*inputs, *allocations.made]
    return Watched(
        results=results,
        overruns=torch.stack([b.overrun() for b in buffers]),
        unwritten={name: bits_of(values) == POISON[values.element_size()] for name, values in results.items()},
        changed=torch.cat([(bits_of(g.inner) != bits_of(t)).flatten() for g, t in zip(inputs, original.args, strict=True)])[None],
    )


def run_beyond_int32(case: Case) -> tuple[Results, torch.Tensor, torch.Tensor]:
    """Run on more than 2^31 elements, every row the case's first one; where the kernel takes what the operation makes of the logits, on
    few rows that lie as far apart, since of as many there is no room for all that is made.

    Returns (results of rows 0, middle and last; [rows, 1] bool: rows that differ from row 0; [buffers, 1] bool: margins written).
    Raises ShortOfMemory where the device has too little.
    """
    source = case.batch.pick(slice(0, 1))
    vocab = source.logits.shape[1]
    few = "verifies" in case.operation.traits
    rows, stride = (WITNESSES, INT32_REACH // (WITNESSES - 1)) if few else (INT32_REACH // vocab + WITNESSES, vocab)
    needed = _memory_beyond_int32(case, (rows - 1) * stride + vocab, [4, 4] if few else [])  # the probabilities of target and draft
    if needed > torch.cuda.mem_get_info(source.logits.device)[0]:
        raise ShortOfMemory(f"64-bit offsets need {needed / 2**30:.0f} GiB of free device memory; run them on a larger GPU")
    logits = guard((rows, vocab), (stride, 1), source.logits.dtype, source.logits.device, INT32_REACH)
    logits.inner.copy_(source.logits.expand(rows, vocab))
    batch = replace(source, logits=logits.inner, inputs={k: v.expand(rows).contiguous() for k, v in source.inputs.items()})
    with GuardAllocations(INT32_REACH) as allocations:
        results = case.run(batch)
    differs = torch.stack([_differs_from_first(values) for values in results.values()]).any(0)[:, None]
    stray = torch.stack([_margins_written(b) for b in (logits, *allocations.made)])
    return of_rows(results, [0, rows // 2, rows - 1]), differs, stray


def _memory_beyond_int32(case: Case, span: int, made: list[int]) -> int:
    """Bytes: of the logits and of each large buffer `span` elements between margins, `made` by element size besides the outputs; of the
    largest those once more, whose place its guarded copy takes; and room to look at margins."""
    own = case.batch.logits.element_size()
    wide = [own if o.dtype == "input" else case.contract.output.bits // 8 for o in case.operation.outputs if o.per == "element"] + made
    return (span + INT32_REACH * 2) * (own + sum(wide)) + span * max(wide, default=0) + INT32_REACH * 2


def run_with_bad_target(case: Case, bad: int) -> list[Comparison]:
    """Give one row a target out of range, the logits between margins wide enough for it, and compare what comes with the policy.

    Raises KernelFault if the kernel raises nothing where it should.
    """
    batch, name = case.batch, case.operation.column_input
    if bad == batch.options.get("ignore_index", IGNORED):
        return []
    at, reach = case.recipe.seed % len(batch.logits), sum(batch.logits.stride()) * 4 + MARGIN
    target = batch.inputs[name].clone()
    target[at] = bad
    good = case.run(guarded_batch(batch, reach)[0])  # in the layout of the other: a kernel may add in another order for another
    guarded, _ = guarded_batch(batch.with_inputs(**{name: target}), reach)
    what = f"{name} = {bad} in row {at}, V = {case.recipe.vocab}"
    try:
        case.call(guarded)
    except UnsupportedInput:
        raise
    except Exception as error:
        if not str(error).strip():
            raise KernelFault("crash", f"{what} raised {type(error).__name__} without a word") from error
        return [case.no_fault(torch.zeros((1, 1), dtype=torch.bool, device=target.device), what)]
    results = case.run(guarded)
    if case.contract.policies["bad_target"] == "error":
        returned = ", ".join(f"{n} {values[at].flatten()[0].item():.6g}" for n, values in results.items())
        raise KernelFault("wrong", f"{what} raised no error; returned {returned}")
    others = torch.arange(len(target), device=target.device) != at
    nan = {n: torch.full_like(values[at : at + 1], torch.nan) for n, values in results.items()}
    poisoned = case.same_bits(of_rows(results, slice(at, at + 1)), nan, what=what, aligned=False)
    return [*poisoned, *case.same_bits(of_rows(results, others), of_rows(good, others), what=f"other rows beside {what}", aligned=False)]


def _differs_from_first(values: torch.Tensor) -> torch.Tensor:
    """[rows] bool: rows whose bits are not those of row 0."""
    bits = bits_of(values).reshape(len(values), -1)
    return torch.cat([(part != bits[:1]).any(-1) for part in torch.split(bits, 4096)])


def _guarded_copy(tensor: torch.Tensor, margin: int) -> Guarded:
    made = guard(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, margin)
    bits_of(made.inner).copy_(bits_of(tensor))
    return made


def _margins_written(guarded: Guarded) -> torch.Tensor:
    bits, poison = bits_of(guarded.flat), POISON[guarded.flat.element_size()]
    sides = (bits[: guarded.margin], bits[len(bits) - guarded.margin :])
    return torch.stack([(part != poison).any() for side in sides for part in torch.split(side, 1 << 28)]).any()[None]
