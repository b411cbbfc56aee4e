"""Hypothesis strategies: which recipes are drawn.

Elements are never drawn: Hypothesis gives a test case 8 KiB of choices and about a millisecond, so a recipe is some forty choices, each
an index into a table ordered from simple to nasty. They are drawn as one byte string, which costs one draw instead of forty; shrinking
lowers its bytes, and so walks every table towards its start: V = 1, one row, constant 0, no mask, T = 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, TypeVar

from hypothesis import strategies as st

from stabcheck.floats import Format, by_name
from stabcheck.operations import operation as find_operation
from stabcheck.operations.base import Input
from stabcheck.recipe import FANS, Background, Layout, Mask, Recipe, Row
from stabcheck.registry import Kernel

T = TypeVar("T")

REAL_VOCABS = (32000, 32768, 50257, 128256, 129280, 151936, 152064, 201088, 256000, 262144)  # Llama, GPT-2, Qwen, DeepSeek, Gemma, …
EXP_CLIFFS = (87.3, 88.7, 104.0, 110.0)  # expf underflows to subnormals, overflows, underflows to zero; beyond
MAGNITUDES = (0.0, 1.0, 2.0, 10.0, *EXP_CLIFFS, 1e3, 1e4, 5e4, 65504.0, 1e8, 1e30, 3e38)
SIBLINGS = (1, 2, 0, 16, 128, 256, 512)
LAYOUTS = (Layout(),) * 6 + (Layout(1), Layout(0, 1, 1), Layout(64), Layout(3, 1, 5), Layout(0, 2, 0), Layout(5, 3, 7))
EDIT_COUNTS = (0, 1, 2, 0, 1, 3)
MAX_ARCHETYPES = 3
CHOICES = 256  # what one byte can pick
HEADER = 6  # choices: vocab, (siblings, archetypes), fan, layout, seed (two)
ROW = 3 + 2 * max(EDIT_COUNTS)  # choices: background, mask, number of edits, (column, value) each; the inputs follow


@dataclass(frozen=True)
class Space:
    """What may be drawn: sizes, formats and the edge values whose meaning the kernel's policies define."""

    operation: str
    dtype: str
    max_rows: int = 1024
    max_elements: int = 1 << 22
    max_vocab: int = 262144
    blocks: tuple[int, ...] = (1024,)
    strides: bool = True
    policies: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # values to draw; an option that is not here keeps its default


def space_for(
    kernel: Kernel, dtype: str, *, max_rows: int, max_elements: int, max_vocab: int, fixed_options: Collection[str] = ()
) -> Space:
    """The space of a kernel: what it supports, within the limits of the device, with some options kept at their defaults."""
    op = find_operation(kernel.operation)
    policies = op.default_policies() | dict(kernel.policies)
    pools = {o.name: tuple(kernel.options.get(o.name, o.values)) for o in op.options if o.name not in fixed_options}
    options = tuple((name, weighted(values)) for name, values in pools.items() if values != (op.option(name).default,))
    vocab = min(max_vocab, kernel.max_vocab or max_vocab)
    return Space(
        kernel.operation, dtype, max_rows, max_elements, vocab, tuple(kernel.blocks), kernel.strides, tuple(policies.items()), options
    )


def recipes(
    operation: str, dtype: str = "fp32", *, max_vocab: int = 4097, max_rows: int = 256, max_elements: int = 1 << 20
) -> st.SearchStrategy[Recipe]:
    """Strategy for adversarial recipes of an operation, for use with @given in any test.

    Raises UsageError for an unknown operation or dtype.
    """
    by_name(dtype)
    options = tuple((o.name, weighted(o.values)) for o in find_operation(operation).options if len(o.values) > 1)
    return drawn(Space(operation, dtype, max_rows=max_rows, max_elements=max_elements, max_vocab=max_vocab, options=options))


