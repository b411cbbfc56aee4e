"""The log-probability and entropy: within their bounds, right about strides, ends, labels out of range and wrong arguments."""

import pytest
import torch

import stabcheck
from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels import token_logprob as module  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.rows import TILE  # noqa: E402
from stabcheck.kernels.token_logprob import token_logprob  # noqa: E402

inf, nan = float("inf"), float("nan")
LAUNCHES = {"whole": module._whole, "split": module._split}
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


@pytest.fixture(params=LAUNCHES)
def launch(request, monkeypatch):
    """Both launches, whatever the shape."""
    for name in ("_whole", "_split"):
        monkeypatch.setattr(module, name, LAUNCHES[request.param])


def check(got, *arguments):
    stabcheck.assert_within_bound("token_logprob", got, *arguments, tile=TILE)


def hard_batch(vocab, dtype=torch.float32):
    bell = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 5
    last = torch.full((vocab,), -inf)
    last[-1] = 3.0
    spoilt = bell.clone()
    spoilt[0] = nan
    rows = [(bell, 0, 1.0), (bell, vocab - 1, 1e-3), (bell, vocab // 2, 100.0), (last, vocab - 1, 1.0), (last, 0, 0.5), (spoilt, 0, 1.0)]
    rows.append((torch.full((vocab,), -inf), 0, 1.0))
    logits, labels, temperature = zip(*rows, strict=True)
    return torch.stack(logits).to(dtype).to(DEVICE), torch.tensor(labels, device=DEVICE), torch.tensor(temperature, device=DEVICE)


@pytest.mark.parametrize("vocab", [1, 3, module.SPLIT + 1, module.SPLIT + 16])
def test_both_launches_stay_within_the_bound(launch, vocab):
    for dtype in (torch.float32, torch.bfloat16):
        batch = hard_batch(vocab, dtype)
        check(token_logprob(*batch, bad_label="raise"), *batch)


def test_strides_change_nothing(launch):
    logits, labels, temperature = hard_batch(48)
    wide = torch.full((len(logits), 104), nan, device=DEVICE)
    wide[:, 3:99:2] = logits
    each = [torch.stack([values, values.flip(0)], 1)[:, 0] for values in (labels, temperature)]
    check(token_logprob(wide[:, 3:99:2], *each), logits, labels, temperature)
    same = (labels[1:2].expand(len(labels)), temperature[1:2].expand(len(labels)))
    check(token_logprob(logits, *same), logits, *(values.contiguous() for values in same))


def test_no_rows_give_no_rows(launch):
    none = torch.empty(0, device=DEVICE)
    assert [r.shape for r in token_logprob(torch.empty(0, 5, device=DEVICE), none.long(), none)] == [(0,), (0,)]


@pytest.mark.parametrize("bad", [7, -1, -100, 2**32])
def test_a_label_out_of_range_raises_or_makes_its_row_nan_and_no_other(launch, bad):
    logits, labels, temperature = torch.randn(3, 7, device=DEVICE), torch.tensor([0, 6, 3], device=DEVICE), torch.ones(3, device=DEVICE)
    right = token_logprob(logits, labels, temperature, bad_label="nan")
    labels[1] = bad
    with pytest.raises(UsageError, match=f"a label is {bad} in row 1 but logits have a vocab of 7; pass 0 to 6"):
        token_logprob(logits, labels, temperature, bad_label="raise")
    for got, without in zip(token_logprob(logits, labels, temperature, bad_label="nan"), right, strict=True):
        assert got.isnan().tolist() == [False, True, False]
        assert torch.equal(got[::2], without[::2])


X, L, T = torch.zeros(4, 8, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE), torch.ones(4, device=DEVICE)
WRONG = {
    "logits have shape [8]; pass [rows, vocab], e.g. logits.reshape(": ((X[0], L, T), {}),
    "logits have a vocab of 0; pass 1 to": ((X[:, :0], L, T), {}),
    "labels has shape [3] but logits have 4 rows; pass one per row, i.e. shape [4]": ((X, L[:3], T), {}),
    "labels has dtype torch.int32; pass labels.to(torch.int64)": ((X, L.int(), T), {}),
    "temperature has dtype torch.float64; pass temperature.to(torch.float32)": ((X, L, T.double()), {}),
    "temperature is on meta but logits are on": ((X, L, T.to("meta")), {}),
    "unknown bad_label 'zero'; use 'trap', 'raise', 'nan'": ((X, L, T), {"bad_label": "zero"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    arguments, options = WRONG[message]
    with pytest.raises(UsageError) as error:
        token_logprob(*arguments, **options)
    assert message in str(error.value)
