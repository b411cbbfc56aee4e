"""What `stabcheck bench` times of sampling: drawing a token, filtered probabilities, chain verification. Data, as others are."""

from __future__ import annotations

from typing import Any

import torch

from stabcheck.points import Benchmark, Inputs, Point, Run, compiled, logits_of, points, temperature_of

VOCABS = (32768, 128256, 151936)
ROWS = (1, 32, 128, 512)

# ---- one token per row


def _sample_inputs(point: Point) -> Inputs:
    """logits, temperature, top_k = 50, top_p = 0.9, min_p = 0.05, seed, position"""
    return (*_filter_inputs(point), torch.arange(point.rows, device="cuda"), torch.full((point.rows,), 17, device="cuda"))


def _filter_inputs(point: Point) -> Inputs:
    k, p, min_p = (torch.full((point.rows,), value, device="cuda") for value in (50, 0.9, 0.05))
    return logits_of(point), temperature_of(point), k, p, min_p


def _sample(used: int) -> Run:
    """Our draw with the first of top-k, top-p and min-p."""

    def run(logits: torch.Tensor, temperature: torch.Tensor, *rest: torch.Tensor) -> Any:
        from stabcheck.kernels.sampling import sample

        top_k, top_p, min_p = (tensor if i < used else None for i, tensor in enumerate(rest[:3]))
        return sample(logits, temperature, top_k, top_p, min_p, *rest[3:])

    return run


def _softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits / temperature[:, None], -1)


