"""Chain verification against a plain Python chain: coins at both ends, one-hot drafts, zeros, no residual, strides.

Vocab sizes are one tile of 4096, read by one program, and more, of which sums come first. Probabilities are multiples of powers of two,
so that sums are exact and one id is right; where they are not, ids next to it by rounding are too.
"""

import pytest
import torch
from by_hand import guarded_memory

from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels.speculative import verify_speculative  # noqa: E402  (Triton's interpreter is chosen above)

nan = float("nan")
LAST = 1 - 2.0**-24  # the largest coin
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def generator(seed):
    return torch.Generator().manual_seed(seed)


def dyadic(*shape, seed=0, zeros=0.5):
    """Rows of multiples of 2^-24 that sum to 1, many of them 0."""
    weights = (2 * torch.randn(shape, generator=generator(seed))).exp()
    weights = torch.where(torch.rand(shape, generator=generator(seed + 1)) < zeros, 0.0, weights).double()
    counts = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-9) * 2**24).floor()
    counts[..., -1] += 2**24 - counts.sum(-1)
    return (counts * 2.0**-24).float().to(DEVICE)


def by_hand(p, q, drafts, coin):
    """(accepted, ids) of one request, in Python's floats, which are exact on multiples of 2^-24."""
    p, q, drafts, coin = (None if t is None else t.tolist() for t in (p, q, drafts, coin))
    vocab, chain = len(p[0]), []
    weights = p[len(drafts)]
    for j, draft in enumerate(drafts):
        there = 0 <= draft < vocab
        if there and coin[j] * (1.0 if q is None else q[j][draft]) < p[j][draft]:
            chain.append(draft)
            continue
        mine = [float(id == draft) for id in range(vocab)] if q is None else q[j]
        weights = [max(a - b, 0.0) for a, b in zip(p[j], mine, strict=True)]
        weights = weights if any(weights) else p[j]
        break
    goal, running, token = coin[-1] * sum(weights), 0.0, None
    for id, weight in enumerate(weights):
        running += weight
        if weight > 0 and running > goal:
            token = id
            break
    if token is None:
        token = max((id for id, weight in enumerate(weights) if weight > 0), default=0)
    return len(chain), [*chain, token, *[-1] * (len(drafts) - len(chain))]


def wrong_chains(got, p, q, drafts, coin):
    accepted, ids = got
    wanted = [by_hand(p[r], None if q is None else q[r], drafts[r], coin[r]) for r in range(len(p))]
    return [r for r, chain in enumerate(wanted) if (accepted[r].item(), ids[r].tolist()) != chain]


def chains(vocab, drafts=3, requests=8, seed=0, zeros=0.5):
    """Arguments: drafts that q gives probability, coins in quarters and at both ends."""
    p, q = dyadic(requests, drafts + 1, vocab, seed=seed, zeros=zeros), dyadic(requests, drafts, vocab, seed=seed + 2, zeros=zeros)
    ids = (q * torch.rand(q.shape, generator=generator(seed)).to(DEVICE)).argmax(-1) if drafts else q.new_empty(requests, 0).long()
    coin = torch.randint(0, 4, (requests, drafts + 1), generator=generator(seed)).float().to(DEVICE) / 4
    coin[0], coin[1], coin[2, -1], coin[3, -1] = 0.0, LAST, LAST, 0.0
    return p, q, ids, coin


@pytest.mark.parametrize("drafts", (0, 1, 3))
@pytest.mark.parametrize("vocab", (1, 2, 5, 130, 4096, 4097, 9000))
def test_chains_are_those_of_plain_python(vocab, drafts):
    p, q, ids, coin = chains(vocab, drafts)
    got = verify_speculative(p, q, ids, coin)
    assert wrong_chains(got, p, q, ids, coin) == []
    assert [(t.dtype, t.shape) for t in got] == [(torch.int64, (8,)), (torch.int64, (8, drafts + 1))]
    assert wrong_chains(verify_speculative(p, None, ids, coin), p, None, ids, coin) == []


def test_another_chain_is_noticed():
    p, q, ids, coin = chains(130)
    accepted, tokens = verify_speculative(p, q, ids, coin)
    tokens[5, accepted[5]] += 1
    accepted[2] += 1
    assert wrong_chains((accepted, tokens), p, q, ids, coin) == [2, 5]


