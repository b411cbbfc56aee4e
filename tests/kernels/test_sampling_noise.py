"""The noise of draws and coins: in torch, on the device and where draws show it, against Python's integers and Random123's vectors."""

from fractions import Fraction
from math import log, log1p

import pytest
import torch

from stabcheck.devices import prepare

DEVICE = prepare("auto")

import triton  # noqa: E402  (its interpreter is chosen above)
import triton.language as tl  # noqa: E402

from stabcheck.kernels import noise_device, sampling_noise  # noqa: E402
from stabcheck.kernels.sampling import sample  # noqa: E402
from stabcheck.kernels.sampling_noise import ACCEPT, DRAFT, NOISE_ERROR, TARGET, coins, exponentials  # noqa: E402
from stabcheck.kernels.speculative import stream  # noqa: E402

inf = float("inf")
MASK = 2**32 - 1
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def long(*values):
    return torch.tensor(values, device=DEVICE)


def philox(counter, key):
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for turn in range(10):
        high_0, low_0 = divmod(c0 * 0xD2511F53, 2**32)
        high_2, low_2 = divmod(c2 * 0xCD9E8D57, 2**32)
        round_0, round_1 = (k0 + turn * 0x9E3779B9) & MASK, (k1 + turn * 0xBB67AE85) & MASK
        c0, c1, c2, c3 = high_2 ^ c1 ^ round_0, low_2, high_0 ^ c3 ^ round_1, low_0
    return c0, c1, c2, c3


def exponential(h, more):
    """E of a word and the 32 bits that refine it."""
    k = min(h, MASK - h)
    w = Fraction(2 * k + 1, 2**33) if k >= 128 else (k + Fraction(2 * more + 1, 2**33)) / 2**32
    return -log(w) if h >= 2**31 else -log1p(-w)