@lru_cache(maxsize=256)
def drawn(space: Space) -> st.SearchStrategy[Recipe]:
    """Strategy for the recipes of a space."""
    tables = _Tables(space)
    size = HEADER + len(space.options) + MAX_ARCHETYPES * (ROW + len(tables.inputs))
    return st.binary(min_size=size, max_size=size).map(tables.recipe)


class _Tables:
    """The tables of one space, and how a string of choices picks from them: one byte an index, the first entry for 0."""

    def __init__(self, space: Space) -> None:
        self.space = space
        fmt, policies = by_name(space.dtype), dict(space.policies)
        op = find_operation(space.operation)
        self.inputs, self.defaults = op.inputs, {option.name: option.default for option in op.options}
        self.pools = {spec.name: spec.drawn(policies) for spec in self.inputs}
        self.fans = FANS if any(spec.ladder for spec in self.inputs) else tuple(fan for fan in FANS if fan != "ladder")
        self.vocabs = vocab_sizes(space)
        self.sizes = {v: _fitting(space, v) for v in self.vocabs}
        self.layouts = LAYOUTS if space.strides else LAYOUTS[:1]
        self.backgrounds = backgrounds(fmt)
        self.edits = (*values(fmt), float("-inf"), float("nan"), float("inf"))

    def recipe(self, choices: bytes) -> Recipe:
        """Decode a string of choices."""
        options = self.space.options
        header, constants, rows = choices[:HEADER], choices[HEADER:], choices[HEADER + len(options) :]
        vocab = _pick(self.vocabs, header[0])
        siblings, archetypes = _pick(self.sizes[vocab], header[1])
        step = ROW + len(self.inputs)
        return Recipe(
            operation=self.space.operation,
            dtype=self.space.dtype,
            vocab=vocab,
            rows=tuple(self.row(rows[k * step : (k + 1) * step], vocab) for k in range(archetypes)),
            siblings=siblings,
            fan=_pick(self.fans, header[2]) if siblings > 1 else FANS[0],
            seed=header[4] * 256 + header[5],
            layout=_pick(self.layouts, header[3]),
            options=tuple((n, v) for (n, pool), c in zip(options, constants, strict=False) if (v := _pick(pool, c)) != self.defaults[n]),
        )

    def row(self, choices: bytes, vocab: int) -> Row:
        """Decode one archetype."""
        columns = edges(vocab, self.space.blocks)
        pairs = [(choices[3 + 2 * k], choices[4 + 2 * k]) for k in range(_pick(EDIT_COUNTS, choices[2]))]
        return Row(
            background=_pick(self.backgrounds, choices[0]),
            mask=_pick(masks(vocab, self.space.blocks), choices[1]),
            edits=tuple((_pick(columns, c), _pick(self.edits, v)) for c, v in pairs),
            inputs=tuple((spec.name, _pick(self.values(spec, columns), c)) for spec, c in zip(self.inputs, choices[ROW:], strict=True)),
        )

    def values(self, spec: Input, columns: tuple[int, ...]) -> tuple[float | int, ...]:
        """What an input is drawn from; a column also from the columns where kernels go wrong."""
        pool = self.pools[spec.name]
        return (pool[0], *columns, *pool[1:]) if spec.column else pool


def weighted(values: tuple[T, ...]) -> tuple[T, ...]:
    """The first, usually the default, a little more often than all the others together: most faults need few options at once."""
    return (values[0],) * (len(values) - 1) + values


def _pick(table: Sequence[T], choice: int) -> T:
    return table[choice % len(table)]


