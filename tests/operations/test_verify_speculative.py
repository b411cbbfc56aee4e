"""A chain of drafts is verified as fractions say: what is accepted, what follows, and what either may be where rounding decides."""

from fractions import Fraction

import mpmath
import planted_sampling as planted
import pytest
import torch
from planted_sampling import VERIFY, first_finding, inf, put, returning, right_verifier, rows_of, verifier

from stabcheck.bounds import Contract
from stabcheck.devices import GPU, U
from stabcheck.expansion import materialise
from stabcheck.floats import FP32
from stabcheck.operations import operation
from stabcheck.operations.base import LARGEST, SMALLEST
from stabcheck.operations.verify_speculative import COINS, PROPOSALS, Chain, emissions, reference

OPERATION = operation(VERIFY)
CONTRACT = Contract(FP32, FP32, GPU)
nan = float("nan")
SLACK = 2.0**-18  # a generous multiple of rounding for a dozen columns
ROWS = {
    "plain": [0.0, 1.0, -1.0, 0.5],
    "ties": [0.0, 0.0, 0.0, 0.0, 0.0],
    "one holds nearly all": [0.0, 20.0, 0.0],
    "masked": [-inf, 0.0, -inf, 1.0, 2.0],
    "one column": [3.0],
    "underflow": [0.0, -95.0, -110.0, -2.0],
}


