"""Guards: canaries and poison around every buffer a kernel touches, so that stray reads and writes show.

Inputs are copied between poisoned margins. While the kernel's launcher runs, a torch dispatch mode replaces each buffer it allocates by one
that is poisoned and has the same margins. Poison is a NaN with a payload of its own: no arithmetic produces its bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stabcheck.batches import Batch, bits_of
from stabcheck.errors import UnsupportedInput
from stabcheck.laws import Case

MARGIN = 64  # elements on each side
INT32_REACH = 1 << 31  # how far below its base an offset lands that wraps at 32 bits, in elements
POISON = {1: 0x5A, 2: 0x7FE5, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}  # by element size; a NaN in each float format but one byte
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
    """A guarded run: the output, and maps of what went wrong: [buffers, margins], [R, V], [1, all inputs]."""

    output: torch.Tensor
    overruns: torch.Tensor
    unwritten: torch.Tensor
    changed: torch.Tensor


def guard(shape: Any, stride: Any, dtype: torch.dtype, device: Any, margin: int = MARGIN) -> Guarded:
    """A poisoned tensor of the given shape and strides between two margins."""
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else 0
    flat = torch.empty(extent + 2 * margin, dtype=dtype, device=device)
    bits_of(flat).fill_(POISON[flat.element_size()])
    return Guarded(flat.as_strided(shape, stride, margin), flat, margin)


class GuardAllocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every uninitialised or zeroed tensor allocated inside it poison and margins; `made` lists them."""

    def __init__(self, margin: int = MARGIN) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.margin = margin
        self.made: list[Guarded] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        if name not in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros", "zeros_like", "new_zeros"):
            return made
        if not made.numel() or made.element_size() not in POISON:
            return made
        guarded = guard(made.shape, made.stride(), made.dtype, made.device, self.margin)
        if "zeros" in name:
            guarded.inner.zero_()
        self.made.append(guarded)
        return guarded.inner


def run_guarded(case: Case) -> Watched:
    """Run the kernel with every buffer guarded and compare the bits around and inside them before and after."""
    inputs = [_guarded_copy(t) for t in case.batch.args]
    names = list(case.batch.inputs)
    batch = Batch(inputs[0].inner, {n: g.inner for n, g in zip(names, inputs[1:], strict=True)}, case.batch.known)
    allocations = GuardAllocations()
    _ = case.expected
    with allocations:
        output = case.run(batch)
    buffers = [*inputs, *allocations.made]
    return Watched(
        output=output,
        overruns=torch.stack([b.overrun() for b in buffers]),
        unwritten=bits_of(output) == POISON[output.element_size()],
        changed=torch.cat([(bits_of(g.inner) != bits_of(t)).flatten() for g, t in zip(inputs, case.batch.args, strict=True)])[None],
    )


def run_beyond_int32(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run on more than 2^31 elements, every row the case's first one.

    Returns (results of rows 0, middle and last [3, V]; [rows, 1] bool: rows that differ from row 0; [buffers, 1] bool: margins written).
    Raises UnsupportedInput where the device has too little memory.
    """
    source = case.batch.pick(slice(0, 1))
    vocab = source.logits.shape[1]
    rows = INT32_REACH // vocab + WITNESSES
    needed = (rows * vocab + INT32_REACH * 2) * (source.logits.element_size() + case.contract.output.bits // 8) * 1.1
    if needed > torch.cuda.mem_get_info()[0]:
        raise UnsupportedInput(f"64-bit offsets need {needed / 2**30:.0f} GiB of free device memory; run them on a larger GPU")
    logits = guard((rows, vocab), (vocab, 1), source.logits.dtype, source.logits.device, INT32_REACH)
    logits.inner.copy_(source.logits.expand(rows, vocab))
    batch = Batch(logits.inner, {k: v.expand(rows).contiguous() for k, v in source.inputs.items()})
    with GuardAllocations(INT32_REACH) as allocations:
        output = case.run(batch)
    first = output[:1]
    differs = torch.cat([(bits_of(part) != bits_of(first)).any(-1, keepdim=True) for part in torch.split(output, 4096)])
    stray = torch.stack([_margins_written(b) for b in (logits, *allocations.made)])
    return output[[0, rows // 2, rows - 1]], differs, stray


def _guarded_copy(tensor: torch.Tensor) -> Guarded:
    made = guard(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    bits_of(made.inner).copy_(bits_of(tensor))
    return made


def _margins_written(guarded: Guarded) -> torch.Tensor:
    bits, poison = bits_of(guarded.flat), POISON[guarded.flat.element_size()]
    sides = (bits[: guarded.margin], bits[len(bits) - guarded.margin :])
    return torch.stack([(part != poison).any() for side in sides for part in torch.split(side, 1 << 28)]).any()[None]
