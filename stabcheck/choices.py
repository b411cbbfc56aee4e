"""Variations and comparisons for laws on what a kernel chooses: tokens kept by filters, ids drawn, drafts accepted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import quotient_error, summation_error
from stabcheck.cases import Case
from stabcheck.devices import U
from stabcheck.floats import by_name
from stabcheck.operations.base import Results, of_columns
from stabcheck.operations.filters import FILTERS
from stabcheck.operations.sample import POSITIONS, SEEDS
from stabcheck.operations.sorted_rows import sorted_rows
from stabcheck.operations.verify_speculative import Chain
from stabcheck.variations import either, random_order, with_columns_masked
from stabcheck.verdicts import Comparison

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
ON = {"top_k": 2, "top_p": 0.5, "min_p": 0.1}
GRID_ELEMENTS = 1 << 20
DUMPED = 4  # variates of each key that are compared
NOWHERE = torch.zeros((), dtype=torch.float64)  # what a map of mistakes must be
NONE_LEFT = 1000.0  # exp(-1000) = 0 in any format


def with_all(case: Case, batch: Batch | None = None, **values: float) -> Batch:
    """The batch with inputs set to one value for all rows."""
    batch = batch or case.batch
    return batch.with_inputs(**{name: torch.full_like(batch.inputs[name], value) for name, value in values.items()})


def with_other_offs(case: Case) -> Batch:
    """The batch with every filter off, each row by other values that mean so."""
    rows, vocab, device = len(case.batch.logits), case.recipe.vocab, case.batch.logits.device
    index = torch.arange(rows, device=device)
    top_k = torch.tensor([vocab, -1, vocab + 5, 2**40, -(2**63)], device=device)[index % 5]
    top_p = torch.tensor([1.0, 1.5, torch.inf], device=device)[index % 3]
    min_p = torch.tensor([0.0, -0.0, -1.0], device=device)[index % 3]
    return case.batch.with_inputs(top_k=top_k, top_p=top_p, min_p=min_p)


def with_every_other_off(case: Case, parity: int) -> Batch:
    """The batch with every filter off in rows of one parity, and on in the others."""
    batch, off = case.batch, torch.arange(len(case.batch.logits), device=case.batch.logits.device) % 2 == parity
    on = {name: torch.where(batch.inputs[name] == OFF[name], ON[name], batch.inputs[name]) for name in OFF}
    return batch.with_inputs(**{name: torch.where(off, OFF[name], on[name]).to(batch.inputs[name].dtype) for name in OFF})


def kept_or_not(case: Case, results: Results) -> Comparison:
    """What a kernel kept with what it must keep, and may; a probability within its bound of 0 tells nothing."""
    if "draws" in case.operation.traits:
        legal = case.operation.reference(case.batch, replace(case.contract, noise=None))["ids"].settled(results)
        return Comparison(results["ids"], legal.value, 0.0, legal.free, kind="out of support", what="ids with those the filters keep")
    exact = case.settled(results)["probs"]
    unseen = (exact.value > 0) & (exact.bound >= exact.value)
    return Comparison(results["probs"] > 0, (exact.value > 0).double(), 0.0, either(unseen, exact.free), what="kept (1) or dropped (0)")


def nucleus(case: Case) -> Iterator[Comparison]:
    """Of top-p alone: the mass kept reaches p, would not without the least token kept, and no token dropped is larger than one kept.

    Slack: the errors of both sums that the kernel compares, Σ p κ and a summation each, the quotients, and the rounding of p times a sum.
    """
    batch = with_all(case, top_k=0, min_p=0.0)
    results = case.run(batch)
    rows, exact = sorted_rows(batch, case.contract), case.settled(results, batch)["probs"]
    kept = (results["probs"] > 0).gather(1, rows.order)
    share, p = rows.e / rows.mass[:, -1:], batch.inputs["top_p"].double().clamp(0.0, 1.0)
    slack = torch.expm1(2 * rows.error[:, -1] / rows.mass[:, -1] + 2 * rows.of_sum + FILTERS * quotient_error(case.contract)) + 2 * U
    mass, least = (share * kept).sum(-1), torch.where(kept, share, torch.inf).amin(-1)
    free = None if exact.free is None else exact.free[:, 0]
    free = either(batch.logits.isinf().all(-1) | (batch.inputs["temperature"] == 0), free)
    yield Comparison(torch.maximum(p, mass), mass, slack, free, kind="wrong", what="p with the mass kept, where that is smaller")
    if case.contract.policies["top_p_ties"] == "keep_all":  # all that tie with the least token
        last = (kept * (rows.places + 1)).amax(-1).clamp(min=1)
        least = torch.where(kept & rows.near(last, case.contract), share, 0.0).sum(-1)
    without = torch.where(kept.sum(-1) > 1, mass - least, 0.0)
    yield Comparison(
        torch.maximum(p, without), p, slack, free, kind="wrong", what="the mass without the least token kept with p, where larger"
    )
    if case.kernel.error_model == "shift_first" and case.contract.policies["top_p_ties"] != "any_id":
        smallest, largest = torch.where(kept, rows.x, torch.inf).amin(-1), torch.where(kept, -torch.inf, rows.x).amax(-1)
        yield Comparison(
            torch.maximum(largest, smallest), smallest, 0.0, free, kind="order", what="the largest dropped with the least kept"
        )


def appended(case: Case, value: float) -> tuple[Batch, torch.Tensor]:
    """(the batch with columns of one value behind the last, [R] bool: rows in which they may have a share)."""
    batch, block = case.batch, case.kernel.blocks[0]
    rows, vocab = batch.logits.shape
    more = (1, block - vocab % block, block + 1)[case.recipe.seed % 3]
    wide = torch.cat([batch.logits, batch.logits.new_full((rows, more), value)], 1)
    x, t = batch.logits.double(), batch.inputs["temperature"].double()
    far = (x.masked_fill(x == torch.inf, torch.nan).amax(-1) - value) / t > NONE_LEFT
    beside = (batch.inputs["top_k"] > 0) & (batch.inputs["top_k"] < vocab + more) & (batch.inputs["top_k"] >= vocab)
    lower = (x > value).all(-1) | (value == -torch.inf)
    return batch.with_logits(wide), ~(far & lower) | beside


def appended_comparisons(case: Case) -> Iterator[Comparison]:
    """The batch with −inf, and with huge negative, columns appended, with the batch itself; each is right by itself too."""
    vocab, got = case.recipe.vocab, case.run()
    for value in (-torch.inf, -min(1e30, by_name(case.recipe.dtype).max)):
        wide, sharing = appended(case, value)
        results = case.run(wide)
        yield from case.against_reference(results, wide, what=f"{wide.logits.shape[1] - vocab} columns of {value:g} appended")
        here, there = case.settled(got), case.settled(results, wide)
        columns = torch.arange(vocab, device=wide.logits.device)
        for name, values in of_columns(results, columns).items():
            exact, other = (
                here[name],
                of_columns({"bound": there[name].bound, "free": _some(there[name].incomparable, there[name].value)}, columns),
            )
            free = either(other["free"], exact.incomparable, sharing[:, None] if values.ndim == 2 else sharing)
            what = case.named(name, f"with columns of {value:g} appended, and without")
            yield Comparison(values, got[name], exact.bound + other["bound"], free, what=what)


def noise_keys(case: Case) -> Comparison:
    """Noise of a grid of seeds, positions and roles, each key's against all others': [keys] 1 where another key has the same."""
    noise, device = case.kernel.noise, case.device.name
    assert noise is not None
    near = [torch.arange(64) + start for start in (0, 2**31 - 32, 2**32 - 32)]
    seeds = torch.cat([*near, torch.tensor(SEEDS, dtype=torch.int64)]).to(device)
    positions = torch.cat([*near, torch.tensor(POSITIONS)]).to(device)
    grid = torch.cartesian_prod(torch.unique(seeds), torch.unique(positions))
    roles = (0, 1, 2) if "role" in inspect.signature(noise).parameters else (0,)
    dumps = [noise(grid[:, 0].contiguous(), grid[:, 1].contiguous(), DUMPED, **({"role": role} if role else {})) for role in roles]
    _, place, counts = torch.unique(torch.cat(dumps), dim=0, return_inverse=True, return_counts=True)
    shared = counts[place] > 1
    what = "keys that share their noise with another"
    if bool(shared.any()):
        twins = (place == place[shared][0]).nonzero()[:2, 0].tolist()
        keys = [(*grid[twin % len(grid)].tolist(), roles[twin // len(grid)]) for twin in twins]
        what += f": (seed, position, role) = {keys[0]} and {keys[1]}"
    return Comparison(shared, NOWHERE.to(shared.device), 0.0, kind="wrong", what=what, aligned=False)


def _some(place: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like, dtype=torch.bool) if place is None else place


def in_range(case: Case, results: Results, what: str) -> Iterator[Comparison]:
    """Every output of ids within its limits."""
    for output in case.operation.outputs:
        got = results[output.name].double()
        limits = got.clamp(output.low, output.high(case.recipe.vocab) if output.high else None)
        yield Comparison(got, limits, 0.0, kind="wrong", what=case.named(output.name, what))


def without_meaning(case: Case) -> Iterator[tuple[str, Batch]]:
    """Batches whose rows mean nothing: NaN, infinities, parameters out of range; whoever draws from them must still stay in range."""
    batch = case.batch
    for value in (torch.nan, -torch.inf, torch.inf):
        yield f"logits all {value:g}", batch.with_logits(torch.full_like(batch.logits, value))
    tail = batch.logits.clone()
    tail[:, case.recipe.vocab // 2 :] = torch.nan
    yield "the second half of the row NaN", batch.with_logits(tail)
    floats = [name for name, values in batch.inputs.items() if values.is_floating_point()]
    yield "every parameter NaN", with_all(case, batch, **dict.fromkeys(floats, torch.nan))
    yield "every parameter negative", with_all(case, batch, **dict.fromkeys(floats, -1.0))


def masked_draws(case: Case) -> Iterator[Comparison | list[Comparison]]:
    """Draws with some columns masked, as they are and flat; for verifiers, drafts of probability 0 and coins of 0."""
    masked, _ = with_columns_masked(case)
    if "verifies" in case.operation.traits:
        for draft in (masked.logits.argmin(-1), case.batch.inputs["draft"]):
            batch = masked.with_inputs(
                draft=draft, coin=torch.zeros_like(masked.inputs["coin"]), last=torch.zeros_like(masked.inputs["last"])
            )
            yield case.against_reference(case.run(batch), batch, what="masked columns, coins of 0")
        return
    for batch, what in ((masked, "masked columns"), (with_all(case, masked, temperature=1e30), "masked columns, T = 1e30")):
        ids = case.run(batch)["ids"].long().clamp(0, case.recipe.vocab - 1)
        drawn = batch.logits.gather(1, ids[:, None])[:, 0] == -torch.inf
        free = case.expect(batch)["ids"].free
        yield Comparison(drawn, NOWHERE.to(drawn.device), 0.0, free, kind="out of support", what=f"{what}: 1 where a masked id was drawn")


def in_pools(case: Case) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
    """The rows' parameters scattered over pools twice as large, in two orders, and where they lie; what is unused means nothing."""
    rows, device = len(case.batch.logits), case.batch.logits.device
    for what, order in (("reversed", torch.arange(rows - 1, -1, -1, device=device)), ("permuted", random_order(case, rows))):
        index = 2 * order + 1
        pools = []
        for values in case.batch.inputs.values():
            pool = torch.full((2 * rows + 1,), torch.nan if values.is_floating_point() else -7, device=device).to(values.dtype)
            pools.append(pool.index_put((index,), values))
        yield f"parameters from pools, {what}, with parameters by row", (*pools, index)