def words_of(seed, position, role, id):
    calls = [philox((id // 4096 * 1024 + id % 1024, position & MASK, position >> 32 & MASK, r), (seed & MASK, seed >> 32 & MASK))
             for r in (role, role + 65536)]  # fmt: skip
    return [call[id // 1024 % 4] for call in calls]


PUBLISHED = {  # Random123's kat_vectors, philox4x32 of 10 rounds
    (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (MASK,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}


@triton.jit
def words_on_device(out, numbers):
    counter = tl.load(numbers) + tl.arange(0, 1)
    words = noise_device.philox(counter, tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3))
    for i in tl.static_range(4):
        tl.store(out + i + tl.arange(0, 1), words[i].to(tl.int64))


@pytest.mark.parametrize("words", PUBLISHED, ids=lambda words: f"{words[0]:x}")
def test_philox_gives_the_published_words_in_torch_and_on_the_device(words):
    assert philox(words[:4], words[4:]) == PUBLISHED[words]
    tensors = [long(w) for w in words]
    assert tuple(int(w) for w in sampling_noise.philox(tuple(tensors[:4]), tuple(tensors[4:]))) == PUBLISHED[words]
    signed = [low + (high << 32) - (high >> 31 << 64) for low, high in (words[1:3], words[4:6])]
    out = long(0, 0, 0, 0)
    words_on_device[(1,)](out, long(words[0], signed[0], words[3], signed[1]))
    assert tuple(out.tolist()) == PUBLISHED[words]


def test_exponentials_are_of_the_documented_words():
    for seed, position, role in [(0, 0, 0), (-1, 2**40 + 9, 1), (2**63 - 1, 2**32 - 1, 65535), (-(2**63), 7, 2)]:
        noise = exponentials(long(seed), long(position), 9000, role)[0]
        for id in (0, 1, 1023, 1024, 2048, 4095, 4096, 8191, 8999):
            assert noise[id].item() == pytest.approx(exponential(*words_of(seed, position, role, id)), rel=1e-14)


def test_exponentials_are_exponential():
    e = exponentials(torch.arange(16, device=DEVICE) - 9, torch.arange(16, device=DEVICE) << 33, 8192).flatten().sort().values
    assert ((e > 0) & e.isfinite()).all()
    assert abs(e.mean().item() - 1) < 5 * len(e) ** -0.5
    uniform = -torch.expm1(-e)
    steps = torch.arange(1, len(e) + 1, device=DEVICE) / len(e)
    assert (uniform - steps).abs().max() < 2 * len(e) ** -0.5  # Kolmogorov and Smirnov's bound of 6.7e-4


@triton.jit
def exponentials_of_words(out, words, more):
    at = tl.arange(0, 1024)
    h, fine = tl.load(words + at).to(tl.uint32), tl.load(more + at).to(tl.uint32)
    k = noise_device.steps(h)
    tl.store(out + at, noise_device.exponential(h, noise_device.refined(noise_device.coarse(k), k, fine)))


def ends():
    """Words at both ends and at the change of precision, and any, with the bits that refine them."""
    h = torch.randint(0, 2**32, (1024,), generator=torch.Generator().manual_seed(0)) >> (torch.arange(1024) % 32)
    more = torch.randint(0, 2**32, (1024,), generator=torch.Generator().manual_seed(1))
    h[512:] = MASK - h[:512]
    h[:8], more[:8] = torch.tensor([0, MASK, 0, MASK, 1, 127, MASK - 127, 127]), torch.tensor([0, 0, MASK, MASK, 0, MASK, MASK, 0])
    h[8:12] = torch.tensor([128, MASK - 128, 2**31, 2**31 - 1])
    h[12:16] = (2**33 + torch.tensor([-4, -2, 1, 3])) // 6  # near w = ⅓
    return h.to(DEVICE), more.to(DEVICE)


def test_both_ends_of_the_noise_are_resolved(monkeypatch):
    h, more = ends()
    wanted = torch.tensor([exponential(*pair) for pair in zip(h.tolist(), more.tolist(), strict=True)], dtype=torch.float64, device=DEVICE)
    assert wanted.min() < 2.0**-64 < 45 < wanted.max() < 46
    monkeypatch.setattr(sampling_noise, "_words", lambda counter, which, seed, position, role: (more if role >= 65536 else h)[None])
    torch.testing.assert_close(exponentials(long(0), long(0), 1024)[0], wanted, rtol=1e-14, atol=0)
    out = torch.empty(1024, device=DEVICE)
    exponentials_of_words[(1,)](out, h, more)
    assert (out.double() * log(2) / wanted - 1).abs().max() < NOISE_ERROR


@triton.jit(do_not_specialize=["role"])  # a role of 1 is a number too
def noise_both_ways(runs, few, ids, seed, position, role, tile):
    lanes = tl.arange(0, 1024)
    words = noise_device.exponentials_of_runs(tile, lanes, tl.load(seed), tl.load(position), role)
    for i in tl.static_range(4):
        tl.store(runs + i * 1024 + lanes, words[i])
    at = tl.arange(0, 128)
    tl.store(few + at, noise_device.exponentials_of_ids(tl.load(ids + at), tl.load(seed), tl.load(position), role))


REFINED = [(7070, 2331), (10373, 3868), (2663, 740), (6060, 1548), (6795, 2972), (11579, 156)]  # positions and ids of seed 7: k < 128


@pytest.mark.parametrize(("seed", "position", "role", "tile"), [(-123456789012345, 5 << 33 | 7, 1, 2), (7, 11579, 0, 0), (7, 2663, 0, 0)])
def test_noise_on_the_device_is_that_of_the_definition(seed, position, role, tile):
    seeds, positions = long(seed), long(position)
    runs, few = torch.empty(4096, device=DEVICE), torch.empty(128, device=DEVICE)
    ids = (torch.arange(128, device=DEVICE) * 32 + torch.arange(128, device=DEVICE) % 32).int()
    if seed == 7:
        ids[0] = dict(REFINED)[position]
    noise_both_ways[(1,)](runs, few, ids + tile * 4096, seeds, positions, role, tile)
    exact = exponentials(seeds, positions, 4096 * (tile + 1), role)[0, tile * 4096 :]
    assert (runs.double() * log(2) / exact - 1).abs().max() < NOISE_ERROR
    assert (few.double() * log(2) / exact[ids.long()] - 1).abs().max() < NOISE_ERROR


@pytest.mark.parametrize("top_k", (0, 2))
def test_draws_change_sides_where_the_noise_says(top_k):
    """Token a races b, whose logit is just short of log E_b − log E_a, or just past it: even where the noise was refined."""
    a = long(*[id for _, id in REFINED])
    keys = long(*[7] * 6), long(*[position for position, _ in REFINED])
    words = [words_of(7, position, 0, id)[0] for position, id in REFINED]
    assert max(min(h, MASK - h) for h in words) < 128
    assert {h >> 31 for h in words} == {0, 1}
    b = (a + 1500) % 4096
    log_e = exponentials(*keys, 4096).log()
    even = (log_e.gather(1, b[:, None]) - log_e.gather(1, a[:, None]))[:, 0]
    room = 2 * NOISE_ERROR + 2.0**-21 * even.abs()
    for side, winner in ((-1, a), (1, b)):
        logits = torch.full((6, 4096), -inf, device=DEVICE).scatter_(1, a[:, None], 0.0)
        logits.scatter_(1, b[:, None], (even + side * room).float()[:, None])
        ids = sample(logits, torch.ones(6, device=DEVICE), long(*[top_k] * 6) if top_k else None, None, None, *keys)
        assert torch.equal(ids, winner)


# seeds and ids whose word is 0 at position 5
ZERO = [(2020416, 2336), (2845786, 3651), (3459769, 3949), (3969686, 2497), (4756472, 1260), (5046362, 1271)]


@pytest.mark.parametrize("vocab", (130, 4096, 8000))
def test_a_word_of_zero_beyond_the_row_or_under_a_mask_hides_no_other_token(vocab):
    """0 · exp(∞) would be NaN, which the interpreter's minimum keeps: a tile lost its winner."""
    seed, position = long(*[seed for seed, _ in ZERO]), long(*[5] * 6)
    assert all(words_of(seed, 5, 0, id)[0] == 0 for seed, id in ZERO)
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for row, (_, id) in enumerate(ZERO):
        logits[row, id:][:1] = -inf
    scores = logits.double() - exponentials(seed, position, vocab).log()
    ids = sample(logits, torch.ones(6, device=DEVICE), None, None, None, seed, position)
    assert torch.equal(ids, scores.argmax(-1))


# ---- coins and drafts


def test_coins_are_uniform_and_have_noise_of_their_own():
    seed, position = torch.arange(512, device=DEVICE) - 9, torch.arange(512, device=DEVICE) << 33
    u = coins(seed, position, 64)
    assert (u.dtype, u.shape) == (torch.float32, (512, 64))
    assert ((u >= 0) & (u < 1)).all()
    assert torch.equal(u * 2**24, (u * 2**24).round())
    exact = u.double().flatten().sort().values
    assert (exact - (torch.arange(1 << 15, device=DEVICE) + 0.5) / (1 << 15)).abs().max() < 2 / 181  # Kolmogorov and Smirnov: 5e-4
    assert torch.equal(coins(seed[7:8], position[7:8], 3), u[7:8, :3])  # whatever the batch and the count
    assert len({TARGET, DRAFT, ACCEPT}) == 3
    for role in (TARGET, DRAFT):
        other = -torch.expm1(-exponentials(seed, position, 64, role))
        for noise in (other, 1 - other):
            assert ((u - noise).abs() < 2.0**-20).double().mean() < 1e-3
        assert abs(torch.corrcoef(torch.stack([u.double().flatten(), other.flatten()]))[0, 1]) < 0.03


def test_a_stream_draws_drafts_with_the_noise_of_their_positions_and_coins_apart():
    q = torch.softmax(torch.randn(4, 3, 130, generator=torch.Generator().manual_seed(2)) * 2, -1).to(DEVICE)
    seed, position = torch.arange(4, device=DEVICE), torch.arange(4, device=DEVICE) + 2**32 - 2
    drafts, u = stream(q, seed, position)
    assert (drafts.dtype, drafts.shape) == (torch.int64, (4, 3))
    scores = torch.stack([q[:, j].double() / exponentials(seed, position + j, 130, DRAFT) for j in range(3)], 1)
    assert (scores.gather(2, drafts[..., None])[..., 0] >= scores.amax(-1) * (1 - 1e-5)).all()
    assert torch.equal(u, coins(seed, position, 4))
    assert torch.equal(stream(q[:1].expand(4, 3, 130), seed, position)[0], stream(q[:1].repeat(4, 1, 1), seed, position)[0])
    none, one = stream(q[:, :0], seed, position)
    assert (none.shape, none.dtype, one.shape) == ((4, 0), torch.int64, (4, 1))
