"""What an operation is: named inputs, options and outputs, an fp64 reference with its error bound, and edge policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract

LARGEST, SMALLEST, IGNORED = -1, -2, -100  # codes of a column in a recipe: the row's first maximum, first minimum, the ignored index
CODES = {LARGEST: "at the maximum", SMALLEST: "at the minimum", IGNORED: "ignored"}

Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Input:
    """A per-row scalar input.

    values: what is drawn, simple to nasty; the first is the default. Floats travel as fp32, integers as int64.
    column: it names a column: the columns where kernels go wrong are drawn as well, and it moves where its column moves.
    ladder: the fan `ladder` halves it from sibling to sibling.
    counts: siblings count up from it, one by one.
    among: it is a number of columns: a finding is shrunk with fewer columns and less of it at once.
    under:  further values where a policy has an answer: (policy, answer, values).
    symbol: what findings call it, if that is not its name.
    """

    name: str
    values: tuple[float | int, ...]
    column: bool = False
    ladder: bool = False
    counts: bool = False
    among: bool = False
    under: tuple[str, str, tuple[float | int, ...]] | None = None
    symbol: str = ""

    @property
    def default(self) -> float | int:
        return self.values[0]

    def drawn(self, policies: Mapping[str, str]) -> tuple[float | int, ...]:
        """The values to draw under some policies."""
        if self.under and policies.get(self.under[0]) == self.under[1]:
            return self.values + self.under[2]
        return self.values


@dataclass(frozen=True)
class Option:
    """A constant of the call, passed by keyword where it differs from the default, which is the first of its values.

    values are those drawn; `choices`, where there are any, are all there may be.
    """

    name: str
    values: tuple[Any, ...]
    choices: tuple[Any, ...] = ()

    @property
    def default(self) -> Any:
        return self.values[0]


@dataclass(frozen=True)
class Output:
    """One output: per element [R, V], or per row [R] ([] under a reduction).

    dtype: "declared": what the kernel declares; "input": the logits'; "index": int64 or int32.
    low, high: its range, where it has one; `high` may depend on V. A limit of 0 is exact, since no rounding changes a sign.
    """

    name: str
    per: str = "element"
    dtype: str = "declared"
    low: float | None = None
    high: Callable[[int], float] | None = None

    def shape(self, batch: Batch) -> tuple[int, ...]:
        """What shape it has for a batch."""
        rows, vocab = batch.logits.shape
        if self.per == "element":
            return (rows, vocab)
        return () if batch.options.get("reduction", "none") != "none" else (rows,)


@dataclass(frozen=True)
class Expected:
    """One output's exact value and how far a correct kernel may be from it, elementwise, fp64.

    value: what is computed; NaN where the policy says NaN.
    bound: largest error allowed; 0 where the value is exact, inf where any value but NaN will do.
    free:  elements the policy leaves undefined; nothing is compared there.
    order: on demand, how far an element may stand below one of a smaller logit: what its row shares cancels.
    apart: elements where rounding decides, and two correct kernels may take different sides; each must still be right by itself.
    given: what is expected of a kernel that has taken these sides: from all its results.
    """

    value: torch.Tensor
    bound: torch.Tensor
    free: torch.Tensor | None = None
    order: Callable[[], torch.Tensor] | None = None
    apart: torch.Tensor | None = None
    given: Callable[[Results], Expected] | None = None

    def settled(self, results: Results) -> Expected:
        """What is expected of a kernel that returned `results`."""
        return self.given(results) if self.given else self

    @property
    def incomparable(self) -> torch.Tensor | None:
        """Elements in which results of two calls say nothing about each other: free or decided by rounding."""
        if self.free is None or self.apart is None:
            return self.apart if self.free is None else self.free
        return self.free | self.apart


def call(function: Callable[..., Any], logits: torch.Tensor, *inputs: torch.Tensor, **options: Any) -> Any:
    """The plain call: logits and inputs by position, options by keyword; it returns the output, or a tuple of them."""
    return function(logits, *inputs, **options)


@dataclass(frozen=True)
class Operation:
    """An operation over logits [R, V].

    reference:    (batch, contract) -> the Expected of each output, by name.
    policies:     name -> the answers allowed, the default first.
    traits:       what laws may assume, and which options must keep their defaults for it.
    error_models: what a kernel may declare, the contract first and each looser than the one before; with advice to who breaks the first.
    output:       dtype of its declared outputs unless the kernel says otherwise: "input" or "fp32".
    interpreted:  most rows of a batch through the interpreter, where programs run one after another: fewer for kernels of many steps.
    call:         how a kernel is called; its source stands in standalone scripts, so it uses torch only.
    signature:    what a kernel takes and returns, where `call` makes something else of the operation's inputs and outputs.
    """

    name: str
    summary: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    policies: Mapping[str, tuple[str, ...]]
    reference: Callable[[Batch, Contract], dict[str, Expected]]
    traits: Mapping[str, tuple[str, ...]]
    options: tuple[Option, ...] = ()
    error_models: Mapping[str, str] = field(default_factory=lambda: {"shift_first": ""})
    output: str = "input"
    interpreted: int = 24
    call: Callable[..., Any] = call
    signature: str = ""

    def default_policies(self) -> dict[str, str]:
        """Each policy's default."""
        return {name: answers[0] for name, answers in self.policies.items()}

    def option(self, name: str) -> Option:
        """The option of that name."""
        return next(option for option in self.options if option.name == name)

    def plain(self, options: Mapping[str, Any], names: Iterable[str]) -> bool:
        """Whether these options have their defaults."""
        return all(options.get(name, self.option(name).default) == self.option(name).default for name in names)

    @property
    def column_input(self) -> str:
        """The name of the input that names a column, or ""."""
        return next((spec.name for spec in self.inputs if spec.column), "")

    def take_columns(self, batch: Batch, kept: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        """(the batch of the columns `kept`, in that order; [R] bool: rows whose meaning changed with it).

        A column input follows its column. Where that is gone, or has come to stand at the ignored index, the row means something else.
        """
        vocab, rows = batch.logits.shape[1], batch.logits.shape[0]
        moved, lost = batch.with_logits(batch.logits[:, kept]), torch.zeros(rows, dtype=torch.bool, device=kept.device)
        if not self.column_input:
            return moved, lost
        place = torch.full((vocab,), -1, dtype=torch.int64, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        old, ignored = batch.inputs[self.column_input], batch.options.get("ignore_index", IGNORED)
        stays = (old == ignored) | (old < 0) | (old >= vocab)
        new = place[old.clamp(0, vocab - 1)]
        lost = ~stays & ((new < 0) | (new == ignored))
        return moved.with_inputs(**{self.column_input: torch.where(stays, old, new.clamp(min=0))}), lost


def of_rows(results: Results, rows: Any) -> Results:
    """The outputs of some rows."""
    return {name: values[rows] for name, values in results.items()}


def of_columns(results: Results, kept: torch.Tensor) -> Results:
    """The outputs of some columns; what there is one of per row stays."""
    return {name: values[:, kept] if values.ndim == 2 else values for name, values in results.items()}
