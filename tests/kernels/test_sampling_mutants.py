"""Mutants of filters, samplers and verifiers are right where their mistakes do not show, and wrong where they do; without them, no law is
broken."""

from math import inf, log, nan

import pytest
import torch
from planted import holds, recipe_of

from stabcheck.cases import Case
from stabcheck.devices import describe
from stabcheck.kernels.mutants import filtering, sampling_skeleton, skeleton, speculative
from stabcheck.laws import all_laws
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.registry import make_kernel
from stabcheck.shrinking import shrink
from stabcheck.targets import load
from stabcheck.trial import Trial

MUTANTS = {k.mutant.id: k for k in load(["stabcheck.kernels.mutants"]) if k.mutant.id.startswith("SA")}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no GPU, and millions of draws are too many for the interpreter")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def column(values, rows, dtype):
    return torch.tensor(values, dtype=dtype, device=DEVICE).expand(rows).contiguous()


def parameters(rows, top_k=0, top_p=1.0, min_p=0.0):
    """T = 1 and the filters of some rows: numbers for all, or lists."""
    return column(1.0, rows, torch.float32), column(top_k, rows, torch.int64), column(top_p, rows, torch.float32), column(
        min_p, rows, torch.float32
    )  # fmt: skip


def kept_by(id, logits, **filters):
    """The ids with a probability, row by row."""
    probs = MUTANTS[id].function(torch.tensor(logits, device=DEVICE), *parameters(len(logits), **filters))
    return [row.nonzero()[:, 0].tolist() for row in probs]


def draws(function, row, n, **filters):
    """n draws from one row at positions 0, 1, …"""
    logits = torch.as_tensor(row, device=DEVICE, dtype=torch.float32)[None].expand(n, -1)
    return function(logits, *parameters(n, **filters), column(7, n, torch.int64), torch.arange(n, device=DEVICE))


def test_all_of_the_table_are_here():
    assert sorted(MUTANTS, key=lambda id: int(id[2:])) == [f"SA{n}" for n in range(1, 17)]


@pytest.mark.parametrize("id", sorted(set(MUTANTS) - {"SA13"}))  # whose mistake shows at any rejection
def test_is_right_on_an_ordinary_input(id):
    row = Row(Background("bell", (0.0, 5.0)))
    case = Case(MUTANTS[id], describe(DEVICE), Recipe(MUTANTS[id].operation, "fp32", 256, (row,), siblings=3))
    got = case.run()
    for name, exact in case.settled(got).items():
        assert ((got[name].double() - exact.value).abs() <= exact.bound).all()


PROBABILITIES = [0.35, 0.25, 0.2, 0.05] + [0.03] * 5
FILTERED = [  # id, logits, filters, what it keeps, what is right
    ("SA1", [[log(p) for p in PROBABILITIES]], {"top_k": 4, "top_p": 0.82}, [[0, 1, 2, 3]], [[0, 1, 2]]),
    ("SA6", [[0.0, -47.0]] * 2, {"min_p": [0.0, 0.1]}, [[0], [0]], [[0, 1], [0]]),
    ("SA6", [[0.0, -47.0]] * 2, {}, [[0, 1]] * 2, [[0, 1]] * 2),
    ("SA8", [[log(0.6), log(0.4)]], {"top_p": 0.7}, [[0]], [[0, 1]]),
    ("SA15", [[1.0, 0.0, 1.0]], {"top_k": 1}, [[0, 2]], [[0]]),
    ("SA16", [[0.0, 1.0, -1e30]], {"top_k": 1}, [[0, 1]], [[1]]),
    ("SA16", [[0.0, 1.0, -10.0, -inf]], {"top_k": 1}, [[1]], [[1]]),
    ("SA16", [[1.0, 1.0 + 2**-23, 1.0]], {"top_k": 1}, [[1]], [[1]]),
]


@pytest.mark.parametrize(("id", "logits", "filters", "kept", "right"), FILTERED)
def test_a_filter_mutant_keeps_what_its_mistake_says(id, logits, filters, kept, right):
    assert kept_by(id, logits, **filters) == kept
    probs = filtering.filtered_probs(torch.tensor(logits, device=DEVICE), *parameters(len(logits), **filters))
    assert [row.nonzero()[:, 0].tolist() for row in probs] == right


def test_sa2_draws_the_lowest_id_of_ties():
    assert set(draws(MUTANTS["SA2"].function, [0.0] * 5 + [3.0] * 64, 20, top_k=64).tolist()) == {5}
    assert len(set(draws(sampling_skeleton.sample, [0.0] * 5 + [3.0] * 64, 20, top_k=64).tolist())) > 10


@pytest.mark.parametrize(("id", "filters"), [("SA3", {"top_p": 0.1}), ("SA5", {"top_k": 2})])
def test_a_rejecting_mutant_gives_up_and_takes_the_argmax(id, filters):
    row = [0.0] * 99 + [0.001]  # 10 of 100 are kept, or 2
    missing = 0.9**4 if id == "SA3" else 0.98**16
    share = (draws(MUTANTS[id].function, row, 40, **filters) == 99).double().mean()
    assert abs(share - missing) < 0.25
    assert (draws(sampling_skeleton.sample, row, 60, top_k=10) == 99).double().mean() < 0.3


def test_sa4_draws_with_the_next_positions_noise_in_a_graph():
    eager, graph = (draws(f, [0.0] * 100, 9).tolist() for f in (MUTANTS["SA4"].function, MUTANTS["SA4"].routes["graph"]))
    assert eager != graph
    assert eager[1:] == graph[:-1]


