"""Filters by sorting in fp64, one row at a time, and memory whose margins show what is written outside: for the kernels' own tests."""

from contextlib import contextmanager
from math import log
from types import SimpleNamespace
from unittest.mock import patch

import torch

inf = float("inf")
MARGIN, MARK = 1024, 42  # elements before and after each tensor, and what they hold


def filters_of(*settings, device):
    """Tensors of (temperature, top_k, top_p, min_p), one of each per row."""
    dtypes = (torch.float32, torch.int64, torch.float32, torch.float32)
    return [torch.tensor(values, dtype=dtype, device=device) for values, dtype in zip(zip(*settings, strict=True), dtypes, strict=True)]


def hard_cases(vocab):
    """(logits [rows, vocab], settings of each): what has broken filters, and what sends a row down each path."""
    generator = torch.Generator().manual_seed(vocab)
    bell = torch.randn(vocab, generator=generator) * 4
    coarse, flat, equal, ids = bell.round(), bell * 0.01, torch.zeros(vocab), torch.arange(vocab)
    masked = torch.where(torch.rand(vocab, generator=generator) < 0.5, -inf, bell)
    masked[-1] = 0.0
    cases = [
        (bell, (0.7, 40, 0.9, 0.05)),
        (coarse, (1.0, 7, 1.0, 0.0)),  # ties at the threshold
        (coarse, (1.0, 0, 0.6, 0.0)),
        (flat, (1.0, 0, 0.99, 0.0)),  # a nucleus of more than candidates
        (flat, (1.0, 129, 0.9, 0.0)),
        (masked, (1.0, 50, 0.95, 0.01)),
        (equal, (1.0, 3, 1.0, 0.0)),
        (equal, (1.0, 0, 0.31, 0.0)),
        (bell, (1e-40, 3, 0.9, 0.0)),  # subnormal: 1/T overflows
        (bell, (1.0, 0, 1.0, 0.0)),
        (bell, (1.0, 0, 0.9, 0.0)),
        (bell, (1.0, 0, 1.0, 0.05)),
        (masked, (2.0, vocab - 1, 1.0, 0.0)),  # more than are finite
        (equal - inf, (1.0, 5, 0.5, 0.1)),
        (torch.where(ids == vocab - 1, 3.0, -inf), (1.0, 2, 0.9, 0.1)),
        (coarse, (2.0**-149, 0, 0.5, 0.0)),
        (bell, (0.0, 0, 1.0, 0.0)),  # greedy
        (coarse, (0.0, 5, 0.1, 0.9)),
        (torch.linspace(-3e38, 3e38, vocab, dtype=torch.float64).float(), (1e37, 3, 0.9, 0.0)),  # differences overflow
        (bell, (3e38, 130, 1.0, 0.0)),
        (bell, (1.0, 0, 0.0, 0.0)),
        (bell, (1.0, 0, 1.0, 1.0)),
        (torch.where(ids % 2 == 0, -0.0, 0.0), (1.0, 4, 1.0, 0.0)),  # zeros are equal, whatever their sign
    ]
    rows, settings = zip(*cases, strict=True)
    return torch.stack(rows), settings


def judged(x, t, k, p, min_p):
    """Of a row with a distribution (x [vocab], fp64): z, what must be kept and what may be, where rounding decides."""
    x, vocab = x.double(), len(x)
    if t == 0:
        t, k, p, min_p = 1.0, 1, 1.0, 0.0
    z = (x - x.max()) / t
    order = x.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = torch.arange(vocab, device=x.device)
    among = rank < k if 0 < k < vocab else rank >= 0
    e = torch.where(among, z.exp(), 0.0)
    before = torch.empty_like(e)
    before[order] = e[order].cumsum(0) - e[order]
    must, may = among.clone(), among.clone()
    if p < 1:
        must &= (before < (p - 3e-6) * e.sum()) | (rank == 0)
        may &= (before < (p + 3e-6) * e.sum()) | (rank == 0)
    if min_p > 0:
        room = 3e-6 * (1 - log(min_p))
        must &= (z >= log(min_p) + room) | (x == x.max())
        may &= (z >= log(min_p) - room) | (x == x.max())
    return SimpleNamespace(z=z, must=must, may=may)


def wrong_rows(probs, logits, filters):
    """Rows whose probabilities keep what they must not, drop what they must keep, or are not what is kept renormalised."""
    wrong = []
    for row, (got, x) in enumerate(zip(probs.double(), logits.double(), strict=True)):
        if (x == -inf).all():
            right = (got == 0).all()
        else:
            by_hand = judged(x, *(values[row].item() for values in filters))
            z, kept = by_hand.z, (got > 0) | (by_hand.must & (by_hand.z < -80))  # exp(−80) may be 0
            weights = torch.where(kept, z.exp(), 0.0)
            exact = weights / weights.sum()
            near = (got - exact).abs() <= (1e-5 + 2e-6 * z.abs().clamp(max=100)) * exact + 1e-34
            right = (kept >= by_hand.must).all() & (kept <= by_hand.may).all() & near.all()
        if not right:
            wrong.append(row)
    return wrong


@contextmanager
def guarded_memory():
    """Gives torch.empty margins and contents; on leaving, the margins must be as they were."""
    given = []

    def empty(*shape, **options):
        shape = torch.Size(shape[0] if shape and not isinstance(shape[0], int) else shape)
        whole = torch.full((shape.numel() + 2 * MARGIN,), MARK, **options)
        given.append(whole)
        return whole[MARGIN:-MARGIN].view(shape)

    with patch.object(torch, "empty", empty):
        yield given
    assert given
    for whole in given:
        assert (whole[:MARGIN] == MARK).all()
        assert (whole[-MARGIN:] == MARK).all()
