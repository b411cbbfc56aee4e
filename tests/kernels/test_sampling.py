"""Sampling: ids are the argmax of z − log E in fp64 over what is kept, on each path; one id per key wherever its row is."""

import pytest
import torch
from by_hand import filters_of, guarded_memory, hard_cases, judged

from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels.sampling import sample, sample_pooled  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.sampling_noise import NOISE_ERROR, exponentials  # noqa: E402

inf, nan = float("inf"), float("nan")
ROUTES = ("auto", "general")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def long(*values):
    return torch.tensor(values, device=DEVICE)


def keys_of(rows):
    """Seeds and positions of some rows, with high words and signs."""
    return torch.arange(rows, device=DEVICE) * 0x1_2345_6789 - 3, torch.arange(rows, device=DEVICE) * 2**33 + 5


def batch(vocab, rows=None, dtype=torch.float32):
    logits, settings = hard_cases(vocab)
    return logits[:rows].to(dtype).to(DEVICE), filters_of(*settings[:rows], device=DEVICE)


def illegal(ids, logits, filters, noise):
    """Rows whose id is not kept, or not the one with the largest z − log E, up to the errors of both."""
    wrong = []
    for row, (id, x, e) in enumerate(zip(ids.tolist(), logits.double(), noise, strict=True)):
        settings = [values[row].item() for values in filters]
        if (x == -inf).all() or settings[0] == 0:
            right = id == x.argmax().item()
        else:
            by_hand = judged(x, *settings)
            score = by_hand.z - e.log()
            room = 2 * NOISE_ERROR + 2.0**-21 * by_hand.z[id].abs()
            right = by_hand.may[id] and score[id] >= score[by_hand.must].max() - room
        if not right:
            wrong.append(row)
    return wrong


# ---- draws


@pytest.mark.parametrize(
    ("vocab", "dtype", "route", "rows"),
    [
        *((v, torch.float32, "auto", None) for v in (1, 5, 128, 130)),
        (4097, torch.float32, "auto", 10),
        (4112, torch.bfloat16, "auto", 3),
        (130, torch.float16, "auto", 7),
        (5, torch.float32, "general", 6),
        (130, torch.float32, "general", 6),
        (4100, torch.float32, "general", 3),
    ],
    ids=str,
)
def test_the_id_is_the_argmax_over_what_is_kept(vocab, dtype, route, rows):
    logits, filters = batch(vocab, rows, dtype)
    keys = keys_of(len(logits))
    ids = sample(logits, *filters, *keys, route=route)
    assert (ids.dtype, ids.shape) == (torch.int64, logits.shape[:1])
    assert illegal(ids, logits, filters, exponentials(*keys, vocab)) == []


def test_another_id_is_noticed():
    logits, filters = batch(130, 3)
    keys = keys_of(3)
    ids = sample(logits, *filters, *keys)
    ids[1] = (ids[1] + 1) % 130
    assert illegal(ids, logits, filters, exponentials(*keys, 130)) == [1]


@pytest.mark.parametrize("vocab", (5, 130, 4096, 9000))
def test_without_filters_the_id_is_the_argmax_over_all(vocab):
    rows = 6
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    filters = filters_of(*((t, 0, 1.0, 0.0) for t in (1.0, 0.5, 2.0, 1e-40, 100.0, 0.0)), device=DEVICE)
    keys = keys_of(rows)
    ids = sample(logits, filters[0], None, None, None, *keys)
    assert illegal(ids, logits, filters, exponentials(*keys, vocab)) == []
    assert torch.equal(ids, sample(logits, *filters, *keys))  # off, value by value
    assert len(set(ids.tolist())) > 2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("vocab", (5, 4100))
def test_rows_without_a_distribution_draw_some_id_and_greedy_ones_the_first_maximum(vocab, route):
    logits = torch.zeros(6, vocab, device=DEVICE)
    logits[0], logits[1, -1], logits[2], logits[3, 0] = nan, nan, -inf, inf
    logits[4, 2:] = 1.0
    logits[5, 1:] = -0.0
    t = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], device=DEVICE)
    for top_k in (None, t.long() * 3):
        ids = sample(logits, t, top_k, None, None, *keys_of(6), route=route).tolist()
        assert all(0 <= id < vocab for id in ids)
        assert (ids[2], ids[4:]) == (0, [2, 0])


# ---- one id per key


@pytest.mark.parametrize("vocab", (100, 130, 4112))
def test_a_key_draws_equally_in_any_slot_batch_layout_and_pool(vocab):
    logits, filters = batch(vocab, 4)
    keys = keys_of(4)
    parameters = [*filters, *keys]
    whole = sample(logits, *parameters)
    order = [3, 0]
    assert torch.equal(sample(logits[order], *(p[order] for p in parameters)), whole[order])
    assert torch.equal(sample(logits[1:2], *(p[1:2] for p in parameters)), whole[1:2])
    assert torch.equal(sample(logits.t().contiguous().t(), *(torch.stack([p, p], 1)[:, 0] for p in parameters)), whole)
    longer = [torch.cat([p.flip(0), p[:3]]) for p in parameters]  # a pool of 7
    assert torch.equal(sample_pooled(logits[order], *longer, long(0, 3)), whole[order])
    one = [p[2:3] for p in parameters]  # a pool of 1
    assert torch.equal(sample_pooled(logits[2:3].expand(2, -1), *one, long(0, 0)), whole[2:3].expand(2))


