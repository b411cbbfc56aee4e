"""Filters, samplers and verifiers in plain torch: right ones, for every policy, and each of the others wrong in one way.

A wrong filter is the right one with a function put upon one of its steps, as `filtered(of_keep=…)` says; so is a wrong sampler, and a
wrong verifier.
"""

from functools import partial

import torch
from hypothesis import HealthCheck, Phase, given, settings
from planted import recipe_of, trial

from stabcheck.findings import Broken
from stabcheck.operations import operation
from stabcheck.operations.filters import FILTER_POLICIES
from stabcheck.strategies import drawn, space_for

inf = float("inf")
PROBS, SAMPLE, VERIFY = "filtered_probs", "sample", "verify_speculative"
DEFAULTS = {name: answers[0] for name, answers in FILTER_POLICIES.items()}
WRAP = 1 << 64


# ---- filters


def same(values, *_):
    return values


class Row:
    """Rows sorted by logit, the lowest id first among equals, in fp32: order, x, z, e [R, V], and how many are at least as large."""

    def __init__(self, logits, t):
        x = logits.float() + 0.0
        self.x, self.order = x.sort(dim=-1, descending=True, stable=True)
        self.z = (self.x - self.x[:, :1]) / torch.where(t == 0, 1.0, t)[:, None]
        self.e = self.z.exp()
        self.rank = torch.arange(x.shape[1]).expand_as(x)
        self.ends = torch.searchsorted((-self.x).contiguous(), (-self.x).contiguous(), right=True)

    def end(self, n, ties):
        """n [R, 1], or behind the last that ties with place n − 1."""
        return self.ends.gather(1, n - 1).clamp(min=1) if ties == "keep_all" else n

    def by_id(self, values):
        return torch.empty_like(values).scatter_(1, self.order, values)


def nucleus_of(row, n, p, including, of_mass=same):
    """[R, 1] how many top-p keeps of the first n, before the question of ties."""
    inside = row.rank < n
    e = torch.where(inside, row.e, 0.0)
    running, whole = e.cumsum(-1), of_mass(e.sum(-1, keepdim=True), row, n)
    inside &= (running <= p * whole) if including else (running - e < p * whole)
    return (inside * (row.rank + 1)).amax(-1, keepdim=True).clamp(min=1)


def counts(row, k, p, min_p, of_min_p=None, of_mass=same, **policies):
    """[R, 1] how many of each filter alone and of all: (top-k, top-p, all)."""
    policy, vocab = DEFAULTS | policies, row.x.shape[1]
    k, p, min_p = k[:, None], p[:, None], min_p[:, None]
    by_k = row.end(torch.where((k <= 0) | (k >= vocab), vocab, k), policy["top_k_ties"])
    enough = of_min_p(row, min_p) if of_min_p else row.e >= min_p
    by_min_p = torch.where(min_p <= 0, vocab, (enough | (row.rank == 0)).sum(-1, keepdim=True))
    base = {"top_k, top_p, min_p": by_k, "top_k & top_p, min_p": torch.full_like(by_k, vocab)}.get(policy["order"], by_k.minimum(by_min_p))
    by_p = row.end(nucleus_of(row, base, p, policy["crossing"] == "dropped", of_mass), policy["top_p_ties"])
    by_p = torch.where(p >= 1, vocab, by_p)
    return by_k, by_p, by_k.minimum(by_p).minimum(by_min_p)


def kept(row, t, k, p, min_p, **how):
    """[R, V] bool, by place. Of the ties that cross p, any_id keeps the highest ids."""
    by_k, by_p, n = counts(row, k, p, min_p, **how)
    n = torch.where((t == 0)[:, None], 1, n)
    keep = row.rank < n
    if how.get("top_p_ties") == "any_id":
        edge = row.x.gather(1, n - 1)
        ties = (row.x == edge) & (row.rank < by_k)
        short = (keep & ties).sum(-1, keepdim=True)
        from_behind = ties.flip(-1).cumsum(-1).flip(-1)
        keep = torch.where(((by_p == n) & (t != 0)[:, None]), (keep & ~ties) | (ties & (from_behind <= short)), keep)
    return keep


def filtered(of_keep=same, of_probs=same, of_inputs=None, **how):
    """A kernel of filtered_probs for some policies, right unless something is put upon its inputs, its keep-set or its probabilities."""

    def kernel(logits, t, k, p, min_p):
        if of_inputs:
            t, k, p, min_p = of_inputs(t, k, p, min_p)
        row = Row(logits, t)
        keep = of_keep(kept(row, t, k, p, min_p, **how), row, k)
        e = torch.where(keep, row.e, 0.0)
        probs = of_probs(e / e.sum(-1, keepdim=True), row, keep)
        return row.by_id(probs.masked_fill((logits == -inf).all(-1, keepdim=True), 0.0))

    return kernel


right_filter = filtered()


def swapped(keep, row, k):
    """The last of a row in place of the last that is kept."""
    return keep.gather(1, torch.where(keep.sum(-1, keepdim=True) < row.x.shape[1], row.rank.roll(1, -1), row.rank))


