"""Variations: the transformed batches that metamorphic laws compare with the original one."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import lru_cache, reduce
from typing import Any

import torch

from stabcheck.batches import Batch, empty_layout
from stabcheck.cases import Case, KernelFault
from stabcheck.floats import by_name
from stabcheck.operations.base import Expected, Results, of_columns
from stabcheck.recipe import Layout

SHIFT_EXPONENTS = 28  # common offsets of ±2^0 … ±2^27, past 1e8


def random_order(case: Case, n: int) -> torch.Tensor:
    """A permutation of 0..n-1 that depends on the recipe's seed only."""
    generator = torch.Generator().manual_seed(case.recipe.seed)
    return torch.randperm(n, generator=generator).to(case.device.name)


def exact_shift(case: Case) -> tuple[Batch, Batch, torch.Tensor]:
    """(shifted, base, exact [R, 1]): shifted = fl(x + c), base = shifted − c, and whether shifted = base + c holds exactly in the row.

    c = ±2^k differs from sibling to sibling and stays below half the format's range. Rounding happens once, in making `shifted`, so most
    rows are exact whatever x was; rows that overflow, or hold NaN or +inf, are not.
    """
    x, c = case.batch.logits, shifts(case)
    shifted = (x.double() + c).to(x.dtype)
    base = (shifted.double() - c).to(x.dtype)
    exact = (base.double() + c == shifted.double()) & (shifted.isfinite() & base.isfinite() | (x == -torch.inf))
    exact = exact.all(-1, keepdim=True)
    return case.batch.with_logits(shifted), case.batch.with_logits(base), exact