@lru_cache(maxsize=4096)
def masks(vocab: int, blocks: tuple[int, ...]) -> tuple[Mask, ...]:
    """Every shape of -inf mask, at one, at the blocks, at half the vocabulary and all but one column; none is as likely as the rest."""
    counts = _distinct(n for n in (1, *blocks, blocks[0] + 1, vocab // 2, vocab - 1) if 0 < n <= vocab)
    shapes = [Mask(kind, n) for kind, n in product(("prefix", "suffix"), counts)]
    shapes += [Mask("span", blocks[0], blocks[0]), Mask("span", 1, max(vocab // 3, 1))]
    shapes += [Mask("every", k, phase) for k, phase in ((2, 0), (2, 1), (7, 3), (blocks[0], 0))]
    shapes += [Mask("all_but", at, width) for at, width in ((0, 1), (vocab - 1, 1), (vocab // 2, 2), (blocks[0] % vocab, 1))]
    return (Mask(),) * len(shapes) + tuple(_distinct(shapes)) + (Mask("all"),) * 2


@lru_cache(maxsize=4096)
def edges(vocab: int, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Columns where kernels go wrong: first, last, and on both sides of a block's edge."""
    columns = (0, vocab - 1, 1, vocab // 2, *(b + d for b in blocks for d in (-1, 0, 1)), (vocab - 1) // blocks[0] * blocks[0])
    return tuple(_distinct(c for c in columns if 0 <= c < vocab))


@lru_cache(maxsize=8)
def values(fmt: Format) -> tuple[float, ...]:
    """Finite values of the format, simple to nasty: small, exp's cliffs, huge, neighbours of 1, subnormals, both zeros."""
    table = [s * v for v in MAGNITUDES for s in (1, -1)]
    table += [
        fmt.neighbour(1.0),
        fmt.neighbour(1.0, -1),
        fmt.tiny,
        fmt.subnormal,
        -fmt.subnormal,
        fmt.neighbour(fmt.tiny, -1),
        fmt.max,
        -fmt.max,
    ]
    return (*_distinct(fmt.round(v) for v in table), -0.0)


@lru_cache(maxsize=8)
def backgrounds(fmt: Format) -> tuple[Background, ...]:
    """Constants, bells, ramps, palettes of ties and one-ulp neighbours, and random bit patterns."""
    table = [Background("constant", (v,)) for v in values(fmt)]
    scales = (1.0, 5.0, 0.1, 30.0, 1e3, 1e-3, 1e4, 1e30)
    table += [Background("bell", (centre, s)) for centre, s in product((0.0, 100.0, -1e4, 1e4), scales)]
    table += [Background("ramp", ends) for ends in ((0.0, 1.0), (0.0, -1.0), (-100.0, 0.01), (0.0, 1e-3), (1e4, -0.125), (-3e38, 1e33))]
    for v in map(fmt.round, (1.0, -1.0, 88.7, -110.0, 1e4, -5e4, 65504.0, 3e38, fmt.tiny)):
        near = [fmt.neighbour(v, k) for k in range(3)]
        table.append(Background("palette", (v, v, near[1], near[2])))
        table.append(Background("palette", (0.0, v, 0.0, v)))
        table.append(Background("palette", (v, -v, near[1], 0.0)))
    table += [Background("bits", ())] * 6
    return tuple(_distinct(table)) + (Background("bits", ()),) * 5


def vocab_sizes(space: Space) -> tuple[int, ...]:
    """Small first, then powers of two and the block sizes' multiples with their neighbours, then real vocabularies."""
    small = (1, 2, 3, 4, 5, 7, 8, 11)
    powers = [(1 << k) + d for k in range(4, 17) for d in (-1, 0, 1)]
    multiples = [b * k + d for b in space.blocks for k in (1, 2, 3, 5) for d in (-1, 0, 1)]
    sizes = _distinct([*small, *sorted({*powers, *multiples, 100, 1000, *REAL_VOCABS})])
    fitting = tuple(v for v in sizes if 0 < v <= min(space.max_vocab, space.max_elements))
    return fitting if len(fitting) <= CHOICES else fitting[: CHOICES // 2] + fitting[-CHOICES // 2 :]


def _fitting(space: Space, vocab: int) -> tuple[tuple[int, int], ...]:
    """(siblings, archetypes) whose batch stays within the space, few rows first."""
    rows = min(space.max_rows, max(space.max_elements // vocab, 1))
    return tuple((s, a) for s in SIBLINGS for a in range(1, MAX_ARCHETYPES + 1) if s * a <= rows)


def _distinct(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
