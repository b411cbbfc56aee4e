"""Expansion: from a recipe to the tensors it means, with the same bits on every device.

Random numbers are hashes of counters (`stabcheck.noise`); everything else is one correctly rounded IEEE operation per element, which CPU
and GPU agree on. One host-to-device copy carries every parameter of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stabcheck.batches import Batch, bits_of, empty_layout
from stabcheck.floats import by_name
from stabcheck.noise import TAPE_BITS, finite_bits, hashed, noise
from stabcheck.operations import operation
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST, Input
from stabcheck.recipe import Mask, Recipe, Row

LADDER_STEPS, SCALE_STEPS = 32, 24
QUIET_NAN = {"fp32": 0x7FC00000, "bf16": 0x7FC0, "fp16": 0x7E00}
SCALED = ("constant", "palette", "bell", "ramp")  # backgrounds the fan `scale` doubles
LEAST = 2.0**-149  # where a ladder ends: the smallest positive fp32


def materialise(recipe: Recipe, device: str | torch.device = "cpu") -> Batch:
    """Expand a recipe into tensors on `device`."""
    fmt, n, specs = by_name(recipe.dtype), recipe.siblings, operation(recipe.operation).inputs
    logits = empty_layout((recipe.total_rows, recipe.vocab), fmt.torch, recipe.layout, device)
    plan = _plan(recipe, specs)
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
    inputs = {spec.name: _resolved(spec, parts[f"input:{spec.name}"], recipe, logits) for spec in specs}
    known = {spec.name: float(plan[f"input:{spec.name}"].min()) for spec in specs if recipe.total_rows and not spec.column}
    return Batch(logits, inputs, known, dict(recipe.options))


def _resolved(spec: Input, values: torch.Tensor, recipe: Recipe, logits: torch.Tensor) -> torch.Tensor:
    """An input as the kernel gets it: fp64 narrowed to fp32; the codes of columns replaced by what they mean in each row."""
    if not spec.column:
        return values.float() if values.dtype == torch.float64 else values
    codes = {row.input(spec.name, spec.default) for row in recipe.rows}
    if LARGEST in codes:
        values = torch.where(values == LARGEST, logits.argmax(-1), values)
    if SMALLEST in codes:
        values = torch.where(values == SMALLEST, logits.argmin(-1), values)
    return values


def _send(plan: dict[str, np.ndarray], device: str | torch.device) -> dict[str, torch.Tensor]:
    """Copy int64 and fp64 vectors to the device at once: fp64 travels as the int64 of the same bits."""
    flat = torch.from_numpy(np.concatenate([v.view(np.int64) for v in plan.values()])).to(device)
    pieces = torch.split(flat, [len(v) for v in plan.values()])
    return {k: p.view(torch.float64) if v.dtype == np.float64 else p for (k, v), p in zip(plan.items(), pieces, strict=True)}


def _plan(recipe: Recipe, specs: Sequence[Input]) -> dict[str, np.ndarray]:
    """Every number the device needs, as int64 and fp64 vectors; what the recipe does not use is left out."""
    n, vocab, rows = recipe.siblings, recipe.vocab, recipe.rows
    sibling = np.arange(n)
    seeds = hashed(np.arange(recipe.total_rows, dtype=np.uint32) + np.uint32((recipe.seed * 0x9E3779B9) & 0xFFFFFFFF))
    plan: dict[str, np.ndarray] = {"starts": (seeds & ((1 << TAPE_BITS) - 1)).astype(np.int64)}
    if recipe.fan == "rotate" and n > 1 and vocab > 1:
        plan["shifts"] = np.where(np.tile(sibling, len(rows)) > 0, hashed(seeds) % vocab, 0).astype(np.int64)
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
    for spec in specs:
        plan[f"input:{spec.name}"] = _input(spec, recipe, plan.get("shifts", np.zeros(recipe.total_rows, np.int64)))
    return plan


def _input(spec: Input, recipe: Recipe, shifts: np.ndarray) -> np.ndarray:
    """[R] values of an input. A column index is taken modulo V and moves with the columns; codes stay codes, but for the ignored index."""
    drawn = [row.input(spec.name, spec.default) for row in recipe.rows]
    values = np.repeat(np.array(drawn, np.float64 if isinstance(spec.default, float) else np.int64), recipe.siblings)
    if spec.column:
        values = np.where(values >= 0, (values - shifts) % recipe.vocab, values)
        return np.where(values == IGNORED, int(dict(recipe.options).get("ignore_index", IGNORED)), values)
    if spec.counts:
        return values + np.tile(np.arange(recipe.siblings), len(recipe.rows))
    if spec.ladder and recipe.fan == "ladder":
        steps = np.arange(recipe.siblings) % LADDER_STEPS
        lowered = (values * np.tile(2.0**-steps, len(recipe.rows))).astype(np.float32)
        values = np.where(values > 0, np.maximum(lowered, np.float32(LEAST)).astype(np.float64), values)
    return values


def _to_bits(values: list[float], dtype: str) -> np.ndarray:
    """The bit patterns of values in a format, as int64; one quiet NaN, since conversions disagree on its bits even on one CPU."""
    fmt = by_name(dtype)
    bits = bits_of(torch.tensor(values, dtype=torch.float64).to(fmt.torch)).to(torch.int64).numpy()
    return np.where(np.isnan(values), QUIET_NAN[dtype], bits)


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
        block.copy_(finite_bits(noise(starts, vocab, "hash"), fmt.name))
    elif kind == "palette":
        assert values is not None
        block.copy_(values.float().clamp_(-fmt.max, fmt.max)[noise(starts, vocab, "hash") & 3])
    else:
        origin, step = row.background.values
        x = noise(starts, vocab, "bell") if kind == "bell" else torch.arange(vocab, device=block.device, dtype=torch.float32)
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
