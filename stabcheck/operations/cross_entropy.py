"""Cross-entropy with its gradient, as losses of language models have it.

    y = c·tanh(x/c), or x without softcap    m = max y    z = y − m    d = Σ exp(z)    p = exp(z)/d    lse = m + log d
    loss = (1 − ε)(log d − z_t) + (ε/V) Σ_{j taking part} (log d − z_j) + ζ·lse²
    ∂loss/∂x_i · g = g·(1 − tanh²(x_i/c))·((S + 2ζ·lse)·p_i − (1 − ε)[i = t] − (ε/V)[i takes part]),   S = 1 − ε + ε·(number taking part)/V

input     shape   dtype             meaning
logits    [R, V]  fp32, bf16, fp16  x; -inf masks a class
target    [R]     int64             t, in [0, V), or ignore_index: the row's loss and gradient are exactly 0
upstream  [R]     fp32              g; under a reduction the first row's stands for the scalar
loss      [R]     fp32              [] under a reduction; "mean" divides by the rows not ignored
grad      [R, V]  the logits'       through torch.autograd

Options as in torch's cross_entropy and Liger's: ignore_index, label_smoothing ε, lse_square_scale ζ (z-loss), softcap c, reduction.
The loss is formed from differences, so a common offset changes nothing and its bound does not grow with one.

Policies: masked classes take no part in label smoothing, V staying the class count, or the loss is infinite as in torch; a target outside
[0, V) raises, or makes its row NaN. A masked target gives +inf and a finite gradient. Rows of -inf, and rows with NaN or, without softcap,
+inf, give NaN. Sources: Liger #968, #1268; PyTorch #11752; the online kernels of many projects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract, argument_error, log_error, quotient_error, settled, slope, summation_error
from stabcheck.devices import FLUSH, U
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST, Expected, Input, Operation, Option, Output
from stabcheck.operations.parts import Shifted, shift

UPSTREAM = (1.0, 0.0, -1.0, 0.5, 65536.0, 1e-3, 1e30, -1e30, 1e-30)
MOST = torch.finfo(torch.float32).max


def call(
    function: Callable[..., Any],
    logits: torch.Tensor,
    target: torch.Tensor,
    upstream: torch.Tensor,
    reduction: str = "none",
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its gradient with respect to the logits."""
    logits = logits.detach().requires_grad_()
    with torch.autograd.set_multithreading_enabled(False):
        loss = function(logits, target, reduction=reduction, **options)
        seed = upstream if loss.ndim else upstream.sum() if not len(upstream) else upstream[0]
        (grad,) = torch.autograd.grad(loss, logits, seed.to(loss.dtype))
    return loss.detach(), grad


def reference(batch: Batch, contract: Contract) -> dict[str, Expected]:
    """Loss and gradient of each row with their bounds, then the reduction over rows."""
    problem = _problem(batch, contract)
    loss, of_loss = _loss(problem)
    upstream = _upstream(problem)
    grad, of_grad = _gradient(problem, upstream)
    ignored, bad = problem.ignored, ~problem.ignored & ~problem.in_range
    loss = torch.where(bad, torch.nan, loss.masked_fill(ignored, 0.0))
    grad = torch.where(bad[:, None], torch.nan, grad.masked_fill(ignored[:, None], 0.0))
    free = bad if contract.policies["bad_target"] == "error" else None
    how = problem.option("reduction")
    if how == "none":
        bound = settled(loss, of_loss, contract).masked_fill(ignored, 0.0)
        value = Expected(loss, bound, free)
    else:
        value = _reduced(how, loss, of_loss.masked_fill(ignored, 0.0), ~ignored, free, contract)
    stored = replace(contract, output=contract.input)
    idle = (upstream == 0)[:, None] & grad.isfinite()
    exact = ignored[:, None] | idle | ((grad == 0) & (problem.y == -torch.inf))
    of_grad = settled(grad, of_grad, stored).masked_fill(exact, 0.0)
    return {"loss": value, "grad": Expected(grad, of_grad, None if free is None else free[:, None].expand_as(grad))}