def batch_of(row, draft=0, coin=0.5, last=0.5, **options):
    """One row with each pair of coins; `coin`, `last` may be lists of the same length."""
    coins, lasts = (value if isinstance(value, list) else [value] for value in (coin, last))
    n = max(len(coins), len(lasts))
    rows = [row] * n
    return materialise(rows_of(VERIFY, *rows, draft=draft, coin=coins * (n // len(coins)), last=lasts * (n // len(lasts)), **options))


def given_to_a_kernel(batch):
    """(p, q, drafts, coins) as lists of fractions, row by row: what the kernel is called with, captured from the call."""
    seen = []

    def capture(*tensors):
        seen.extend(tensors)
        return torch.zeros_like(tensors[2][:, 0]), torch.zeros_like(tensors[3], dtype=torch.int64)

    OPERATION.call(capture, *batch.args, **batch.options)
    p, q, drafts, coins = seen
    for row in range(len(p)):
        chain = [[list(map(Fraction, step)) for step in values[row].tolist()] for values in (p, q if q is not None else one_hot(drafts, p))]
        yield *chain, drafts[row].tolist(), list(map(Fraction, coins[row].tolist()))


def one_hot(drafts, p):
    return torch.nn.functional.one_hot(drafts, p.shape[-1]).double()


def verified(p, q, drafts, coins):
    """(accepted, emitted, the margins of both decisions relative to what is compared) in exact arithmetic, step by step."""
    margin = Fraction(1)
    for step, (draft, coin) in enumerate(zip(drafts, coins, strict=False)):
        bar, have = coin * q[step][draft], p[step][draft]
        if coin and have:
            margin = min(margin, abs(have - bar) / max(have, bar))
        if not bar < have:
            rest = [max(a - b, Fraction(0)) for a, b in zip(p[step], q[step], strict=True)]
            lost = sum(rest) * 1000 < sum(p[step]) * Fraction(SLACK)
            return step, *emitted(rest if sum(rest) else p[step], coins[-1]), Fraction(0) if lost else margin
    return len(drafts), *emitted(p[len(drafts)], coins[-1]), margin


def emitted(weights, coin):
    """(the first id whose running sum passes the coin's share, how far the coin is from the ends of its interval)."""
    whole, running = sum(weights), Fraction(0)
    for i, weight in enumerate(weights):
        start, running = running, running + weight
        if running > coin * whole:
            return i, min(running - coin * whole, coin * whole - start if start else whole) / whole
    raise AssertionError("a coin is below one")


CASES = [(name, drafts, proposal) for name in ROWS for drafts in (1, 2, 4) for proposal in PROPOSALS]
GRID = [(coin, last) for coin in COINS for last in (0.0, 0.1, 0.5, 0.77, 1 - 2.0**-24)]


@pytest.mark.parametrize(("name", "drafts", "proposal"), CASES)
def test_accepted_and_emitted_are_those_of_fractions(name, drafts, proposal):
    clear = 0
    for draft in (0, LARGEST, SMALLEST):
        batch = batch_of(ROWS[name], draft, [c for c, _ in GRID], [v for _, v in GRID], drafts=drafts, proposal=proposal)
        e = reference(batch, CONTRACT)
        for row, chain in enumerate(given_to_a_kernel(batch)):
            accepted, token, near, margin = verified(*chain)
            if margin > SLACK:
                assert e["accepted"].value[row] == accepted
            if margin > SLACK and near > SLACK:
                clear += 1
                assert e["emitted"].value[row] == token, (draft, GRID[row])
    assert clear >= (10 if len(ROWS[name]) > 1 and proposal != "equal" else 0)  # equal: a rejection leaves no residual to draw from


@pytest.mark.parametrize(("name", "drafts", "proposal"), CASES)
def test_what_is_legal_is_what_may_be_within_rounding_and_nothing_that_is_further(name, drafts, proposal):
    """After every number of drafts accepted, whether or not the coins say so."""
    batch = batch_of(ROWS[name], 0, 0.5, [v for _, v in GRID[:5]], drafts=drafts, proposal=proposal)
    for accepted in range(drafts + 1):
        legal, first = emissions(Chain(batch), torch.full((5,), accepted), CONTRACT)
        for row, (p, q, _, coins) in enumerate(given_to_a_kernel(batch)):
            rest = [max(a - b, Fraction(0)) for a, b in zip(p[accepted], q[accepted], strict=True)] if accepted < drafts else p[accepted]
            weights = rest if sum(rest) else p[accepted]
            if sum(rest) and sum(rest) < SLACK:
                continue  # the residual may be lost
            token, near = emitted(weights, coins[-1])
            assert legal[row, token]
            if near > SLACK and coins[-1]:  # a coin of 0 may give what precedes, where the residual may be more than 0
                assert (first[row], legal[row].sum()) == (token, 1)
            assert not any(legal[row, i] for i, w in enumerate(p[accepted]) if not w)


def test_the_chain_is_one_row_of_logits_rolled():
    row = ROWS["plain"]
    (p, q, drafts, coins), *_ = given_to_a_kernel(batch_of(row, 3, 0.25, 0.7, drafts=2))
    with mpmath.workdps(30):
        weights = [mpmath.exp(v) for v in row]
        shares = [w / mpmath.fsum(weights) for w in weights]
        for step in range(3):
            for i in range(4):
                assert abs(mpmath.mpf(float(p[step][i])) / shares[(i - step) % 4] - 1) < 2 * U
        assert q == p[1:]  # "rolled": a draft comes from the next row
    assert drafts == [3, 1]
    assert [float(c) for c in coins] == pytest.approx([0.25, 0.868034, 0.7], abs=1e-6)


@pytest.mark.parametrize(
    ("proposal", "shares"), [("equal", [0.2, 0.8]), ("flat", [0.5, 0.5]), ("sharper", [1 / 17, 16 / 17]), ("one_hot", [0, 1])]
)
def test_what_drafts_come_from(proposal, shares):
    (_, q, drafts, _), *_ = given_to_a_kernel(batch_of([0.0, 1.3862943611198906], 1, proposal=proposal))
    assert [float(v) for v in q[0]] == pytest.approx(shares, abs=1e-6)
    assert drafts == [1]


# ---- what may be returned


def passing(batch_recipe, law="accuracy"):
    """Which (accepted, ids) a kernel may return for the first row, of one draft."""
    vocab, draft = batch_recipe.vocab, materialise(batch_recipe).inputs["draft"][0].item()
    tried = [(0, [i, -1]) for i in range(vocab)] + [(1, [draft, i]) for i in range(vocab)]
    return [(n, i) for n, i in tried if put(answering(n, i), VERIFY, law).examine(batch_recipe).ok]


def answering(accepted, ids):
    return returning(torch.tensor([accepted]), torch.tensor([ids]))


def one(row, draft, coin, last, proposal="one_hot"):
    return rows_of(VERIFY, row, draft=draft, coin=coin, last=last, proposal=proposal)


EVEN = [0.0, 0.0]


@pytest.mark.parametrize(
    ("recipe", "legal"),
    [
        (one(EVEN, 0, 0.25, 0.25), [(1, [0, 0])]),
        (one(EVEN, 0, 0.75, 0.25), [(0, [1, -1])]),  # the residual of a one-hot draft is without the draft
        (one(EVEN, 0, 0.5, 0.25), [(0, [1, -1]), (1, [0, 0])]),  # coin · q = p: rejected, or accepted through rounding
        (one(EVEN, 0, 0.25, 0.5), [(1, [0, 0]), (1, [0, 1])]),  # the coin at the end of an interval
        (one([0.0, 0.0, -inf], 2, 0.0, 0.25), [(0, [0, -1])]),  # coin = p = 0: rejected
        (one([0.0, 0.0, -inf], 0, 0.0, 0.999), [(1, [0, 2])]),  # the next row is rolled: -inf stands at id 0
        (one([-80.0, 0.0], 0, 0.0, 0.5), [(1, [0, 0])]),  # coin = 0 < p, however small
        (one([0.0], 0, 0.5, 0.0), [(1, [0, 0])]),
    ],
    ids=lambda v: "" if isinstance(v, list) else None,
)
def test_one_draft_by_hand(recipe, legal):
    assert passing(recipe) == legal


def test_a_coin_beside_p_decides():
    half = 2.0**-12
    assert passing(one(EVEN, 0, 0.5 - half, 0.25)) == [(1, [0, 0])]
    assert passing(one(EVEN, 0, 0.5 + half, 0.25)) == [(0, [1, -1])]


def test_a_draft_of_probability_zero_is_never_accepted_whatever_its_coin():
    for coin in COINS:
        for proposal in ("one_hot", "flat"):
            assert not any(accepted for accepted, _ in passing(one([0.0, -inf, 0.0], 1, coin, 0.3, proposal)))


def test_without_a_residual_the_next_token_comes_from_the_target():
    """Proposal and target are one; a draft that rounding rejects has nothing left but the target."""
    batch = materialise(one([0.0, 0.0, -inf, 0.0], 0, 1 - 2.0**-24, 0.1, "equal"))
    weights, _, possible, _ = Chain(batch).source(torch.tensor([0]))
    assert weights[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=1e-6)
    assert possible[0].tolist() == [True, True, False, True]
    legal, first = emissions(Chain(batch), torch.tensor([0]), CONTRACT)
    assert (first.tolist(), legal[0, 2].item()) == ([0], False)


@pytest.mark.parametrize("last", [0.0, 1 - 2.0**-24])
def test_the_last_coin_at_its_ends_gives_the_first_and_the_last_token_there_are(last):
    """Masked at both ends; the second row of the chain is rolled by one."""
    made = one([-inf, -inf, 0.0, 0.0, -inf, -inf], 2, 0.0, last)
    assert passing(made) == [(1, [2, 3 if last == 0 else 4])]


@pytest.mark.parametrize(
    ("accepted", "ids"),
    [(1, [1, 0]), (1, [0, -1]), (1, [-1, 0]), (0, [1, 0]), (2, [0, 0]), (-1, [0, 0]), (1, [0, 2]), (1, [0, 9])],
    ids=["wrong draft", "nothing emitted", "draft left out", "a token behind", "too many", "less than none", "out of range", "far out"],
)
def test_an_answer_that_is_out_of_place_fails(accepted, ids):
    made = one(EVEN, 0, 0.25, 0.25)
    assert put(answering(1, [0, 0]), VERIFY).examine(made).ok
    assert not put(answering(accepted, ids), VERIFY).examine(made).ok


def test_entries_out_of_place_are_counted():
    def kernel(p, q, drafts, coins):
        return torch.tensor([1]), torch.tensor([[7, 5, 3, -1, 0]])

    batch = batch_of([0.0] * 8, 7, drafts=4)
    assert [v.tolist() for v in OPERATION.call(kernel, *batch.args, **batch.options)] == [[1], [5], [2]]


@pytest.mark.parametrize(
    "returned",
    [
        (torch.zeros(1), torch.zeros(1, 2, dtype=torch.int64)),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2)),
        (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)),
        (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)),
    ],
    ids=["accepted is float", "ids are float", "accepted has columns", "ids lack one"],
)
def test_what_is_no_answer_is_told(returned):
    outcome = put(returning(*returned), VERIFY).examine(one(EVEN, 0, 0.25, 0.25))
    assert outcome.fault.kind == "crash" and "returned accepted" in outcome.fault.detail


