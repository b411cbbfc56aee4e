"""What a benchmark is: its points, its inputs, our kernel and its peers; and what those of many operations are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stabcheck.floats import by_name

Inputs = tuple[torch.Tensor, ...]
Run = Callable[..., Any]
VOCABS = (32000, 128256, 151936)


@dataclass(frozen=True)
class Point:
    """One line of the table."""

    dtype: str
    vocab: int
    rows: int


@dataclass(frozen=True)
class Benchmark:
    """What is timed for one operation.

    inputs: the operation's inputs at a point, on the GPU; the logits first.
    moves, moved: what a call must read and write at least, in words and in bytes.
    ours, variants: called with the inputs; a variant is another way of ours, and no peer.
    peers: name -> loader, called afresh at each point; returns the function to time, or raises ImportError where it is not installed.
    overwrites: whether some of them write over the logits, which are then restored before each call, outside the time.
    published: times in µs that others' kernels were measured at elsewhere, by point; `published_where` says by whom and on what.
    """

    name: str
    points: tuple[Point, ...]
    inputs: Callable[[Point], Inputs]
    moves: str
    moved: Callable[[Inputs], int]
    ours: Run
    peers: dict[str, Callable[[], Run]]
    variants: dict[str, Run] = field(default_factory=dict)
    overwrites: bool = False
    published: dict[Point, dict[str, float]] = field(default_factory=dict)
    published_where: str = ""


def points(dtypes: tuple[str, ...], vocabs: tuple[int, ...], rows: tuple[int, ...]) -> tuple[Point, ...]:
    return tuple(Point(d, v, r) for d in dtypes for v in vocabs for r in rows)


def logits_of(point: Point) -> torch.Tensor:
    return torch.randn(point.rows, point.vocab, device="cuda").mul_(5).to(by_name(point.dtype).torch)


def temperature_of(point: Point) -> torch.Tensor:
    return torch.rand(point.rows, device="cuda") + 0.5


def columns(point: Point) -> torch.Tensor:
    return torch.randint(0, point.vocab, (point.rows,), device="cuda")


def compiled(function: Run) -> Callable[[], Run]:
    def load() -> Run:
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    return load