@dataclass(frozen=True)
class _Problem:
    """The tensors of a batch; `bent`: how far y is off, relative to |y|, where it comes of a softcap; `taking`: part in the smoothing."""

    batch: Batch
    contract: Contract
    y: torch.Tensor
    tanh: torch.Tensor | None
    bent: float
    parts: Shifted
    target: torch.Tensor
    taking: torch.Tensor

    def option(self, name: str) -> Any:
        return self.batch.options.get(name, next(option.values[0] for option in OPTIONS if option.name == name))

    @property
    def ignored(self) -> torch.Tensor:
        return self.target == int(self.option("ignore_index"))

    @property
    def in_range(self) -> torch.Tensor:
        return (self.target >= 0) & (self.target < self.y.shape[1])

    @property
    def at(self) -> torch.Tensor:
        """[R, 1] the target's column, some column where there is none."""
        return self.target.clamp(0, self.y.shape[1] - 1)[:, None]

    @cached_property
    def of_log_d(self) -> torch.Tensor:
        return self.parts.of_log_d(self.contract)

    @cached_property
    def lse(self) -> torch.Tensor:
        return self.parts.m + self.parts.log_d

    @property
    def of_lse(self) -> torch.Tensor:
        return self.of_log_d + U * self.lse.abs() + self.bent * self.parts.m.abs()

    @property
    def smoothed(self) -> torch.Tensor:
        """[R, 1] number of classes that take part in the smoothing."""
        return self.taking.sum(-1, keepdim=True).double()

    def of_arguments(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Error of z = y − m."""
        error = argument_error(y, self.parts.m, z, self.contract)
        return error + self.bent * (y.abs() + self.parts.m.abs()) if self.bent else error


def _problem(batch: Batch, contract: Contract) -> _Problem:
    x, cap = batch.logits.double(), float(batch.options.get("softcap", 0.0))
    profile = contract.profile
    tanh = torch.tanh(x / cap) if cap else None
    y = x if tanh is None else cap * tanh
    bent = (profile.tanh + profile.divide + 2) * U if cap else 0.0  # x/c (which tanh does not amplify), tanh, the product with c
    spread = bent * (y.abs() + y.abs().amax(-1, keepdim=True)) if cap else 0.0
    taking = (y > -torch.inf) if contract.policies["masked_smoothing"] == "skip" else torch.ones_like(y, dtype=torch.bool)
    return _Problem(batch, contract, y, tanh, bent, shift(y, contract, spread), batch.inputs["target"], taking)


def _loss(q: _Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """[R] losses and their errors: of log d, of each z, of the smoothed classes' sum (terms of one sign, rescaled as d is), of lse².

    An unshifted kernel forms lse − x: its roundings are relative to those.
    """
    eps, zeta, vocab = float(q.option("label_smoothing")), float(q.option("lse_square_scale")), q.y.shape[1]
    summed = 2 * summation_error(vocab, q.contract) + 2 * U
    log_d, y_t, z_t = q.parts.log_d, q.y.gather(1, q.at), q.parts.z.gather(1, q.at)
    loss = (1 - eps) * (log_d - z_t)
    error = (1 - eps) * (q.of_log_d + q.of_arguments(y_t, z_t))
    unshifted = (1 - eps) * (q.lse.abs() + y_t.abs()) * 3 * U
    if eps:
        share = eps / vocab
        far, heights = (torch.where(q.taking, t.abs(), 0.0).sum(-1, keepdim=True) for t in (q.parts.z, q.y))
        of_far = torch.where(q.taking, q.of_arguments(q.y, q.parts.z), 0.0).sum(-1, keepdim=True)
        loss = loss + share * (q.smoothed * log_d + far)
        error = error + share * (q.smoothed * (q.of_log_d + summed * log_d) + of_far + summed * far)
        error = torch.where(far > MOST, torch.inf, error)
        unshifted = unshifted + share * (3 * U + summed) * (q.smoothed * q.lse.abs() + heights)
    if zeta:
        square = q.lse.square()
        loss = loss + zeta * square
        error = error + zeta * (2 * q.lse.abs() * q.of_lse + q.of_lse.square() + 3 * U * square)
        error = torch.where(square > MOST, torch.inf, error)
    error = error + 2 * U * loss.abs()
    return loss[:, 0], (error if q.contract.error_model == "shift_first" else error + unshifted)[:, 0]


def _gradient(q: _Problem, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, V] gradients and their errors before the output's rounding: |g|·(p_i·rel_i + roundings of the bracket, relative to its terms).

    p is exp(z)/d or exp(z − log d): the errors of both are allowed. Near p_t → 1 the bracket p_t − 1 is small but its output rounding is
    relative to what is left, so a kernel that rounds p before it subtracts is found out.
    """
    eps, zeta, vocab = float(q.option("label_smoothing")), float(q.option("lse_square_scale")), q.y.shape[1]
    contract, parts = q.contract, q.parts
    exponents = parts.kappa + (parts.of_d + quotient_error(contract) + log_error(parts.log_d, contract) + slope(contract) * U * parts.log_d)
    exponents = exponents - U * parts.z.clamp(min=-1e6)
    if contract.error_model != "shift_first":
        exponents = exponents + (3 * U * (q.y.abs() + q.lse.abs())).masked_fill(q.y == -torch.inf, 0.0)
    relative = torch.expm1(exponents.clamp(max=300.0))
    scale = 1 - eps + eps * q.smoothed / vocab + 2 * zeta * q.lse
    pulled = scale * parts.p
    weights = (q.taking.double() * (eps / vocab)).scatter_add(1, q.at, torch.full_like(parts.m, 1 - eps))
    bracket = pulled - weights
    of_bracket = pulled.abs() * (relative + 4 * U) + 4 * U * weights + scale.abs() * FLUSH
    of_bracket = of_bracket + 2 * zeta * q.of_lse * parts.p if zeta else of_bracket
    if q.tanh is not None:
        square = q.tanh.square()
        of_slope = (2 * square * (contract.profile.tanh + contract.profile.divide + 1) + 1) * U
        of_bracket, bracket = (1 - square) * of_bracket + of_slope * bracket.abs(), (1 - square) * bracket
    g = upstream[:, None]
    return g * bracket, g.abs() * (of_bracket + 4 * U * bracket.abs())


def _upstream(q: _Problem) -> torch.Tensor:
    """[R] what each row's gradient is multiplied with; under a mean also 1/(rows not ignored)."""
    upstream, how = q.batch.inputs["upstream"].double(), q.option("reduction")
    if how == "none":
        return upstream
    count = (~q.ignored).sum().clamp(min=1) if how == "mean" else 1
    return upstream[:1].expand_as(upstream) / count


def _reduced(
    how: str, loss: torch.Tensor, of_loss: torch.Tensor, counted: torch.Tensor, free: torch.Tensor | None, contract: Contract
) -> Expected:
    """[] sum or mean over the rows not ignored, added in any order: R·u relative to the sum of the losses, which are not negative."""
    total, count = loss.sum(), counted.sum().double()
    error = of_loss.sum() + len(loss) * U * total.abs()
    if how == "mean":
        total, error = total / count, error / count + 2 * U * (total / count).abs()
    return Expected(total, settled(total, error, contract), None if free is None else free.any())


OPTIONS = (
    Option("ignore_index", (IGNORED, 0, 2)),
    Option("label_smoothing", (0.0, 0.1, 0.5)),
    Option("lse_square_scale", (0.0, 1e-4, 1e-2)),
    Option("softcap", (0.0, 30.0, 1.0)),
    Option("reduction", ("none",)),
)
OPERATION = Operation(
    name="cross_entropy",
    summary="logits [R, V], target [R] -> loss [R], and its gradient [R, V]",
    inputs=(Input("target", (0, IGNORED, LARGEST, SMALLEST), column=True), Input("upstream", UPSTREAM)),
    outputs=(Output("loss", per="row", low=0.0), Output("grad", dtype="input")),
    policies={"bad_target": ("error", "nan"), "masked_smoothing": ("skip", "inf")},
    reference=reference,
    traits={
        "ranges": (),
        "shift_equivariant": ("softcap", "lse_square_scale"),
        "permutation_equivariant": (),
        "masking": ("softcap", "label_smoothing"),
        "targets": (),
        "gradient": (),
        "ignored": (),
        "reductions": (),
    },
    options=OPTIONS,
    error_models={
        "shift_first": "",
        "unshifted": "the loss is formed as lse − x_t, which rounds relative to the logits' common offset. Form log d − (x_t − m)",
        "scale_first": "the logits are scaled by log2 e before the maximum is subtracted",
    },
    output="fp32",
    call=call,
)