def _multinomial(logits: torch.Tensor, temperature: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(_softmax(logits, temperature), 1)


def _race(logits: torch.Tensor, temperature: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    probs = _softmax(logits, temperature)
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def _flashinfer_logits() -> Run:
    from flashinfer.sampling import sampling_from_logits

    return lambda logits, temperature, *_: sampling_from_logits(logits / temperature[:, None])


def _flashinfer_one_temperature() -> Run:
    """What it takes where every T is 1, and the division is left out."""
    from flashinfer.sampling import sampling_from_logits

    return lambda logits, *_: sampling_from_logits(logits)


def _flashinfer_k_p() -> Run:
    from flashinfer.sampling import softmax, top_k_top_p_sampling_from_probs

    def run(logits: torch.Tensor, temperature: torch.Tensor, k: torch.Tensor, p: torch.Tensor, *_: torch.Tensor) -> Any:
        return top_k_top_p_sampling_from_probs(softmax(logits, temperature), k.int(), p, filter_apply_order="joint")

    return run


def _flashinfer_k_p_min_p() -> Run:
    from flashinfer.sampling import min_p_sampling_from_probs

    renormed = _flashinfer_renorm()
    return lambda logits, temperature, k, p, min_p, *_: min_p_sampling_from_probs(renormed(logits, temperature, k, p), min_p)


_COLUMNS = ("vLLM's kernel, no filter", "FlashInfer, no filter", "FlashInfer, k and p", "FlashInfer, k, p and min-p")
_TIMES = {
    (32768, 1): (12.7, 15.5, 25.4, 89.8),
    (32768, 32): (42.0, 20.8, 67.9, 146.1),
    (32768, 128): (57.1, 17.5, 67.1, 165.1),
    (32768, 512): (80.5, 54.5, 129.0, 554.2),
    (128256, 1): (14.2, 47.7, 51.7, 161.7),
    (128256, 32): (29.6, 48.8, 103.1, 250.6),
    (128256, 128): (79.0, 52.3, 185.7, 662.5),
    (128256, 512): (271.8, 186.2, 457.5, 2108.3),
    (151936, 1): (12.4, 56.5, 58.1, 183.3),
    (151936, 32): (32.9, 57.1, 124.0, 294.6),
    (151936, 128): (91.3, 61.1, 220.3, 772.3),
    (151936, 512): (317.5, 219.3, 546.3, 2484.6),
}

SAMPLE = Benchmark(
    name="sample",
    points=points(("fp32",), VOCABS, ROWS),
    inputs=_sample_inputs,
    moves="the logits read once",
    moved=lambda inputs: inputs[0].nbytes,
    ours=_sample(0),
    variants={"ours, k and p": _sample(2), "ours, k, p and min-p": _sample(3)},
    peers={
        "torch multinomial": lambda: _multinomial,
        "torch race": lambda: _race,
        "torch.compile race": compiled(_race),
        "flashinfer": _flashinfer_logits,
        "flashinfer, T = 1": _flashinfer_one_temperature,
        "flashinfer, k and p": _flashinfer_k_p,
        "flashinfer, k, p and min-p": _flashinfer_k_p_min_p,
    },
    published={Point("fp32", *at): dict(zip(_COLUMNS, times, strict=True)) for at, times in _TIMES.items()},
    published_where="FlashInfer 0.7.2.post1 and vLLM's Triton sampler, another run on an NVIDIA H200, torch 2.11, medians of do_bench",
)

# ---- probabilities after the filters


def _filtered_probs(*inputs: torch.Tensor) -> Any:
    from stabcheck.kernels.filtering import filtered_probs

    return filtered_probs(*inputs)


def _sorted_probs(logits: torch.Tensor, temperature: torch.Tensor, k: torch.Tensor, p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """The filters by sorting the row, as model libraries do."""
    probs, order = (logits / temperature[:, None]).softmax(-1).sort(descending=True, stable=True)
    probs = probs.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= k[:, None], 0)
    before = probs.cumsum(-1) - probs
    dropped = (before >= p[:, None] * probs.sum(-1, keepdim=True)) | (probs < min_p[:, None] * probs[:, :1])
    probs = probs.masked_fill(dropped, 0)
    return torch.empty_like(probs).scatter_(1, order, probs / probs.sum(-1, keepdim=True))


def _flashinfer_renorm() -> Run:
    from flashinfer.sampling import softmax, top_k_renorm_probs, top_p_renorm_probs

    return lambda logits, temperature, k, p, *_: top_p_renorm_probs(top_k_renorm_probs(softmax(logits, temperature), k.int()), p)


FILTERED_PROBS = Benchmark(
    name="filtered_probs",
    points=points(("fp32",), VOCABS, ROWS),
    inputs=_filter_inputs,
    moves="the logits read once and the probabilities written once",
    moved=lambda inputs: 2 * inputs[0].nbytes,
    ours=_filtered_probs,
    variants={"ours, no filter": lambda logits, temperature, *_: _filtered_probs(logits, temperature)},
    peers={"torch sort": lambda: _sorted_probs, "torch.compile sort": compiled(_sorted_probs), "flashinfer, no min-p": _flashinfer_renorm},
)

# ---- chain verification of 3 drafts; a row is a request

DRAFTS = 3


def _chains(point: Point) -> Inputs:
    """target_probs, draft_probs, draft_ids, coins, where drafts are what the target likes best half of the time"""
    p, q = ((torch.randn(point.rows, n, point.vocab, device="cuda") * 2).softmax(-1) for n in (DRAFTS + 1, DRAFTS))
    liked = p[:, :DRAFTS].argmax(-1)
    drafts = torch.where(torch.rand(liked.shape, device="cuda") < 0.5, liked, torch.randint_like(liked, point.vocab))
    return p, q, drafts, torch.rand(point.rows, DRAFTS + 1, device="cuda")


def _verify(*inputs: torch.Tensor) -> Any:
    from stabcheck.kernels.speculative import verify_speculative

    return verify_speculative(*inputs)


def _torch_verify(p: torch.Tensor, q: torch.Tensor, drafts: torch.Tensor, coins: torch.Tensor) -> Inputs:
    at = drafts[..., None]
    passed = coins[:, :-1] * q.gather(2, at)[..., 0] < p[:, :-1].gather(2, at)[..., 0]
    accepted = passed.long().cumprod(-1).sum(-1)
    rows = torch.arange(len(p), device=p.device)
    here, proposed = p[rows, accepted], q[rows, accepted.clamp(max=q.shape[1] - 1)]
    weights = torch.where((accepted < q.shape[1])[:, None], (here - proposed).clamp(min=0), here)
    cumulative = weights.cumsum(-1)
    token = torch.searchsorted(cumulative, coins[:, -1:] * cumulative[:, -1:], right=True)
    steps = torch.arange(p.shape[1], device=p.device)
    ids = torch.where(steps < accepted[:, None], torch.nn.functional.pad(drafts, (0, 1)), -1)
    return accepted, torch.where(steps == accepted[:, None], token, ids)


def _flashinfer_verify() -> Run:
    from flashinfer.sampling import chain_speculative_sampling

    return lambda p, q, drafts, coins: chain_speculative_sampling(q, drafts.int(), p)


VERIFY_SPECULATIVE = Benchmark(
    name="verify_speculative",
    points=points(("fp32",), VOCABS, (1, 32, 128)),
    inputs=_chains,
    moves="one row of the target's and of the drafts' probabilities read once for each request",
    moved=lambda inputs: inputs[0][:, 0].nbytes * 2,
    ours=_verify,
    peers={"torch": lambda: _torch_verify, "torch.compile": compiled(_torch_verify), "flashinfer": _flashinfer_verify},
)