def without_the_first(keep, row, k):
    return keep & ((row.rank > 0) | (keep.sum(-1, keepdim=True) == 1))


def linear_search(keep, row, k):
    """Eighteen halvings of the span of the logits, for k alone (SA16)."""
    low, high = row.x.masked_fill(row.x == -inf, inf).amin(-1, keepdim=True), row.x[:, :1]
    for _ in range(18):
        middle = low / 2 + high / 2
        enough = (row.x >= middle).sum(-1, keepdim=True) >= k[:, None]
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    decides = (keep.sum(-1) == k)[:, None]
    return torch.where(decides, row.x >= low, keep)


def switched_on_for_all(t, k, p, min_p):
    """One row with a nucleus, and rows without one have theirs at 1 − 2^-10."""
    return t, k, torch.where((p < 1).any(), p.clamp(max=1 - 2.0**-10), p), min_p


# ---- filters as libraries have them; all but the last divide by T before anything else


def _masked(scores, drop, on):
    return scores.masked_fill(drop & on[:, None], -inf)


def _ascending_top_p(scores, p):
    """Drops, from the small end, what brings the sum to 1 − p; of ties, by where the sort put them."""
    ascending, order = scores.sort(dim=-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p[:, None]
    drop[:, -1:] = False
    return _masked(scores, torch.empty_like(drop).scatter_(1, order, drop), p < 1)


def _top_k(scores, k):
    vocab = scores.shape[1]
    at = torch.where((k <= 0) | (k >= vocab), vocab, k)[:, None] - 1
    return scores.masked_fill(scores < scores.sort(dim=-1, descending=True).values.gather(1, at), -inf)


def _min_p(scores, min_p):
    probs = scores.softmax(-1)
    return _masked(scores, probs < min_p[:, None] * probs.amax(-1, keepdim=True), min_p > 0)


def _library(scores, logits, t):
    one_hot = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).float()
    probs = torch.where((t == 0)[:, None], one_hot, scores.softmax(-1))
    return probs.masked_fill((logits == -inf).all(-1, keepdim=True), 0.0)


def hf(logits, t, k, p, min_p):
    scores = logits.float() / torch.where(t == 0, 1.0, t)[:, None]
    return _library(_min_p(_ascending_top_p(_top_k(scores, k), p), min_p), logits, t)


def vllm(logits, t, k, p, min_p):
    scores = logits.float() / torch.where(t == 0, 1.0, t)[:, None]
    return _library(_ascending_top_p(_top_k(_min_p(scores, min_p), k), p), logits, t)


def flashinfer(logits, t, k, p, min_p, joint=False):
    """Pivots on probabilities: all that are as large as the pivot are kept."""
    whole = ((logits.float() - logits.float().amax(-1, keepdim=True)) / torch.where(t == 0, 1.0, t)[:, None]).softmax(-1)
    of_k = torch.where(_top_k(whole, k) > -inf, whole, 0.0)
    of_k = whole if joint else of_k / of_k.sum(-1, keepdim=True)
    falling = of_k.sort(dim=-1, descending=True).values
    n = (falling.cumsum(-1) - falling < p[:, None]).sum(-1, keepdim=True).clamp(min=1)
    keep = ((of_k >= falling.gather(1, n - 1)) | (p >= 1)[:, None]) & (_top_k(whole, k) > -inf)
    return _library(_min_p(whole.log().masked_fill(~keep, -inf), min_p), logits, t)


LIBRARIES = {"hf": hf, "vllm": vllm, "flashinfer": flashinfer, "flashinfer_joint": partial(flashinfer, joint=True)}


# ---- noise


def _mixed(h):
    """splitmix64's last steps, in wrapping arithmetic."""

    def down(x, n):
        return (x >> n) & ((1 << (64 - n)) - 1)

    h = (h ^ down(h, 30)) * (0xBF58476D1CE4E5B9 - WRAP)
    h = (h ^ down(h, 27)) * (0x94D049BB133111EB - WRAP)
    return h ^ down(h, 31)


GOLDEN = 0x9E3779B97F4A7C15 - WRAP


