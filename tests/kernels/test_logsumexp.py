"""The log-sum-exp on both routes: within its bound, right about strides, ends and wrong arguments."""

import pytest
import torch

import stabcheck
from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels.logsumexp import SPLIT, logsumexp  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.rows import TILE  # noqa: E402

inf, nan = float("inf"), float("nan")
ROUTES = ("one_level", "two_level")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def check(got, logits):
    stabcheck.assert_within_bound("logsumexp", got, logits, tile=TILE)


def hard_rows(vocab, dtype):
    bell = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 5
    last = torch.full((vocab,), -inf)
    last[-1] = 3.0
    spoilt, infinite = bell.clone(), bell.clone()
    spoilt[-1], infinite[0] = nan, inf
    rows = [bell, bell + 3e4, last, torch.full((vocab,), -inf), spoilt, infinite, torch.linspace(-6e4, 6e4, vocab)]
    return torch.stack(rows).to(dtype).to(DEVICE)


@pytest.mark.parametrize("vocab", [1, 3, 1025, SPLIT + 1, SPLIT + 16])
@pytest.mark.parametrize("route", ROUTES)
def test_both_routes_stay_within_the_bound(route, vocab):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = hard_rows(vocab, dtype)
        got = logsumexp(logits, route=route)
        assert got.dtype == torch.float32
        check(got, logits)


@pytest.mark.parametrize("route", ROUTES)
def test_strides_change_nothing(route):
    plain = torch.randn(5, 48, device=DEVICE)
    padded = torch.full((5, 60), nan, device=DEVICE)
    stepped = torch.full((5, 96), nan, device=DEVICE)
    padded[:, 7:55], stepped[:, ::2] = plain, plain
    for view in (padded[:, 7:55], stepped[:, ::2], plain.t().contiguous().t()):
        check(logsumexp(view, route=route), plain)
    assert (logsumexp(plain[:1].expand(4, 48), route=route) == logsumexp(plain[:1], route=route)).all()


@pytest.mark.parametrize("route", ("auto", *ROUTES))
def test_no_rows_give_no_rows(route):
    assert logsumexp(torch.empty(0, 5, device=DEVICE), route=route).shape == (0,)


X = torch.zeros(4, 8, device=DEVICE)
WRONG = {
    "logits have shape [8]; pass [rows, vocab], e.g. logits.reshape(": (X[0], {}),
    "logits have a vocab of 0; pass 1 to": (X[:, :0], {}),
    "logits have dtype torch.float64; pass torch.float32": (X.double(), {}),
    "unknown route 'twolevel'; use 'auto', 'one_level', 'two_level'": (X, {"route": "twolevel"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    logits, options = WRONG[message]
    with pytest.raises(UsageError) as error:
        logsumexp(logits, **options)
    assert message in str(error.value)