def test_what_rounding_decides_is_apart_and_nothing_else():
    batch = materialise(rows_of(VERIFY, EVEN, EVEN, EVEN, draft=0, coin=[0.25, 0.5, 0.25], last=[0.25, 0.25, 0.5], proposal="one_hot"))
    for e in reference(batch, CONTRACT).values():
        assert e.apart.tolist() == [False, True, True]


def test_a_row_of_nan_is_free_and_no_other():
    batch = materialise(rows_of(VERIFY, [nan, 0.0], EVEN, draft=0, coin=0.25, last=0.25))
    assert all(e.free.tolist() == [True, False] for e in reference(batch, CONTRACT).values())


def test_an_accepted_length_that_only_later_coins_allow_fails():
    """The first of two drafts is rejected for certain: its length is 0, whatever the second's coin."""
    made = rows_of(VERIFY, [0.0, 8.0, 0.0], draft=0, coin=0.9, last=0.5, drafts=2, proposal="one_hot")
    right = put(right_verifier, VERIFY).examine(made)
    assert right.ok
    assert not put(answering(2, [0, 1, 0]), VERIFY).examine(made).ok
    assert not put(answering(1, [0, 0, -1]), VERIFY).examine(made).ok


# ---- kernels that are right


def by_quotient(coin, p, q):
    return coin < p / q