def noise(seed, position, vocab, role=0):
    """[R, V] exponential variates of (seed, position, role), of 53 random bits."""
    key = _mixed(_mixed(seed.long() + 1) * 3 + _mixed(position.long() * 7 + role))
    bits = _mixed(key[:, None] + GOLDEN * torch.arange(1, vocab + 1))
    return -((((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2.0**53).log()


NOISE = {"noise": noise, "noise_error": 2.0**-22}


# ---- samplers


def best(score, order):
    """The lowest id among the best scores."""
    at_best = score == score.amax(-1, keepdim=True)
    return torch.where(at_best, order, order.shape[1] - 1).amin(-1)


def sampler(of_noise=noise, of_keep=same, of_ids=same, by_place=False, **how):
    """A kernel of sample: argmax of z − log E over what is kept."""

    def kernel(logits, t, k, p, min_p, seed, position):
        if not len(logits):
            return torch.zeros(0, dtype=torch.int64)
        row, vocab = Row(logits, t), logits.shape[1]
        variates = of_noise(seed, position, vocab).float()
        keep = of_keep(kept(row, t, k, p, min_p, **how), row, k) & (row.x > -inf)
        score = row.z - (variates if by_place else variates.gather(1, row.order)).log()
        score = torch.where(keep, score, -inf).nan_to_num(-inf, neginf=-inf)
        return of_ids(best(score, row.order), row, keep, score)

    return kernel


right_sampler = sampler()


def pooled(logits, *pools):
    *pools, index = pools
    return right_sampler(logits, *(pool[index] for pool in pools))


def pooled_by_slot(logits, *pools):
    return right_sampler(logits, *(pool[: len(logits)] for pool in pools[:-1]))


def pooled_but_for_the_seed(logits, *pools):
    *pools, index = pools
    seed = pools[4][: len(logits)]
    return right_sampler(logits, *(pool[index] for pool in pools[:4]), seed, pools[5][index])


def by_slot(seed, position, vocab):
    return noise(seed, position + torch.arange(len(seed)), vocab)


def low_half(seed, position, vocab):
    return noise(seed & 0xFFFFFFFF, position, vocab)


def of_the_sum(seed, position, vocab, role=0):
    return noise(seed + position, torch.full_like(position, role), vocab)


def without_a_role(seed, position, vocab, role=0):
    return noise(seed, position, vocab)


def second_best(ids, row, keep, score):
    return best(score.masked_fill(row.order == ids[:, None], -inf), row.order)


def as_value(ids, row, keep, score):
    """The drawn place resolved to an id through its logit: ties fall on the lowest (SA2)."""
    x = row.by_id(row.x)
    return (x == x.gather(1, ids[:, None])).long().argmax(-1)


# ---- verifiers of chains


def accepting(coin, p, q):
    return coin * q < p


def residual_of(p, q):
    rest = (p - q).clamp(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def drawn_by(weights, coin):
    """[R] the first id whose running sum passes coin · sum; the last with a weight where rounding leaves none."""
    running, there = weights.cumsum(-1), weights > 0
    passed = (running > coin[:, None] * running[:, -1:]) & there
    last = (there * torch.arange(weights.shape[1])).amax(-1)
    return torch.where(passed.any(-1), passed.long().argmax(-1), last)


def verifier(accept=accepting, residual=residual_of, draw=drawn_by, of_ids=same, of_accepted=same):
    """A kernel of verify_speculative."""

    def kernel(p, q, drafts, coins):
        (rows, steps, vocab), length = p.shape, drafts.shape[1]
        of_drafts = [probs[:, :length].gather(2, drafts[..., None])[..., 0] for probs in (p, torch.ones_like(p) if q is None else q)]
        accepted = accept(coins[:, :length], *of_drafts).long().cumprod(-1).sum(-1)
        every, place = torch.arange(rows), torch.arange(steps)
        sources = torch.nn.functional.one_hot(drafts, vocab).float() if q is None else q
        here = p[every, accepted]
        rejected = (accepted < length)[:, None]
        weights = torch.where(rejected, residual(here, sources[every, accepted.clamp(max=length - 1)]), here)
        token = draw(weights, coins[:, length])
        ids = torch.where(place < accepted[:, None], torch.cat([drafts, drafts[:, :1]], 1), -1)
        ids = torch.where(place == accepted[:, None], token[:, None], ids)
        return of_accepted(accepted, length), of_ids(ids, accepted, drafts)

    return kernel


right_verifier = verifier()


# ---- putting laws to them


RIGHT = {PROBS: right_filter, SAMPLE: right_sampler, VERIFY: right_verifier}
DECLARED = {PROBS: {}, SAMPLE: NOISE | {"pooled": pooled}, VERIFY: {}}


def put(function, operation_name, law="accuracy", dtype="fp32", **declared):
    """A trial of a function."""
    return trial(function, law, dtype, operation_name, **declared)


def first_finding(examined, examples=60, max_vocab=600):
    """The first finding among drawn recipes, as it was drawn, or None."""
    fixed = examined.law.fixed_options(examined.kernel)
    space = space_for(examined.kernel, examined.dtype, max_rows=12, max_elements=1 << 12, max_vocab=max_vocab, fixed_options=fixed)

    @settings(max_examples=1 if examined.law.once else examples, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
    @given(drawn(space))
    def search(recipe):
        examined(recipe)

    try:
        search()
    except Broken as broken:
        return broken.finding
    return None


def rows_of(operation_name, *rows, dtype="fp32", **inputs):
    """A recipe of literal rows: logits as lists, inputs one for all rows or a list of one each; the rest at their defaults."""
    options = {name: inputs.pop(name) for name in ("drafts", "proposal") if name in inputs}
    given = {spec.name: inputs.get(spec.name, spec.default) for spec in operation(operation_name).inputs}
    return recipe_of(operation_name, *rows, dtype=dtype, inputs=given, options=options)


def returning(*values):
    """A kernel that returns these, whatever it is given."""
    return lambda *_, **__: values[0].clone() if len(values) == 1 else tuple(v.clone() for v in values)


probs_of, ids_of = partial(rows_of, PROBS), partial(rows_of, SAMPLE)