def test_sa7_takes_the_filters_of_another_request():
    pool = (*parameters(3, top_k=[1, 0, 1]), *(torch.arange(3, device=DEVICE) for _ in range(2)))
    logits, index = torch.zeros(1, 1000, device=DEVICE), column(1, 1, torch.int64)
    own = MUTANTS["SA7"].function(logits, *(t[1:2] for t in pool)).item()
    assert MUTANTS["SA7"].pooled(logits, *pool, index).tolist() == [0]
    assert sampling_skeleton.sample_pooled(logits, *pool, index).item() == own > 0


def test_sa9_draws_a_masked_token_where_its_uniform_is_rounded_to_1():
    seed, positions = column(7, 1 << 14, torch.int64), torch.arange(1 << 14, device=DEVICE)
    (at, *_) = (sampling_skeleton.noise(seed, positions, 1)[:, 0] < 2.0**-13).nonzero()[0]
    one = (torch.tensor([[-inf, 0.0]], device=DEVICE), *parameters(1), seed[:1], at[None])
    assert MUTANTS["SA9"].function(*one).tolist() == [0]
    assert sampling_skeleton.sample(*one).tolist() == [1]


@needs_gpu
def test_sa10_draws_nothing_from_the_far_tail():
    row, n = [0.0] + [-18.0] * 4095, 1 << 22  # a tail of 6.2e-5: 262 of as many draws
    wrong, right = ((draws(f, row, n) > 0).sum().item() for f in (MUTANTS["SA10"].function, sampling_skeleton.sample))
    assert wrong < 150 < 180 < right < 350


def test_sa14_takes_a_lane_beyond_a_row_of_nan():
    args = (torch.full((1, 5), nan, device=DEVICE), *parameters(1), *(column(0, 1, torch.int64) for _ in range(2)))
    assert MUTANTS["SA14"].function(*args).tolist() == [5]
    assert 0 <= sampling_skeleton.sample(*args).item() < 5


# ---- verifiers


def verified(function, p, q, draft, *coins):
    """(accepted, ids) of one draft at one position; the target is the same after it."""
    target, proposal = torch.tensor([[p, p]], device=DEVICE), torch.tensor([[q]], device=DEVICE)
    accepted, ids = function(target, proposal, torch.tensor([[draft]], device=DEVICE), torch.tensor([coins], device=DEVICE))
    return accepted.tolist(), ids.tolist()


def test_sa11_makes_a_coin_of_what_drew_the_draft():
    q = torch.tensor([0.5, 0.5], device=DEVICE).expand(16, 3, 2)
    ids, coins = MUTANTS["SA11"].stream(q, column(7, 16, torch.int64), torch.arange(16, device=DEVICE))
    assert ids.equal((coins[:, :3] >= 0.5).long())
    ids, coins = speculative.stream(q, column(7, 16, torch.int64), torch.arange(16, device=DEVICE))
    assert 10 < (ids == (coins[:, :3] >= 0.5)).sum() < 38


def test_sa12_accepts_a_draft_of_probability_zero():
    chain = ([1.0, 0.0], [0.5, 0.5], 1, 0.0, 0.5)
    assert verified(MUTANTS["SA12"].function, *chain) == ([1], [[1, 0]])
    assert verified(speculative.verify, *chain) == ([0], [[0, -1]])


def test_sa13_emits_a_token_without_a_residual():
    chain = ([0.25, 0.5, 0.25], [0.0, 0.25, 0.75], 2, 0.9, 0.9)  # the residual is [0.25, 0.25, 0]
    assert verified(MUTANTS["SA13"].function, *chain) == ([0], [[2, -1]])
    assert verified(speculative.verify, *chain) == ([0], [[1, -1]])


def test_sa1_is_shrunk_although_k_has_to_fall_with_the_columns():
    examined = Trial(MUTANTS["SA1"], all_laws()["keep_set"], "fp32", describe(DEVICE))
    start = recipe_of("filtered_probs", [0.0] * 52, inputs={"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.0})
    assert shrink(examined, examined.finding(start, examined.examine(start))).recipe.vocab <= 8


# ---- the skeletons: what the mutants are without their mistakes

SHARED = {"dtypes": ["fp32", "bf16"], "tile": skeleton.TILE, "blocks": (skeleton.TILE,)}
NOISE = {"noise": sampling_skeleton.noise, "noise_error": sampling_skeleton.NOISE_ERROR, "pooled": sampling_skeleton.sample_pooled}
ROUTES = {"routes": {"torch": sampling_skeleton.sample_in_torch}}
SKELETONS = {
    "filtered_probs": make_kernel("filtered_probs", filtering.filtered_probs, **SHARED),
    "sample": make_kernel("sample", sampling_skeleton.sample, **NOISE, **ROUTES, **SHARED),
    "verify_speculative": make_kernel("verify_speculative", speculative.verify, stream=speculative.stream, **SHARED),
}
APPLYING = [
    (name, law)
    for name, kernel in SKELETONS.items()
    for law in all_laws().values()
    if law.applies(kernel) and not law.why_not(kernel, describe(DEVICE)) and not law.once
]


@pytest.mark.parametrize(("name", "law"), APPLYING, ids=[f"{name}-{law.name}" for name, law in APPLYING])
def test_a_mutant_without_its_mistake_breaks_no_law(name, law):
    assert holds(SKELETONS[name], law, DEVICE, examples=25 if law.gpu else 5)  # of five, no row is worth counting draws of