def run_pooled(case: Case, pools: tuple[torch.Tensor, ...]) -> Results:
    """The pooled form on the batch's logits."""
    names = [*case.batch.inputs, "index"]
    return case.run(replace(case.batch, inputs=dict(zip(names, pools, strict=True)), known={}), case.kernel.pooled)


def coin_grid(case: Case) -> Iterator[Comparison | list[Comparison]]:
    """The first row with the N coins (i + ½)/N: the share of coins that accept the draft, and of those that emit each id.

    An interval of coins of length w holds between wN − 1 and wN + 1 of such a grid, so no chance is left: the bounds are 1/N, and what the
    kernel's sums may be off.
    """
    one, vocab = case.batch.pick(slice(0, 1)), case.recipe.vocab
    n = max(16, min(256 if case.device.is_gpu else 32, GRID_ELEMENTS // vocab))
    grid = ((torch.arange(n, device=one.logits.device, dtype=torch.float64) + 0.5) / n).float()
    many = one.pick(torch.zeros(n, dtype=torch.int64, device=grid.device))
    for what, batch in (("accepting", many.with_inputs(coin=grid)), ("the last", many.with_inputs(last=grid))):
        got = case.run(batch)
        yield case.against_reference(got, batch, what=f"a grid of {n} coins, {what}")
        yield shares(case, Chain(batch), got, what)


def shares(case: Case, chain: Chain, got: Results, what: str) -> Comparison:
    """Shares of a grid of coins with the probabilities they stand for: of accepting the first draft, min(1, p/q); of emitting each id."""
    n = len(chain.coins)
    if what == "accepting":
        share, exact, slack = _of_accepting(chain, got)
    else:
        share, exact, slack = _of_emitting(case, chain, got)
    bound = torch.full_like(exact, 1 / n) + slack
    free = ~(exact.isfinite() & (bound < 2 / n))
    return Comparison(share, exact, bound, free, kind="wrong", what=f"shares of a grid of {n} coins, {what}", aligned=False)


def _of_accepting(chain: Chain, got: Results) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    p, q = chain.of_drafts(chain.p)[:1, 0], chain.of_drafts(chain.q)[:1, 0]
    return (got["accepted"] > 0).double().mean()[None], (p / q).clamp(max=1.0), torch.full_like(p, 16 * U)


def _of_emitting(case: Case, chain: Chain, got: Results) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, error, _, _ = chain.source(got["accepted"].long().clamp(0, chain.drafts.shape[1]))
    n, vocab = weights.shape
    whole = weights[0].sum()
    counts = torch.bincount(got["emitted"].long().clamp(0, vocab - 1), minlength=vocab).double()
    slack = 4 * (error[0].sum() / whole + summation_error(vocab, case.contract) + U)
    return counts / n, weights[0] / whole, slack.expand(vocab)
