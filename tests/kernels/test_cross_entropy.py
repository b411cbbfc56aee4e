"""The cross-entropy: loss and gradient within their bounds, right about strides, ends, targets out of range and wrong arguments, and its
module in the place of torch's.
"""

import pickle

import pytest
import torch

import stabcheck
from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels.cross_entropy import CrossEntropyLoss, cross_entropy  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.rows import TILE  # noqa: E402

inf, nan = float("inf"), float("nan")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def both(logits, target, upstream=None, **options):
    """(loss, gradient); the upstream gradient is 1 unless given."""
    leaf = logits.detach().requires_grad_()
    loss = cross_entropy(leaf, target, **options)
    seed = torch.ones_like(loss) if upstream is None else upstream
    return loss.detach(), torch.autograd.grad(loss, leaf, seed)[0]


def check(got, logits, target, upstream, **options):
    given = dict(zip(("loss", "grad"), got, strict=True))
    stabcheck.assert_within_bound("cross_entropy", given, logits, target, upstream, tile=TILE, options=options)


def batch(vocab, dtype=torch.float32):
    """Ordinary rows, an ignored one of NaN, masked classes, a masked target, p near 1."""
    bell = torch.randn(8, vocab, generator=torch.Generator().manual_seed(vocab)) * 5
    target = torch.tensor([0, vocab - 1, vocab // 2, -100, 0, vocab - 1, 0, vocab // 2])
    bell[3] = nan
    bell[4, 1::2] = -inf
    if vocab > 1:
        bell[5, -1] = -inf
    bell[6, 0] += 20
    upstream = torch.tensor([1.0, -2.0, 65536.0, 3.0, 0.5, 1.0, 1e-3, 0.0])
    return bell.to(dtype).to(DEVICE), target.to(DEVICE), upstream.to(DEVICE)


OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing alone": {"label_smoothing": 1.0},
    "z-loss": {"lse_square_scale": 1e-2},
    "all": {"label_smoothing": 0.5, "lse_square_scale": 1e-4, "softcap": 30.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("vocab", [1, 7, 1025])
def test_loss_and_gradient_stay_within_their_bounds(vocab, options):
    for dtype in (torch.float32, torch.bfloat16) if vocab == 7 else (torch.float32,):
        given = batch(vocab, dtype)
        check(both(*given, reduction="none", **options), *given, reduction="none", **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_count_the_rows_that_are_not_ignored(reduction):
    logits, target, upstream = batch(7)
    logits[5] = 0.0
    options = {"reduction": reduction, "label_smoothing": 0.1}
    check(both(logits, target, upstream[1], **options), logits, target, upstream[1].expand(8), **options)


@pytest.mark.parametrize("vocab", [8200, 8208])
def test_a_gradient_longer_than_one_program_writes(vocab):
    logits = torch.randn(2, vocab, device=DEVICE)
    given = (logits, torch.tensor([vocab - 1, 8191], device=DEVICE), torch.tensor([1.0, -3.0], device=DEVICE))
    check(both(*given, reduction="none"), *given, reduction="none")


def test_strides_change_nothing():
    logits, target, upstream = batch(16)
    wide = torch.full((8, 40), nan, device=DEVICE)
    wide[:, 3:35:2] = logits
    inputs = [torch.stack([values, values.flip(0)], 1)[:, 0] for values in (target, upstream)]
    for view in (wide[:, 3:35:2], logits.t().contiguous().t()):
        check(both(view, *inputs, reduction="none"), logits, target, upstream, reduction="none")
    same = (target[1:2].expand(8), upstream[1:2].expand(8))
    logits[3] = 0.0
    check(both(logits, *same, reduction="none"), logits, *(values.contiguous() for values in same), reduction="none")
    rows = logits[1:2].expand(8, 16)
    check(both(rows, *same, reduction="none"), rows.contiguous(), *(values.contiguous() for values in same), reduction="none")


@pytest.mark.parametrize(("reduction", "expected"), [("none", []), ("sum", 0.0), ("mean", nan)])
def test_no_rows(reduction, expected):
    loss, grad = both(torch.empty(0, 5, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE), reduction=reduction)
    assert str(loss.tolist()) == str(expected)
    assert grad.shape == (0, 5)


@pytest.mark.parametrize("fill", [0.0, nan])
def test_the_mean_of_ignored_rows_is_nan_and_their_gradient_0(fill):
    loss, grad = both(torch.full((3, 5), fill, device=DEVICE), torch.full((3,), 2, device=DEVICE), ignore_index=2)
    assert loss.isnan()
    assert (grad == 0).all()


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
def test_a_masked_target_is_an_infinite_loss_with_a_finite_gradient(eps):
    logits = torch.tensor([[0.0, -inf, 1.0]], device=DEVICE)
    loss, grad = both(logits, torch.tensor([1], device=DEVICE), label_smoothing=eps)
    assert loss == inf
    assert grad.isfinite().all()


def test_masked_smoothing_inf_is_torchs():
    logits, target = torch.tensor([[0.0, -inf, 1.0]], device=DEVICE), torch.tensor([0], device=DEVICE)
    skipping, infinite = (cross_entropy(logits, target, label_smoothing=0.1, masked_smoothing=how) for how in ("skip", "inf"))
    assert skipping.isfinite()
    assert infinite == inf == torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)


@pytest.mark.parametrize("bad", [7, -1, -2, 2**32 + 3])
def test_a_target_out_of_range_raises_or_makes_its_row_nan_and_no_other(bad):
    logits, target = torch.randn(3, 7, device=DEVICE), torch.tensor([0, 6, 3], device=DEVICE)
    right = both(logits, target, reduction="none", bad_target="nan")
    target[1] = bad
    with pytest.raises(UsageError, match=rf"a target is {bad} in row 1 .* vocab of 7; pass 0 to 6, or ignore_index \(-100\)"):
        cross_entropy(logits, target, bad_target="raise")
    for got, without in zip(both(logits, target, reduction="none", bad_target="nan"), right, strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[::2], without[::2])
    assert cross_entropy(logits, target, bad_target="nan").isnan()


def test_minus_100_is_a_bad_target_where_another_index_is_ignored():
    logits, target = torch.zeros(2, 7, device=DEVICE), torch.tensor([0, -100], device=DEVICE)
    with pytest.raises(UsageError, match="a target is -100 in row 1"):
        cross_entropy(logits, target, ignore_index=0, bad_target="raise")


def test_second_derivatives_are_refused():
    logits = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1], device=DEVICE))
    with pytest.raises(UsageError, match=r"create_graph=True asks for second derivatives.*torch\.nn\.CrossEntropyLoss"):
        torch.autograd.grad(loss, logits, create_graph=True)