def test_a_pool_may_leave_filters_out():
    logits = torch.randn(3, 130, device=DEVICE)
    t, (seed, position), index = torch.ones(2, device=DEVICE), keys_of(2), long(1, 0, 1)
    top_p = torch.tensor([0.5, 0.9], device=DEVICE)
    pooled = sample(logits, t, None, top_p, None, seed, position, index=index)
    assert torch.equal(pooled, sample(logits, t[index], None, top_p[index], None, seed[index], position[index]))


@pytest.mark.parametrize("vocab", (5, 130, 4100))
def test_both_routes_draw_alike_and_none_is_off(vocab):
    logits, filters = batch(vocab, 4)
    keys = keys_of(4)
    two = [t[:2] for t in (logits, *filters, *keys)]
    assert torch.equal(sample(*two), sample(*two, route="general"))
    off = filters_of(*((0.7, k, p, low) for k, p, low in [(0, 1, 0), (-1, 2, -1), (vocab, inf, -0.0), (2**40, 1, 0)]), device=DEVICE)
    assert torch.equal(sample(logits, off[0], None, None, None, *keys), sample(logits, *off, *keys))


@pytest.mark.parametrize("vocab", (100, 4096))
def test_seed_position_and_role_all_tell_in_all_of_their_bits(vocab):
    seeds = long(1, 2, 1 + 2**32, 1 - 2**63, 1, 1, 1)
    positions = long(0, 0, 0, 0, 1, 2**32, 2**62)
    logits, t = torch.zeros(7, vocab, device=DEVICE), torch.ones(7, device=DEVICE)
    drawn = []
    for role in (0, 2, 65535):
        ids = sample(logits, t, None, None, None, seeds, positions, role=role)
        assert torch.equal(ids, exponentials(seeds, positions, vocab, role).argmin(1))
        drawn += ids.tolist()
    assert len(set(drawn)) > 15  # of 21


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("vocab", (5, 130, 4100))
def test_nothing_is_written_outside(vocab, route):
    logits, filters = batch(vocab, 2)
    keys = keys_of(2)
    before = [t.clone() for t in (logits, *filters, *keys)]
    wanted = sample(logits, *filters, *keys, route=route)
    with guarded_memory():
        ids = sample(logits, *filters, *keys, route=route)
    assert torch.equal(ids, wanted)
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, *filters, *keys), strict=True))


@pytest.mark.parametrize("route", ROUTES)
def test_no_rows_draw_nothing(route):
    none = torch.empty(0, device=DEVICE)
    ids = sample(torch.empty(0, 5, device=DEVICE), none, None, none, none, none.long(), none.long(), route=route)
    assert (ids.shape, ids.dtype) == ((0,), torch.int64)


# ---- wrong use

X, T, S = torch.zeros(4, 8, device=DEVICE), torch.ones(4, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
RIGHT = {"logits": X, "temperature": T, "top_k": None, "top_p": None, "min_p": None, "seed": S, "position": S}
WRONG = {
    "logits have shape [4]; pass [rows, vocab], e.g. logits.reshape(": {"logits": T},
    "logits have a vocab of 0; pass 1 to": {"logits": X[:, :0]},
    "logits have dtype torch.int64; pass torch.float32": {"logits": X.long()},
    "temperature has shape [3] but logits have 4 rows; pass one per row, i.e. shape [4]": {"temperature": T[:3]},
    "temperature is on meta but logits are on": {"temperature": T.to("meta")},
    "top_k has dtype torch.int32; pass top_k.to(torch.int64)": {"top_k": S.int()},
    "top_p has dtype torch.float64; pass top_p.to(torch.float32)": {"top_p": T.double()},
    "min_p has shape [1] but logits have 4 rows": {"min_p": T[:1]},
    "seed has dtype torch.int32; pass seed.to(torch.int64)": {"seed": S.int()},
    "position has shape [4, 1] but logits have 4 rows": {"position": S[:, None]},
    "unknown route 'fast'; use 'auto', 'general'": {"route": "fast"},
    "role is -1; pass 0 to 65535": {"role": -1},
    "role is 65536; pass 0 to 65535": {"role": 65536},
    "index has shape [3] but logits have 4 rows": {"index": S[:3]},
    "index has dtype torch.int32; pass index.to(torch.int64)": {"index": S.int()},
    "temperature has shape [0]; pass the pool's, one per request": {"index": S, "temperature": T[:0]},
    "temperature has shape []; pass the pool's": {"index": S, "temperature": T[0]},
    "seed has shape [3] but temperature has [4]; pass the parameters of one pool": {"index": S, "seed": S[:3]},
    "top_k is torch.int32 on": {"index": S, "top_k": S.int()},
    "position is torch.int64 on meta; pass position.to(torch.int64) on the logits' device": {"index": S, "position": S.to("meta")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    with pytest.raises(UsageError) as error:
        sample(**RIGHT | WRONG[message])
    assert message in str(error.value)


@pytest.mark.parametrize("bad", (-1, 4))
def test_an_index_outside_the_pool_is_refused_where_that_costs_nothing(bad):
    index = S.clone()
    index[2] = bad
    if DEVICE == "cpu":
        with pytest.raises(UsageError, match=rf"index has values from {min(bad, 0)} to {max(bad, 0)} but the pool has 4 requests"):
            sample(**RIGHT | {"index": index})
    else:
        assert torch.equal(sample(**RIGHT | {"index": index}), sample(**RIGHT | {"index": index.clamp(0, 3)}))
