"""Batches: the tensors a recipe materialises into, with the same bits on every device.

Random numbers come from a tape: tape[i] = hash(i), a counter-based 32-bit integer hash computed once per device in wrapping integer
arithmetic; a row reads V consecutive entries from a place given by (seed, archetype, sibling). Everything else is one correctly rounded
IEEE operation per element, which CPU and GPU agree on. One host-to-device copy carries every parameter of the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stabcheck.floats import by_name
from stabcheck.recipe import Layout, Mask, Recipe, Row

TAPE_BITS = 20  # places a row may start at
TAPE_TAIL = 1 << 18  # entries behind the last place: the widest row before the noise repeats
LADDER_STEPS, SCALE_STEPS = 32, 24
QUIET_NAN = {"fp32": 0x7FC00000, "bf16": 0x7FC0, "fp16": 0x7E00}
SCALED = ("constant", "palette", "bell", "ramp")  # backgrounds the fan `scale` doubles
SMALLEST_TEMPERATURE = 2.0**-149
TAIL = 16  # poisoned elements behind the last row of a padded layout


@dataclass(frozen=True)
class Batch:
    """logits [R, V] in the recipe's dtype and layout; inputs: name -> [R] fp32 or int64."""

    logits: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    known: Mapping[str, float] = field(default_factory=dict)  # smallest value of an input, where the host knows it

    def smallest(self, name: str) -> float:
        """Smallest value of an input (1 for an empty batch; NaN if one is NaN); asks the device only if the host does not know."""
        if name in self.known:
            return self.known[name]
        values = self.inputs[name]
        return float(values.min()) if values.numel() else 1.0

    @property
    def args(self) -> tuple[torch.Tensor, ...]:
        """What a kernel is called with."""
        return (self.logits, *self.inputs.values())

    def with_logits(self, logits: torch.Tensor) -> Batch:
        """The same inputs with other logits."""
        return replace(self, logits=logits)

    def pick(self, rows: torch.Tensor | slice) -> Batch:
        """The batch of the given rows."""
        return Batch(self.logits[rows], {k: v[rows] for k, v in self.inputs.items()}, {})

    def digest(self) -> str:
        """sha256 of the bits of logits and inputs, the same on every device."""
        sha = hashlib.sha256()
        for tensor in self.args:
            if tensor.numel():
                plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                sha.update(plain.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def materialise(recipe: Recipe, device: str | torch.device = "cpu") -> Batch:
    """Expand a recipe into tensors on `device`."""
    fmt, n = by_name(recipe.dtype), recipe.siblings
    logits = empty_layout((recipe.total_rows, recipe.vocab), fmt.torch, recipe.layout, device)
    plan = _plan(recipe)
    parts = _send(plan, device)
    for k, row in enumerate(recipe.rows):
        block = logits[k * n : (k + 1) * n]
        _fill(block, row, recipe, parts["starts"][k * n : (k + 1) * n], parts.get(f"values{k}"), parts.get(f"counts{k}"))
        if "scales" in parts and row.background.kind in SCALED:
            block.copy_((block.float() * parts["scales"][:, None]).clamp_(-fmt.max, fmt.max))
        _mask(block, row.mask)
    if "edit_rows" in parts:
        raw = bits_of(logits)
        raw.index_put_((parts["edit_rows"], parts["edit_columns"]), parts["edit_values"].to(raw.dtype))
    if "shifts" in parts:
        columns = (torch.arange(recipe.vocab, device=device) + parts["shifts"][:, None]) % recipe.vocab
        bits_of(logits).copy_(bits_of(logits).gather(1, columns))
    names = [name for name, _ in recipe.rows[0].inputs]
    inputs = {name: _narrow(parts[f"input:{name}"]) for name in names}
    known = {name: float(plan[f"input:{name}"].min()) for name in names if recipe.total_rows}
    return Batch(logits, inputs, known)


def _send(plan: dict[str, np.ndarray], device: str | torch.device) -> dict[str, torch.Tensor]:
    """Copy int64 and fp64 vectors to the device at once: fp64 travels as the int64 of the same bits."""
    flat = torch.from_numpy(np.concatenate([v.view(np.int64) for v in plan.values()])).to(device)
    pieces = torch.split(flat, [len(v) for v in plan.values()])
    return {k: p.view(torch.float64) if v.dtype == np.float64 else p for (k, v), p in zip(plan.items(), pieces, strict=True)}


def _narrow(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype == torch.float64 else values


def empty_layout(shape: tuple[int, int], dtype: torch.dtype, layout: Layout, device: Any) -> torch.Tensor:
    """A [rows, vocab] view in some layout; memory outside the view is NaN, so that whoever reads it is found out."""
    rows, vocab = shape
    if layout.contiguous or not rows:
        return torch.empty(rows, vocab, dtype=dtype, device=device)
    stride = vocab * layout.step + layout.pad
    flat = torch.full((layout.offset + rows * stride + TAIL,), torch.nan, dtype=dtype, device=device)
    return flat.as_strided((rows, vocab), (stride, layout.step), layout.offset)


def _plan(recipe: Recipe) -> dict[str, np.ndarray]:
    """Every number the device needs, as int64 and fp64 vectors; what the recipe does not use is left out."""
    n, vocab, rows = recipe.siblings, recipe.vocab, recipe.rows
    sibling = np.arange(n)
    seeds = _hash(np.arange(recipe.total_rows, dtype=np.uint32) + np.uint32((recipe.seed * 0x9E3779B9) & 0xFFFFFFFF))
    plan: dict[str, np.ndarray] = {"starts": (seeds & ((1 << TAPE_BITS) - 1)).astype(np.int64)}
    if recipe.fan == "rotate" and n > 1 and vocab > 1:
        plan["shifts"] = np.where(np.tile(sibling, len(rows)) > 0, _hash(seeds) % vocab, 0).astype(np.int64)
    if recipe.fan == "scale" and n > 1:
        plan["scales"] = 2.0 ** (sibling % SCALE_STEPS)
    if any(row.edits for row in rows):
        edits = [(k, {i % vocab: v for i, v in row.edits}) for k, row in enumerate(rows)]  # the last edit of a column wins
        plan["edit_rows"] = np.concatenate([np.repeat(k * n + sibling, len(e)) for k, e in edits])
        plan["edit_columns"] = np.concatenate([np.tile(np.array(list(e), np.int64), n) for _, e in edits])
        plan["edit_values"] = np.concatenate([np.tile(_to_bits(list(e.values()), recipe.dtype), n) for _, e in edits])
    for k, row in enumerate(rows):
        if row.background.kind == "palette":
            plan[f"values{k}"] = np.array(row.background.values, np.float64)
        elif row.background.kind == "literal":
            plan[f"values{k}"] = _to_bits(list(row.background.values), recipe.dtype)
            plan[f"counts{k}"] = np.array(row.background.counts, np.int64)
    for name, first in rows[0].inputs:
        values = np.repeat(np.array([row.input(name) for row in rows], np.float64 if isinstance(first, float) else np.int64), n)
        if name == "temperature" and recipe.fan == "ladder":
            ladder = values * np.tile(2.0 ** -(sibling % LADDER_STEPS), len(rows))
            least = np.maximum(ladder.astype(np.float32), np.float32(SMALLEST_TEMPERATURE)).astype(np.float64)
            values = np.where(values > 0, least, values)
        plan[f"input:{name}"] = values
    return plan


def _to_bits(values: list[float], dtype: str) -> np.ndarray:
    """The bit patterns of values in a format, as int64; one quiet NaN, since conversions disagree on its bits even on one CPU."""
    fmt = by_name(dtype)
    bits = bits_of(torch.tensor(values, dtype=torch.float64).to(fmt.torch)).to(torch.int64).numpy()
    return np.where(np.isnan(values), QUIET_NAN[dtype], bits)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: torch's copies of bf16 on a CPU rewrite the bits of NaN."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _fill(
    block: torch.Tensor, row: Row, recipe: Recipe, starts: torch.Tensor, values: torch.Tensor | None, counts: torch.Tensor | None
) -> None:
    """Write one archetype's background into its siblings' rows; finite values stay finite in the format."""
    vocab, kind, fmt = recipe.vocab, row.background.kind, by_name(recipe.dtype)
    if kind == "constant":
        block.fill_(fmt.round(row.background.values[0]))
    elif kind == "literal":
        assert values is not None and counts is not None
        raw = bits_of(block)
        raw.copy_(values.to(raw.dtype).repeat_interleave(counts, output_size=vocab))
    elif kind == "bits":
        block.copy_(_finite_bits(_noise(starts, vocab, "hash"), fmt.name))
    elif kind == "palette":
        assert values is not None
        block.copy_(values.float().clamp_(-fmt.max, fmt.max)[_noise(starts, vocab, "hash") & 3])
    else:
        origin, step = row.background.values
        x = _noise(starts, vocab, "bell") if kind == "bell" else torch.arange(vocab, device=block.device, dtype=torch.float32)
        if step != 1:
            x.mul_(step)
        if origin:
            x.add_(origin)
        reach = 4 if kind == "bell" else vocab
        block.copy_(x if abs(origin) + reach * abs(step) < fmt.max else x.clamp_(-fmt.max, fmt.max))


def _mask(block: torch.Tensor, mask: Mask) -> None:
    """Set the masked columns of all rows to -inf."""
    vocab = block.shape[1]
    a = mask.a % vocab if mask.kind in ("span", "all_but") else mask.a
    spans = {
        "none": [],
        "prefix": [slice(0, a)],
        "suffix": [slice(max(vocab - a, 0), None)],
        "span": [slice(a, a + mask.b)],
        "every": [slice(mask.b % max(a, 1), None, max(a, 1))],
        "all_but": [slice(0, a), slice(a + mask.b, None)],
        "all": [slice(None)],
    }
    for span in spans[mask.kind]:
        block[:, span] = -torch.inf


def _noise(starts: torch.Tensor, vocab: int, kind: str) -> torch.Tensor:
    """[n, V] noise: V consecutive entries of a tape from each start; wider rows repeat their noise."""
    tape = _tape(str(starts.device), kind)
    width = min(vocab, TAPE_TAIL)
    rows = tape.unfold(0, width, 1)[starts]
    return rows if width == vocab else rows.repeat(1, -(-vocab // width))[:, :vocab].contiguous()


@lru_cache(maxsize=16)
def _tape(device: str, kind: str) -> torch.Tensor:
    """The tape of hashes (int32), or of bell variates made of them (fp32, exact: 23 significant bits)."""
    counter = torch.arange((1 << TAPE_BITS) + TAPE_TAIL, dtype=torch.int32, device=device)
    h = _hash_tensor(counter)
    if kind == "hash":
        return h
    level = (h & 0xFF) + ((h >> 8) & 0xFF) + ((h >> 16) & 0xFF) + ((h >> 24) & 0xFF) - 510  # four bytes: -510..510, deviation 148
    fraction = _hash_tensor(h) & 0x1FFF  # 13 more bits, so that ties are rare
    return (level.double() + fraction.double() / 8192 - 0.5).div(128).float()


def _hash_tensor(x: torch.Tensor) -> torch.Tensor:
    """C. Wellons' lowbias32 on int32 with wrapping multiplication and logical shifts (github.com/skeeto/hash-prospector)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def _hash(x: np.ndarray) -> np.ndarray:
    """The same hash on uint32."""
    x = x.astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return np.asarray(x ^ (x >> 16))


def _finite_bits(h: torch.Tensor, dtype: str) -> torch.Tensor:
    """Hashes as bit patterns of the format; where the exponent is all ones its lowest bit is cleared."""
    fmt = by_name(dtype)
    field, low = {"fp32": (0x7F800000, 0x00800000), "bf16": (0x7F80, 0x0080), "fp16": (0x7C00, 0x0400)}[dtype]
    x = h if fmt.bits == 32 else h.to(torch.int16)
    return torch.where((x & field) == field, x ^ low, x).view(fmt.torch)
