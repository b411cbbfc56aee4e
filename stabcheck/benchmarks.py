"""What `stabcheck bench` times: for each operation its points, its inputs, our kernel and its peers. Data; `stabcheck.bench` measures."""

from __future__ import annotations

from typing import Any

import torch

from stabcheck.benchmarks_sampling import FILTERED_PROBS, SAMPLE, VERIFY_SPECULATIVE
from stabcheck.points import VOCABS, Benchmark, Inputs, Run, columns, compiled, logits_of, points, temperature_of

# ---- softmax with a temperature


def _softmax(logits: torch.Tensor, temperature: torch.Tensor) -> Any:
    from stabcheck.kernels.softmax import softmax

    return softmax(logits, temperature)


def _torch_softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits / temperature.to(logits.dtype)[:, None], -1)


def _flashinfer_softmax() -> Run:
    from flashinfer.sampling import softmax

    return softmax  # type: ignore[no-any-return]


def _liger_softmax() -> Run:
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    return lambda logits, temperature: LigerSoftmaxFunction.apply(logits / temperature.to(logits.dtype)[:, None])


SOFTMAX = Benchmark(
    name="softmax",
    points=points(("bf16", "fp32"), VOCABS, (1, 8, 32, 128, 512)),
    inputs=lambda point: (logits_of(point), temperature_of(point)),
    moves="each input byte read once and each output byte written once",
    moved=lambda inputs: 2 * inputs[0].nbytes + inputs[1].nbytes,
    ours=_softmax,
    peers={
        "torch eager": lambda: _torch_softmax,
        "torch.compile": compiled(_torch_softmax),
        "flashinfer": _flashinfer_softmax,
        "liger-kernel": _liger_softmax,
    },
)

# ---- log-sum-exp


def _logsumexp(logits: torch.Tensor) -> Any:
    from stabcheck.kernels.logsumexp import logsumexp

    return logsumexp(logits)


def _torch_logsumexp(logits: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits, -1)


def _fla_logsumexp() -> Run:
    from fla.ops.utils.logsumexp import logsumexp_fwd  # fla-core

    return logsumexp_fwd  # type: ignore[no-any-return]


LOGSUMEXP = Benchmark(
    name="logsumexp",
    points=points(("bf16", "fp32"), VOCABS, (1, 32, 512, 4096)),
    inputs=lambda point: (logits_of(point),),
    moves="the logits read once",
    moved=lambda inputs: inputs[0].nbytes,
    ours=_logsumexp,
    peers={"torch eager": lambda: _torch_logsumexp, "torch.compile": compiled(_torch_logsumexp), "fla-core": _fla_logsumexp},
)

# ---- log-probability of a token, and entropy


def _token_logprob(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> Any:
    from stabcheck.kernels.token_logprob import token_logprob

    return token_logprob(logits, labels, temperature)


def _torch_token_logprob(logits: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> Inputs:
    logprobs = torch.log_softmax(logits.float() / temperature[:, None], -1)
    return logprobs.gather(1, labels[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


TOKEN_LOGPROB = Benchmark(
    name="token_logprob",
    points=points(("bf16", "fp32"), VOCABS, (32, 512, 4096)),
    inputs=lambda point: (logits_of(point), columns(point), temperature_of(point)),
    moves="each input byte read once",
    moved=lambda inputs: sum(t.nbytes for t in inputs),
    ours=_token_logprob,
    peers={"torch eager": lambda: _torch_token_logprob, "torch.compile": compiled(_torch_token_logprob)},
)

# ---- cross-entropy, forward and backward


def _cross_entropy(**options: Any) -> Run:
    def run(logits: torch.Tensor, target: torch.Tensor) -> Inputs:
        from stabcheck.kernels.cross_entropy import cross_entropy

        return torch.autograd.grad(cross_entropy(logits, target, **options), logits)

    return run


def _torch_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> Inputs:
    return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), logits)


def _upcast(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), target)


def _compiled_cross_entropy() -> Run:
    loss = compiled(_upcast)()
    return lambda logits, target: torch.autograd.grad(loss(logits, target), logits)


def _liger_cross_entropy() -> Run:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda logits, target: torch.autograd.grad(liger_cross_entropy(logits, target), logits)


def _fla_cross_entropy() -> Run:
    from fla.modules.fused_cross_entropy import cross_entropy_loss  # fla-core; returns one loss a row, and the z-losses

    return lambda logits, target: torch.autograd.grad(cross_entropy_loss(logits, target)[0].mean(), logits)


CROSS_ENTROPY = Benchmark(
    name="cross_entropy",
    points=points(("bf16",), (32000, 128256), (512, 4096)),
    inputs=lambda point: (logits_of(point).requires_grad_(), columns(point)),
    moves="the logits read twice and the gradient written once",
    moved=lambda inputs: 3 * inputs[0].nbytes,
    ours=_cross_entropy(),
    variants={"ours in place": _cross_entropy(inplace_backward=True)},
    peers={
        "torch bf16": lambda: _torch_cross_entropy,
        "torch fp32": lambda: lambda logits, target: torch.autograd.grad(_upcast(logits, target), logits),
        "torch.compile fp32": _compiled_cross_entropy,
        "liger-kernel": _liger_cross_entropy,
        "fla-core": _fla_cross_entropy,
    },
    overwrites=True,
)

_ALL = (SOFTMAX, LOGSUMEXP, TOKEN_LOGPROB, CROSS_ENTROPY, FILTERED_PROBS, SAMPLE, VERIFY_SPECULATIVE)
BENCHMARKS = {"temperature_softmax": SOFTMAX, **{b.name: b for b in _ALL}}
