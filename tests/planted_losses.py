"""Log-sum-exps, log-probabilities and losses in plain torch: right ones, computed in fp64 and rounded once, and each of the others wrong
in one way.

A wrong loss is the right one with a function put upon its results: `loss(of_grad=lambda grad, q: …)`, q holding what the kernel was given.
"""

from types import SimpleNamespace

import torch
from torch.autograd.function import once_differentiable

inf = float("inf")
LSE, LOGPROB, LOSS = "logsumexp", "token_logprob", "cross_entropy"


def lse(logits):
    return torch.logsumexp(logits.double(), -1).float()


# ---- log-probabilities


def check(labels, vocab, valid=True):
    bad = valid & ((labels < 0) | (labels >= vocab))
    if bool(bad.any()):
        raise ValueError(f"target {labels[bad][0].item()} is out of range for {vocab} columns")


def parts(y, t=1.0):
    """(m, z, p, log d), all fp64."""
    m = y.double().amax(-1, keepdim=True)
    z = (y.double() - m) / t
    e = z.exp()
    d = e.sum(-1, keepdim=True)
    return m, z, e / d, d.log()


def entropy_of(z, p, log_d):
    return log_d[:, 0] - torch.where(p == 0, 0.0, p * z).sum(-1)


def logprob(logits, labels, temperature):
    check(labels, logits.shape[1])
    _, z, p, log_d = parts(logits, temperature.double()[:, None])
    return (z.gather(1, labels[:, None]) - log_d)[:, 0].float(), entropy_of(z, p, log_d).float()


def with_logprob(change):
    """The right kernel, its log-probabilities changed by a function of them, the logits, the labels and the temperature."""

    def kernel(logits, labels, temperature):
        right, entropy = logprob(logits, labels, temperature)
        return change(right, logits, labels, temperature), entropy

    return kernel


def with_entropy(change):
    """The right kernel, its entropies changed by a function of them and the logits."""

    def kernel(logits, labels, temperature):
        right, entropy = logprob(logits, labels, temperature)
        return right, change(entropy, logits)

    return kernel


def unshifted_logprob(logits, labels, temperature):
    """lse − x/T in fp32: what rounds relative to the logits."""
    check(labels, logits.shape[1])
    x = logits.float() / temperature[:, None]
    _, z, p, log_d = parts(logits, temperature.double()[:, None])
    lse = (x.double().amax(-1, keepdim=True) + log_d).float()
    return (x.gather(1, labels[:, None]) - lse)[:, 0], entropy_of(z, p, log_d).float()


def nan_for_bad_labels(logits, labels, temperature):
    bad = (labels < 0) | (labels >= logits.shape[1])
    return tuple(values.masked_fill(bad, torch.nan) for values in logprob(logits, labels.masked_fill(bad, 0), temperature))


def reads_the_label_modulo_v(logits, labels, temperature):
    return logprob(logits, labels % logits.shape[1], temperature)


def narrowed(target):
    """As a kernel has it that keeps targets in 32 bits: 2^32 + 3 becomes 3."""
    return target.to(torch.int32).long()


def takes_labels_for_32_bits(logits, labels, temperature):
    return logprob(logits, narrowed(labels), temperature)


def as_if_contiguous(values, wrong):
    """What a kernel reads that steps by 1 whatever the stride is, where that is one of the wrong ones."""
    return values.as_strided(values.shape, (1,), values.storage_offset()) if values.stride(0) in wrong else values


def steps_by_1_through_labels(logits, labels, temperature):
    return logprob(logits, as_if_contiguous(labels, (2,)), temperature)


def reads_the_next_row(logits, labels, temperature):
    """labels out of range index the flat logits, as an unchecked offset does."""
    flat = logits.reshape(-1)
    rows = torch.arange(len(labels)) * logits.shape[1]
    z = flat[(rows + labels).clamp(0, len(flat) - 1)].double()[:, None]
    m, every, p, log_d = parts(logits, temperature.double()[:, None])
    return ((z - m) / temperature.double()[:, None] - log_d)[:, 0].float(), entropy_of(every, p, log_d).float()


# ---- losses


def same(values, q):
    return values