def test_chains_of_all_lengths_occur():
    p, q, ids, coin = chains(6, requests=40, zeros=0.2)
    assert set(verify_speculative(p, q, ids, coin)[0].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("vocab", (130, 4097))
def test_equal_distributions_accept_all_and_residuals_of_zero_fall_back_to_p(vocab):
    p, _, _, coin = chains(vocab, zeros=0.2)
    q = p[:, :3].contiguous()
    ids = q.argmax(-1)
    accepted, tokens = verify_speculative(p, q, ids, coin)
    assert accepted.tolist() == [3] * 8
    assert torch.equal(tokens[:, :3], ids)
    unlikely = torch.where(q == 0, 1.0, 0.0).argmax(-1)  # p = q = 0: rejected even by a coin of 0, and nothing is left
    got = verify_speculative(p, q, unlikely, coin)
    assert got[0].tolist() == [0] * 8
    assert wrong_chains(got, p, q, unlikely, coin) == []


@pytest.mark.parametrize("vocab", (4, 4100))
def test_coins_at_both_ends(vocab):
    p, q = torch.zeros(1, 2, vocab, device=DEVICE), torch.zeros(1, 1, vocab, device=DEVICE)
    p[..., 1], p[..., 2], q[..., 1], q[..., 3] = 0.25, 0.75, 0.5, 0.5

    def verified(draft, *coin):
        accepted, ids = verify_speculative(p, q, torch.tensor([[draft]], device=DEVICE), torch.tensor([coin], device=DEVICE))
        return accepted.item(), ids[0].tolist()

    assert verified(1, 0.0, 0.0) == (1, [1, 1])  # the first id with a probability, not id 0
    assert verified(1, 0.0, LAST) == (1, [1, 2])  # the last with one, not the last id
    assert verified(1, 0.5, 0.0) == (0, [2, -1])  # coin · q < p is strict; the residual is at 2 alone
    assert verified(1, 0.5 - 2.0**-25, LAST) == (1, [1, 2])
    assert verified(3, 0.0, 0.0) == (0, [2, -1])  # p = 0
    assert verified(2, LAST, 0.5) == (1, [2, 2])  # q = 0 < p
    assert verified(0, 0.0, LAST) == (0, [2, -1])  # p = q = 0
    assert verified(-1, 0.0, 0.0) == verified(vocab, 0.0, 0.0) == (0, [2, -1])  # no column


@pytest.mark.parametrize("vocab", (4, 4100))
def test_one_hot_drafts_leave_p_without_them(vocab):
    p = torch.zeros(3, 2, vocab, device=DEVICE)
    p[..., 1], p[..., 3] = 0.25, 0.75
    p[2, 0] = 0.0
    p[2, 0, 1] = 1.0
    drafts, coin = torch.tensor([[1], [1], [1]], device=DEVICE), torch.tensor([[0.25, 0.0], [0.125, 0.0], [LAST, 0.0]], device=DEVICE)
    accepted, ids = verify_speculative(p, None, drafts, coin)
    assert (accepted.tolist(), ids.tolist()) == ([0, 1, 1], [[3, -1], [1, 1], [1, 1]])


@pytest.mark.parametrize("vocab", (5, 4097))
def test_sums_that_are_rounded_still_find_an_id_with_a_weight(vocab):
    p = torch.softmax(torch.randn(6, 1, vocab, generator=generator(3)) * 4, -1)
    p[..., vocab // 2 :] = 0.0
    coin = torch.tensor([[0.0], [0.1], [0.5], [0.9], [LAST], [LAST]])
    _, ids = verify_speculative(p.to(DEVICE), None, torch.empty(6, 0, dtype=torch.int64, device=DEVICE), coin.to(DEVICE))
    w = p[:, 0].double()
    at, after = ids[:, :1].cpu(), w.cumsum(-1)
    reached, total = after.gather(1, at), w.sum(-1, keepdim=True)
    assert (w.gather(1, at) > 0).all()
    assert (reached >= (coin - 3e-6) * total).all()
    assert (reached - w.gather(1, at) <= (coin + 3e-6) * total).all()


LAYOUTS = {
    "columns apart": lambda t: torch.stack([t, t + nan], -1)[..., 0],
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "padded": lambda t: torch.nn.functional.pad(t, (3, 5), value=nan)[..., 3:-5],
    "positions first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vocab", (144, 4112))
def test_strides_change_nothing(vocab, layout):
    p, q, ids, coin = chains(vocab)
    view = LAYOUTS[layout]
    got = verify_speculative(view(p), view(q), ids.t().contiguous().t(), coin.t().contiguous().t())
    assert wrong_chains(got, p, q, ids, coin) == []


@pytest.mark.parametrize("vocab", (5, 4097))
def test_expanded_probabilities_a_slot_and_a_nan_next_door_change_nothing(vocab):
    p, q, ids, coin = chains(vocab)
    expanded = p[:1].expand(8, -1, -1), q[:1, :1].expand(8, 3, -1)
    assert wrong_chains(verify_speculative(*expanded, ids, coin), *expanded, ids, coin) == []
    accepted, tokens = verify_speculative(p, q, ids, coin)
    spoilt, others = p.clone(), [5, 0, 7, 2]
    spoilt[1], spoilt[3, :, 0] = nan, nan
    got_accepted, got = verify_speculative(spoilt, q, ids, coin)
    assert torch.equal(got[others], tokens[others])
    assert ((got >= -1) & (got < vocab)).all()
    assert (got.gather(1, got_accepted[:, None]) >= 0).all()
    alone = verify_speculative(p[others], q[others], ids[others], coin[others])
    assert torch.equal(alone[0], accepted[others])
    assert torch.equal(alone[1], tokens[others])


@pytest.mark.parametrize("drafts", (0, 2, 3))
@pytest.mark.parametrize("vocab", (5, 4097))
def test_nothing_is_written_outside(vocab, drafts):
    arguments = chains(vocab, drafts)
    before = [t.clone() for t in arguments]
    with guarded_memory():
        got = verify_speculative(*arguments)
    assert wrong_chains(got, *arguments) == []
    assert all(torch.equal(a, b) for a, b in zip(before, arguments, strict=True))


def test_no_requests_give_no_chains():
    accepted, ids = verify_speculative(*(t[:0] for t in chains(5)))
    assert (accepted.shape, ids.shape, accepted.dtype, ids.dtype) == ((0,), (0, 4), torch.int64, torch.int64)


# ---- wrong use

P, Q = torch.full((2, 3, 8), 0.125, device=DEVICE), torch.full((2, 2, 8), 0.125, device=DEVICE)
D, C = torch.zeros(2, 2, dtype=torch.int64, device=DEVICE), torch.zeros(2, 3, device=DEVICE)
WRONG = {
    "target_probs have shape [2, 8]; pass [requests, drafts + 1, vocab]": (P[:, 0], Q, D, C),
    "target_probs have shape [2, 0, 8]; pass [requests, drafts + 1, vocab]": (P[:, :0], Q, D, C),
    "target_probs have a vocab of 0; pass 1 to": (P[..., :0], Q, D, C),
    "target_probs has dtype torch.float64; pass target_probs.to(torch.float32)": (P.double(), Q, D, C),
    "draft_probs has shape [2, 3, 8] but target_probs have [2, 3, 8]; pass shape [2, 2, 8]": (P, P, D, C),
    "draft_probs has dtype torch.float16; pass draft_probs.to(torch.float32)": (P, Q.half(), D, C),
    "draft_ids has shape [2, 3] but target_probs have [2, 3, 8]; pass shape [2, 2]": (P, Q, C.long(), C),
    "draft_ids has dtype torch.int32; pass draft_ids.to(torch.int64)": (P, None, D.int(), C),
    "coins has shape [2, 2] but target_probs have [2, 3, 8]; pass shape [2, 3]": (P, Q, D, C[:, :2]),
    "coins has dtype torch.float64; pass coins.to(torch.float32)": (P, None, D, C.double()),
    "coins is on meta but target_probs are on": (P, Q, D, C.to("meta")),
    "draft_ids is on meta but target_probs are on": (P, Q, D.to("meta"), C),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    with pytest.raises(UsageError) as error:
        verify_speculative(*WRONG[message])
    assert message in str(error.value)
