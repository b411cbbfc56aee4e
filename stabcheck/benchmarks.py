"""What `stabcheck bench` times: for each operation its points, its inputs, our kernel and its peers. Data; `stabcheck.bench` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stabcheck.floats import by_name

Inputs = tuple[torch.Tensor, ...]
Run = Callable[..., Any]
VOCABS = (32000, 128256, 151936)


@dataclass(frozen=True)
class Point:
    """One line of the table."""

    dtype: str
    vocab: int
    rows: int


@dataclass(frozen=True)
class Benchmark:
    """What is timed for one operation.

    inputs: the operation's inputs at a point, on the GPU; the logits first.
    moves, moved: what a call must read and write at least, in words and in bytes.
    ours, variants: called with the inputs; a variant is another way of ours, and no peer.
    peers: name -> loader, called afresh at each point; returns the function to time, or raises ImportError where it is not installed.
    overwrites: whether some of them write over the logits, which are then restored before each call, outside the time.
    """

    name: str
    points: tuple[Point, ...]
    inputs: Callable[[Point], Inputs]
    moves: str
    moved: Callable[[Inputs], int]
    ours: Run
    peers: dict[str, Callable[[], Run]]
    variants: dict[str, Run] = field(default_factory=dict)
    overwrites: bool = False


def _points(dtypes: tuple[str, ...], vocabs: tuple[int, ...], rows: tuple[int, ...]) -> tuple[Point, ...]:
    return tuple(Point(d, v, r) for d in dtypes for v in vocabs for r in rows)


def _logits(point: Point) -> torch.Tensor:
    return torch.randn(point.rows, point.vocab, device="cuda").mul_(5).to(by_name(point.dtype).torch)


def _temperature(point: Point) -> torch.Tensor:
    return torch.rand(point.rows, device="cuda") + 0.5


def _columns(point: Point) -> torch.Tensor:
    return torch.randint(0, point.vocab, (point.rows,), device="cuda")


def _compiled(function: Run) -> Callable[[], Run]:
    def load() -> Run:
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    return load


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
    points=_points(("bf16", "fp32"), VOCABS, (1, 8, 32, 128, 512)),
    inputs=lambda point: (_logits(point), _temperature(point)),
    moves="each input byte read once and each output byte written once",
    moved=lambda inputs: 2 * inputs[0].nbytes + inputs[1].nbytes,
    ours=_softmax,
    peers={
        "torch eager": lambda: _torch_softmax,
        "torch.compile": _compiled(_torch_softmax),
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


LOGSUMEXP = Benchmark(
    name="logsumexp",
    points=_points(("bf16", "fp32"), VOCABS, (1, 32, 512, 4096)),
    inputs=lambda point: (_logits(point),),
    moves="the logits read once",
    moved=lambda inputs: inputs[0].nbytes,
    ours=_logsumexp,
    peers={"torch eager": lambda: _torch_logsumexp, "torch.compile": _compiled(_torch_logsumexp)},
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
    points=_points(("bf16", "fp32"), VOCABS, (32, 512, 4096)),
    inputs=lambda point: (_logits(point), _columns(point), _temperature(point)),
    moves="each input byte read once",
    moved=lambda inputs: sum(t.nbytes for t in inputs),
    ours=_token_logprob,
    peers={"torch eager": lambda: _torch_token_logprob, "torch.compile": _compiled(_torch_token_logprob)},
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
    loss = _compiled(_upcast)()
    return lambda logits, target: torch.autograd.grad(loss(logits, target), logits)


def _liger_cross_entropy() -> Run:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda logits, target: torch.autograd.grad(liger_cross_entropy(logits, target), logits)


CROSS_ENTROPY = Benchmark(
    name="cross_entropy",
    points=_points(("bf16",), (32000, 128256), (512, 4096)),
    inputs=lambda point: (_logits(point).requires_grad_(), _columns(point)),
    moves="the logits read twice and the gradient written once",
    moved=lambda inputs: 3 * inputs[0].nbytes,
    ours=_cross_entropy(),
    variants={"ours in place": _cross_entropy(inplace_backward=True)},
    peers={
        "torch bf16": lambda: _torch_cross_entropy,
        "torch fp32": lambda: lambda logits, target: torch.autograd.grad(_upcast(logits, target), logits),
        "torch.compile fp32": _compiled_cross_entropy,
        "liger-kernel": _liger_cross_entropy,
    },
    overwrites=True,
)

BENCHMARKS = {"temperature_softmax": SOFTMAX, **{b.name: b for b in (SOFTMAX, LOGSUMEXP, TOKEN_LOGPROB, CROSS_ENTROPY)}}