def in_fp64(weights, coin):
    return planted.drawn_by(weights.double(), coin.double())


def normalised_first(weights, coin):
    return planted.drawn_by(weights / weights.sum(-1, keepdim=True), coin)


def by_blocks(weights, coin):
    """Sums of blocks of four first, then within the block: another order of summation."""
    (rows, vocab), blocks = weights.shape, -(-weights.shape[1] // 4)
    split = torch.nn.functional.pad(weights, (0, 4 * blocks - vocab)).view(rows, blocks, 4)
    before = split.sum(-1).cumsum(-1)
    running = ((before - split.sum(-1))[..., None] + split.cumsum(-1)).reshape(rows, 4 * blocks)[:, :vocab]
    passed = (running > (coin * before[:, -1])[:, None]) & (weights > 0)
    last = ((weights > 0) * torch.arange(vocab)).amax(-1)
    return torch.where(passed.any(-1), passed.long().argmax(-1), last)


KERNELS = {
    "plain": right_verifier,
    "p/q": verifier(by_quotient),
    "fp64": verifier(lambda c, p, q: c.double() * q.double() < p.double(), draw=in_fp64),
    "normalised": verifier(draw=normalised_first),
    "blocks": verifier(lambda c, p, q: c < (p / q).clamp(max=1.0), draw=by_blocks),
}


@pytest.mark.parametrize(("law", "dtype", "examples"), [("accuracy", "fp32", 50), ("accuracy", "bf16", 15), ("coin_grid", "fp32", 20)])
@pytest.mark.parametrize("name", KERNELS)
def test_a_correct_kernel_keeps_the_law_whatever_its_algorithm(name, law, dtype, examples):
    found = first_finding(put(KERNELS[name], VERIFY, law, dtype), examples=examples, max_vocab=1100)
    assert found is None, found.text()


def test_columns_that_are_not_used_are_nan():
    seen = []

    def verify(p, q, drafts, coins):
        seen.extend((p, q))
        return right_verifier(p, q, drafts, coins)

    logits = torch.randn(3, 40)[:, ::2]
    inputs = torch.zeros(3, dtype=torch.int64), torch.full((3,), 0.5), torch.full((3,), 0.5)
    OPERATION.call(verify, logits, *inputs)
    for tensor, pad in zip(seen, (3, 5), strict=True):
        assert tensor.stride()[1:] == (20 + pad, 1)
        assert tensor.as_strided((3, pad), (tensor.stride(0), 1), tensor.storage_offset() + 20).isnan().all()
        assert tensor.isfinite().all()