def bracket_and_loss(q):
    """(the gradient's bracket [R, V], loss [R]) in fp64; ignored rows are not yet 0."""
    x, vocab = q.logits.double(), q.logits.shape[1]
    y = q.cap * torch.tanh(x / q.cap) if q.cap else x
    m, z, p, log_d = parts(y)
    at = q.target.clamp(0, vocab - 1)[:, None]
    taking = y > -inf
    count = taking.sum(-1, keepdim=True)
    loss = (1 - q.eps) * (log_d - z.gather(1, at))
    if q.eps:
        loss = loss + q.eps / vocab * (count * log_d - torch.where(taking, z, 0.0).sum(-1, keepdim=True))
    lse = m + log_d
    if q.zeta:
        loss = loss + q.zeta * lse.square()
    weights = (taking * (q.eps / vocab)).double().scatter_add(1, at, torch.full_like(m, 1 - q.eps))
    bracket = (1 - q.eps + q.eps * count / vocab + 2 * q.zeta * lse) * p - weights
    return bracket * (1 - torch.tanh(x / q.cap).square()) if q.cap else bracket, loss[:, 0]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, q, of_loss, of_grad):
        ctx.q, ctx.of_grad = q, of_grad
        ctx.bracket, loss = bracket_and_loss(q)
        return of_loss(loss.masked_fill(q.ignored, 0.0), q).to(q.dtype or torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        ctx.q.upstream = upstream
        grad = (ctx.bracket * upstream.double()[:, None]).masked_fill(ctx.q.ignored[:, None], 0.0)
        return ctx.of_grad(grad, ctx.q).to(ctx.q.logits.dtype), None, None, None


def loss(of_loss=same, of_grad=same, of_mean=None, checked=True, input_dtype=False):
    """A cross-entropy, right unless something is put upon its losses [R], its gradients [R, V] or its mean []."""

    def kernel(logits, target, ignore_index=-100, label_smoothing=0.0, lse_square_scale=0.0, softcap=0.0, reduction="mean"):
        ignored = target == ignore_index
        if checked:
            check(target, logits.shape[1], ~ignored)
        q = SimpleNamespace(logits=logits, target=target, ignored=ignored, eps=label_smoothing, zeta=lse_square_scale, cap=softcap)
        q.dtype, q.mean = logits.dtype if input_dtype else None, reduction == "mean"
        losses = _Loss.apply(logits, q, of_loss, of_grad)
        if reduction == "none":
            return losses
        total = losses.double().sum()
        return ((of_mean or mean_of)(total, q) if reduction == "mean" else total).to(losses.dtype)

    return kernel


right_loss = loss()


def loss_too_large(logits, target, **options):
    return 1.05 * right_loss(logits, target, **options)


def row_1(values, change):
    """The values with row 1 changed."""
    return torch.cat([values[:1], change(values[1:2]), values[2:]])


def unshifted(values, q):
    """lse − x_t in fp32, where nothing but the target's term makes the loss."""
    if q.eps or q.zeta or q.cap:
        return values
    m, _, _, log_d = parts(q.logits)
    at = q.target.clamp(0, q.logits.shape[1] - 1)[:, None]
    return ((m + log_d).float() - q.logits.gather(1, at).float())[:, 0].double().masked_fill(q.ignored, 0.0)


def rounded_probabilities(grad, q):
    """p is rounded to the logits' format before 1 is subtracted from it."""
    x = q.logits.double()
    m, _, p, log_d = parts(q.cap * torch.tanh(x / q.cap) if q.cap else x)
    slope = 1 - torch.tanh(x / q.cap).square() if q.cap else 1.0
    off = (1 + 2 * q.zeta * (m + log_d)) * (p.to(q.logits.dtype).double() - p) * slope * q.upstream.double()[:, None]
    return grad + off.masked_fill(q.ignored[:, None], 0.0)


def smoothed_over_all(grad, q):
    """S = 1, as if every class took part in the smoothing, where 1 − ε + ε·(number taking part)/V is right."""
    x = q.logits.double()
    y = q.cap * torch.tanh(x / q.cap) if q.cap else x
    short = q.eps * (y == -inf).double().mean(-1, keepdim=True)
    return grad + (short * parts(y)[2] * q.upstream.double()[:, None]).masked_fill(q.ignored[:, None], 0.0)


def one_percent_of_little(grad, q):
    """1 % too much beyond an upstream gradient of 1, at targets whose p is so near 1 that the bound of the gradient allows it."""
    g, target = q.upstream.double()[:, None], torch.arange(grad.shape[1]) == q.target[:, None]
    little = target & (grad.abs() < 1e-5 * g.abs()) & (q.eps == 0)
    return torch.where(little & (g.abs() > 1), 1.01 * grad, grad)


def in_the_logits(grad, q):
    """The gradient in the memory of the logits."""
    overwrites_the_logits(grad, q)
    return q.logits.detach()


def overwrites_the_logits(grad, q):
    """As kernels do that keep the gradient in the memory of the logits."""
    with torch.no_grad():
        q.logits.copy_(grad)
    return grad


def into(out, grad):
    """Write all of a gradient but its last column into a buffer."""
    out[:, :-1] = grad[:, :-1]
    return out


def forgets_its_last_column(grad, q):
    return into(torch.empty(grad.shape), grad)


def writes_past_its_end(grad, q):
    out = grad.float().clone()
    if len(out):
        flat = torch.empty(out.numel()).copy_(out.flatten())
        flat.as_strided((1,), (1,), flat.storage_offset() + flat.numel()).fill_(0.0)
    return out


def mean_of(total, q):
    return total / (~q.ignored).sum()


def mean_past_a_buffer(total, q):
    scratch = torch.empty(1)
    scratch.as_strided((1,), (1,), scratch.storage_offset() + 1).fill_(0.0)
    return mean_of(total, q)


def under_the_mean(change):
    """A change of the gradient that the mean alone makes."""
    return lambda grad, q: change(grad, q) if q.mean else grad


def with_target(change):
    """The right loss of a changed target."""

    def kernel(logits, target, **options):
        return right_loss(logits, change(target, options.get("ignore_index", -100)), **options)

    return kernel


def steps_by_1(*wrong):
    """Losses that read the target, and the upstream gradient, as if contiguous where the stride is one of these."""

    def of_upstream(grad, q):
        read = as_if_contiguous(q.upstream, wrong)
        return (bracket_and_loss(q)[0] * read.double()[:, None]).masked_fill(q.ignored[:, None], 0.0)

    return with_target(lambda target, ignored: as_if_contiguous(target, wrong)), loss(of_grad=of_upstream)


def raises_without_a_word(logits, target, **options):
    try:
        return right_loss(logits, target, **options)
    except ValueError:
        raise ValueError from None


def out_of_range(q):
    return ~q.ignored & ((q.target < 0) | (q.target >= q.logits.shape[1]))


def nan_loss(values, q):
    return values.masked_fill(out_of_range(q), torch.nan)


def nan_gradient(grad, q):
    return grad.masked_fill(out_of_range(q)[:, None], torch.nan)


def nan_gradient_and_the_others_off(grad, q):
    return nan_gradient(grad * (1 + 1e-3 * out_of_range(q).any()), q)


unshifted_loss = loss(of_loss=unshifted)
narrow_gradient = loss(of_grad=rounded_probabilities)
gradient_twice_in_row_1 = loss(of_grad=lambda grad, q: row_1(grad, lambda row: 2 * row))
gradient_without_softcap = loss(
    of_grad=lambda grad, q: grad / (1 - torch.tanh(q.logits.double() / q.cap).square()).clamp(min=1e-30) if q.cap else grad
)
takes_upstream_for_granted = loss(of_grad=lambda grad, q: torch.where(q.upstream[:, None] == 0, grad, grad / q.upstream.double()[:, None]))
divides_by_all_rows = loss(of_mean=lambda total, q: total / len(q.target))
multiplies_ignored_rows_with_0 = loss(of_grad=lambda grad, q: grad + 0.0 * q.logits.sum(-1, keepdim=True) * q.ignored[:, None])
adds_the_neighbours_ignored_loss = loss(of_loss=lambda values, q: values + 1e-3 * q.ignored.roll(1))
slightly_negative = loss(of_loss=lambda values, q: torch.where((values == 0) & ~q.ignored, -1e-9, values))
takes_bad_targets = loss(checked=False)
nan_for_bad_targets = loss(of_loss=nan_loss, of_grad=nan_gradient, checked=False)
nan_loss_for_bad_targets = loss(of_loss=nan_loss, checked=False)
nan_for_bad_targets_and_the_others_off = loss(of_loss=nan_loss, of_grad=nan_gradient_and_the_others_off, checked=False)
narrows_targets = with_target(lambda target, ignored: narrowed(target))
always_ignores_minus_100 = with_target(lambda target, ignored: target.masked_fill(target == -100, ignored))
target_wrong_if_strided, upstream_wrong_if_strided = steps_by_1(2)
target_wrong_if_expanded, upstream_wrong_if_expanded = steps_by_1(0)
in_place_loss = loss(of_grad=in_the_logits)
in_place_loss_wrong_under_the_mean = loss(of_grad=lambda grad, q: in_the_logits(grad * (1.01 if q.mean else 1.0), q))