# ---- the gradient over the logits


def test_in_place_the_gradient_is_the_logits_memory():
    logits, target, upstream = batch(16)
    loss, grad = both(logits, target, upstream, reduction="none")
    own = logits.clone()
    loss_in_place, grad_in_place = both(own, target, upstream, reduction="none", inplace_backward=True)
    assert grad_in_place.data_ptr() == own.data_ptr()
    assert torch.equal(loss_in_place, loss)
    assert torch.equal(grad_in_place, grad)


def test_in_place_who_else_saved_the_logits_learns_of_it():
    logits = torch.randn(2, 3, device=DEVICE, requires_grad=True) * 1.0
    loss = cross_entropy(logits, torch.tensor([0, 1], device=DEVICE), inplace_backward=True)
    square = logits.square().sum()
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(square, logits)


# ---- wrong use

X, L = torch.zeros(4, 8, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
WRONG = {
    "logits have shape [8]; pass [rows, vocab], e.g. logits.reshape(": ((X[0], L), {}),
    "logits have a vocab of 0; pass 1 to": ((X[:, :0], L), {}),
    "logits have dtype torch.float64; pass torch.float32": ((X.double(), L), {}),
    "target has shape [3] but logits have 4 rows; pass one per row, i.e. shape [4]": ((X, L[:3]), {}),
    "target has dtype torch.int32; pass target.to(torch.int64)": ((X, L.int()), {}),
    "target is on meta but logits are on": ((X, L.to("meta")), {}),
    "unknown reduction 'avg'; use 'mean', 'sum', 'none'": ((X, L), {"reduction": "avg"}),
    "unknown masked_smoothing 'none'; use 'skip', 'inf'": ((X, L), {"masked_smoothing": "none"}),
    "unknown bad_target 'zero'; use 'trap', 'raise', 'nan'": ((X, L), {"bad_target": "zero"}),
    "label_smoothing is 1.5; pass 0 to 1": ((X, L), {"label_smoothing": 1.5}),
    "label_smoothing is nan; pass 0 to 1": ((X, L), {"label_smoothing": nan}),
    "lse_square_scale is -1.0; pass 0 to 1e30": ((X, L), {"lse_square_scale": -1.0}),
    "softcap is -30.0; pass 1e-30 to 1e30, or 0 for none": ((X, L), {"softcap": -30.0}),
    "logits have strides (0, 1), so that elements share memory; pass logits.contiguous()": (
        (X[:1].expand(4, 8), L),
        {"inplace_backward": True},
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    arguments, options = WRONG[message]
    with pytest.raises(UsageError) as error:
        cross_entropy(*arguments, **options)
    assert message in str(error.value)


# ---- the module


def outcome(module, input, target):
    leaf = input.detach().requires_grad_()
    loss = module(leaf, target)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


SETTINGS = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "ignore_index": 2},
    {"ignore_index": 1, "label_smoothing": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_module_agrees_with_torchs_for_a_batch_and_for_one(settings):
    input, target = torch.randn(5, 7, device=DEVICE), torch.tensor([0, 6, 2, 1, 3], device=DEVICE)
    theirs, made = torch.nn.CrossEntropyLoss(**settings), CrossEntropyLoss(**settings)
    for ours in (made, pickle.loads(pickle.dumps(made))):
        for given in ((input, target), (input[0], target[0])):
            for got, expected in zip(outcome(ours, *given), outcome(theirs, *given), strict=True):
                torch.testing.assert_close(got, expected)


def test_the_module_takes_torchs_arguments_by_position():
    assert CrossEntropyLoss(None, None, 3).ignore_index == torch.nn.CrossEntropyLoss(None, None, 3).ignore_index


def test_the_module_keeps_torchs_attributes_and_reads_them():
    settings = {"ignore_index": 3, "reduction": "sum", "label_smoothing": 0.25}
    ours, theirs = CrossEntropyLoss(**settings), torch.nn.CrossEntropyLoss(**settings)
    for name in ("weight", *settings):
        assert getattr(ours, name) == getattr(theirs, name)
    ours.reduction = theirs.reduction = "none"
    target = torch.tensor([3, 1], device=DEVICE)
    torch.testing.assert_close(ours(X[:2], target), theirs(X[:2], target))


def test_the_module_hands_its_other_options_on():
    made = CrossEntropyLoss(bad_target="nan", softcap=30.0, reduction="none")
    assert made(X[:2], torch.tensor([0, 9], device=DEVICE)).isnan().tolist() == [False, True]


UNKNOWN = {
    "unknown option 'smoothing'; cross_entropy has ignore_index, label_smoothing,": {"smoothing": 0.1},
    "unknown reduction 'avg'; use 'mean', 'sum', 'none'": {"reduction": "avg"},
    "class weights are not supported: use torch.nn.CrossEntropyLoss": {"weight": torch.ones(3)},
    "size_average and reduce are deprecated in torch and not supported; pass reduction=": {"size_average": True},
}


@pytest.mark.parametrize("message", UNKNOWN)
def test_the_module_refuses_what_it_does_not_know_when_it_is_made(message):
    with pytest.raises(UsageError) as error:
        CrossEntropyLoss(**UNKNOWN[message])
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["logits", "target"])
def test_the_module_takes_no_option_for_a_tensor(name):
    with pytest.raises(UsageError, match=name):
        CrossEntropyLoss(**{name: X})


MISSHAPEN = {
    "input has shape [2, 3, 4]; pass (N, C) or (C), e.g. input.movedim(1, -1)": (torch.zeros(2, 3, 4), L),
    "class probabilities are not supported, pass class indices": (X, X),
    "target has shape [4] but input has no batch; pass one class index, shape []": (X[0], L),
}


@pytest.mark.parametrize("message", MISSHAPEN)
def test_the_module_refuses_what_torchs_takes_and_it_does_not(message):
    with pytest.raises(UsageError) as error:
        CrossEntropyLoss()(*MISSHAPEN[message])
    assert message in str(error.value)