def shifts(case: Case) -> torch.Tensor:
    """[R, 1] the common offset of each row."""
    x = case.batch.logits
    exponents = min(SHIFT_EXPONENTS, by_name(case.recipe.dtype).emax)
    rows = torch.arange(x.shape[0], device=x.device) * (case.recipe.siblings > 1) + case.recipe.seed
    return (torch.exp2((rows % exponents).double()) * (1 - 2 * (rows // exponents % 2)))[:, None]


def running_maximum(x: torch.Tensor, got: torch.Tensor, slack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each element of each row: the largest result among elements with a logit at most its own, and the slack of comparing with it."""
    order = x.argsort(dim=-1, stable=True)
    largest = got.gather(-1, order).cummax(-1).values
    both = slack.gather(-1, order)
    both = both + both.cummax(-1).values
    equal = x.gather(-1, order)
    last_of_ties = torch.searchsorted(equal.contiguous(), equal.contiguous(), right=True).sub_(1).clamp_(min=0)
    largest, both = largest.gather(-1, last_of_ties), both.gather(-1, last_of_ties)
    return torch.empty_like(largest).scatter_(-1, order, largest), torch.empty_like(both).scatter_(-1, order, both)


def moves(shifted: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """How far an exact result moved, 0 where one of the two is not finite: such results must agree by themselves."""
    return torch.where(shifted.isfinite() & base.isfinite(), shifted - base, 0.0)


def per_output(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[R, 1] made to fit an output of [R, V] or [R]."""
    return rows.expand_as(like) if like.ndim == 2 else rows[:, 0]


def with_columns_masked(case: Case) -> tuple[Batch, torch.Tensor]:
    """(the batch with some columns set to -inf in every row, the indices of the columns kept): a random half, a suffix or a single one."""
    vocab = case.recipe.vocab
    order = random_order(case, vocab)
    style = case.recipe.seed % 3
    kept = (order[: (vocab + 1) // 2], torch.arange(vocab // 2, vocab, device=order.device), order[:1])[style].sort().values
    logits = torch.full_like(case.batch.logits, -torch.inf)
    logits[:, kept] = case.batch.logits[:, kept]
    return case.batch.with_logits(logits), kept


def both_bounds(
    one: dict[str, Expected], other: dict[str, Expected], kept: torch.Tensor, lost: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(bounds, free elements) for comparing results of the columns `kept` of one batch with those of another made of these columns.

    Free: rows whose meaning changed (`lost`), what rounding decides, and exact results that depend on positions, as the greedy choice among
    ties does: there the two references disagree by themselves.
    """
    bounds, free = {}, {}
    for name, e in other.items():
        exact = of_columns({"value": one[name].value, "bound": one[name].bound}, kept)
        bounds[name] = exact["bound"] + e.bound
        moved = (e.value - exact["value"]).abs() > bounds[name]
        undecided = one[name].incomparable
        undecided = None if undecided is None else of_columns({name: undecided}, kept)[name]
        free[name] = either(moved | per_output(lost[:, None], e.value), e.incomparable, undecided)
    return bounds, free


def either(place: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    """Where any of some maps is true; None is true nowhere."""
    return reduce(torch.logical_or, [other for other in others if other is not None], place)


def scaled_input(case: Case, name: str, factor: float) -> Batch:
    """The batch with one input multiplied."""
    return case.batch.with_inputs(**{name: case.batch.inputs[name] * factor})


STEP = 1e-4  # of the difference quotient
FAR = 1e6  # logits beyond it lose too much of a step to the rounding of fp64


def difference_quotient(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(columns [R, k], upstream·(loss(x + h e_j) − loss(x − h e_j))/2h of the fp64 loss, how far off it may be, where it says nothing).

    Third derivatives of the loss: of log Σ exp at most 0.1, of its square at most 1.5 + 0.2·|lse|; through y = c·tanh(x/c), whose own are
    at most 0.77/c and 2/c², no more than 3 (1 + ζ(6 + 4|lse|)) in all, and 1/c² times that for c < 1. Each loss is rounded at 2^-50 of
    it, or of c, and x ± h at 2^-52 |x|.
    """
    batch, loss = case.batch, case.expected["loss"].value.abs()[:, None]
    x, vocab = batch.logits.double(), case.recipe.vocab
    some = torch.tensor([0, vocab - 1, *random_order(case, vocab)[[0, -1]].tolist()], device=x.device).expand(len(x), 4)
    own = torch.stack([batch.inputs["target"].clamp(0, vocab - 1), x.nan_to_num().argmax(-1)], 1)
    columns = torch.cat([own, some], 1)
    quotients = []
    for at in columns.unbind(1):
        ends = []
        for h in (STEP, -STEP):
            moved = x.scatter_add(1, at[:, None], torch.full_like(x[:, :1], h))
            ends.append(
                (moved.gather(1, at[:, None])[:, 0], case.operation.reference(batch.with_logits(moved), case.contract)["loss"].value)
            )
        quotients.append((ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0]))
    quotient = torch.stack(quotients, 1)
    zeta, cap = float(batch.options.get("lse_square_scale", 0.0)), float(batch.options.get("softcap", 0.0))
    curvature = 3 * (1 + zeta * (6 + 4 * torch.logsumexp(x, -1, keepdim=True).abs())) * (max(1.0, cap**-2) if cap else 1.0)
    moving = x.gather(1, columns).abs().nan_to_num(0.0, 0.0, 0.0)
    slack = curvature * STEP**2 / 6 + 2.0**-50 * (loss + cap) / STEP + 2.0**-50 * moving
    upstream = batch.inputs["upstream"].double()[:, None]
    free = ~((x.abs() <= FAR) | (x == -torch.inf)).all(-1, keepdim=True) | ~quotient.isfinite()
    return columns, upstream * quotient, upstream.abs() * slack, free


def with_other_rows_nan(case: Case, parity: int) -> Batch:
    """The batch, in its own layout, with every row of the other parity NaN and given another row's scalars."""
    batch = relaid(case, case.recipe.layout)
    batch.logits[1 - parity :: 2] = torch.nan
    inputs = {name: values.clone() for name, values in batch.inputs.items()}
    for values in inputs.values():
        values[1 - parity :: 2] = values.flip(0)[1 - parity :: 2]
    return replace(batch, inputs=inputs, known={})


def relaid(case: Case, layout: Layout) -> Batch:
    """The batch with its logits in another layout; the memory between and around the rows is NaN."""
    source = case.batch.logits
    view = empty_layout((source.shape[0], source.shape[1]), source.dtype, layout, source.device)
    return case.batch.with_logits(view.copy_(source))


def with_inputs_strided(case: Case) -> Batch:
    """The batch with its inputs as views of stride 2; the values between them are another row's, wrong but harmless."""
    pairs = {name: torch.stack([values, values.flip(0)], 1) for name, values in case.batch.inputs.items()}
    return case.batch.with_inputs(**{name: pair[:, 0] for name, pair in pairs.items()})


def with_inputs_expanded(case: Case) -> Batch:
    """The batch with the first row's inputs for all rows, as views of stride 0: what autograd hands on for the gradient of a sum."""
    return case.batch.with_inputs(**{name: values[:1].expand(len(values)) for name, values in case.batch.inputs.items()})


def run_in_place(case: Case, original: Batch | None = None) -> Results:
    """The kernel's in-place form on a copy in the same layout, every autotuner of its module cleared: each call is a first call."""
    batch = relaid(case, case.recipe.layout).with_options(**(original or case.batch).options)
    forget_tuning(case.kernel.function.__module__)
    results = case.run(batch, case.kernel.in_place)
    if not any(values.data_ptr() == batch.logits.data_ptr() for values in results.values()):
        raise KernelFault("wrong", "the in-place form left the logits and returned another tensor")
    return results


def forget_tuning(module: str) -> None:
    """Clear the caches of all of triton's autotuners there were when `module` was first seen, wherever they are defined."""
    for tuner in _autotuners(module):
        tuner.cache.clear()


@lru_cache(maxsize=64)
def _autotuners(module: str) -> list[Any]:
    from triton.runtime.autotuner import Autotuner

    return [thing for thing in _alive() if issubclass(type(thing), Autotuner)]


def _alive() -> list[Any]:
    """Every object the collector knows; frozen ones are hidden from it, so thaw them for the look."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    things = gc.get_objects()
    if frozen:
        gc.freeze()
    return things


def run_captured(case: Case, original: Batch | None = None) -> Results:
    """Capture the kernel on other contents, copy the batch into the captured buffers, replay, and return the output.

    The captured buffers have the batch's own layout: a kernel may compile another order of summation for another.
    """
    original = original or case.batch
    static = relaid(case, case.recipe.layout).with_options(**original.options)
    static = static.with_inputs(**{name: values.flip(0) for name, values in static.inputs.items()})
    if not static.logits.numel():
        return case.run(static)  # nothing is launched, so there is nothing to capture
    static.logits.copy_(case.batch.logits.flip(-1))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.run(static)  # compile and warm up outside the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = case.run(static)
    except Exception as error:  # a kernel that asks the host breaks the capture, and ending the capture raises once more
        first = str(error.__context__ or error).strip().splitlines()[0].replace("CUDA error: ", "")  # the device is not lost
        raise KernelFault("crash", f"cannot be captured: {first}") from error
    static.logits.copy_(original.logits)
    for name, values in original.inputs.items():
        static.inputs[name].copy_(values)
    graph.replay()
    return {name: values.clone() for name, values in results.items()}
