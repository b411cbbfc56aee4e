"""The filtered softmax on both routes: kept sets and probabilities against sorting in fp64, and right about memory and wrong arguments.

Vocab sizes take each path: at most 128 candidates, one tile of 4096 held by a program, maxima of groups, maxima of spans; passes follow
where candidates do not suffice.
"""

import pytest
import torch
from by_hand import filters_of, guarded_memory, hard_cases, wrong_rows

from stabcheck.devices import prepare
from stabcheck.errors import UsageError

DEVICE = prepare("auto")

from stabcheck.kernels import filtering as module  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.filtering import filtered_probs  # noqa: E402

inf, nan = float("inf"), float("nan")
ROUTES = ("auto", "general")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def batch(vocab, rows=None, dtype=torch.float32):
    logits, settings = hard_cases(vocab)
    logits = logits[:rows].to(dtype)
    if dtype == torch.float16:
        logits = logits.clamp_max(6e4)  # no +inf
    return logits.to(DEVICE), filters_of(*settings[:rows], device=DEVICE)


def bell(rows, vocab, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)).to(DEVICE) * 3


def column(values, dtype):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def ones(rows):
    return torch.ones(rows, device=DEVICE)


def top_k(values):
    return column(values, torch.int64)


def same_bits(a, b):
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [*((v, torch.float32) for v in (1, 5, 128, 129, 4097)), (130, torch.bfloat16), (144, torch.float16)],
    ids=str,
)
def test_each_path_keeps_what_sorting_in_fp64_keeps(vocab, dtype):
    logits, filters = batch(vocab, dtype=dtype)
    assert wrong_rows(filtered_probs(logits, *filters), logits, filters) == []


@pytest.mark.parametrize(("vocab", "rows"), [(5, 7), (130, 6), (4112, 3)])
def test_the_general_route_keeps_what_auto_keeps(vocab, rows):
    logits, filters = batch(vocab, rows)
    got, auto = filtered_probs(logits, *filters, route="general"), filtered_probs(logits, *filters)
    assert wrong_rows(got, logits, filters) == []
    assert torch.equal(got > 0, auto > 0)
    torch.testing.assert_close(got, auto, rtol=1e-5, atol=0)


def test_maxima_of_spans_narrow_long_rows():
    logits = bell(3, 33_000)
    logits[1, ::300] = 20.0  # 110 equal maxima in as many spans
    logits[2, 4000:4300] = 20.0  # more than candidates, in one or two spans
    filters = filters_of((1.0, 50, 0.9, 0.0), (1.0, 60, 1.0, 0.0), (1.0, 0, 0.5, 0.0), device=DEVICE)
    assert module.spans_block(33_000, 2) > 128
    assert wrong_rows(filtered_probs(logits, *filters), logits, filters) == []


def test_a_wrong_probability_or_one_id_too_many_is_noticed():
    logits, filters = batch(130, 4)
    probs = filtered_probs(logits, *filters)
    first = probs[0].argmax()
    probs[0, first] *= 1 + 1e-3
    probs[1, (probs[1] == 0).nonzero()[0]] = 1e-3
    probs[2, probs[2].argmax()] = 0.0
    assert wrong_rows(probs, logits, filters) == [0, 1, 2]


@pytest.mark.parametrize(
    ("vocab", "route", "counts"),
    [
        (130, "auto", (*range(-1, 6), *range(6, 126, 8), *range(126, 133))),
        (130, "general", (1, 2, 65, 127, 129)),
        (4100, "auto", (0, 1, 64, 127, 128, 129, 1000, 4097, 4099, 2**40)),
        (4100, "general", (128, 4099)),
    ],
)
def test_top_k_keeps_exactly_k_and_of_ties_the_lowest_ids(vocab, route, counts):
    row = bell(1, vocab).round()
    probs = filtered_probs(row.expand(len(counts), -1), ones(len(counts)), top_k(list(counts)), route=route)
    order = row[0].sort(descending=True, stable=True).indices
    for k, got in zip(counts, probs, strict=True):
        n = k if 0 < k < vocab else vocab
        assert got.nonzero()[:, 0].tolist() == sorted(order[:n].tolist())
        assert abs(got.sum().item() - 1) < 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_the_token_that_crosses_p_stays_and_of_ties_the_lowest_ids(route):
    row = torch.tensor([0.125, 0.5, 0.125, 0.125, 0.125], device=DEVICE).log()
    wanted = {0.0: [1], 0.25: [1], 0.55: [0, 1], 0.7: [0, 1, 2], 0.8: [0, 1, 2, 3], 0.9: [0, 1, 2, 3, 4], 1.0: [0, 1, 2, 3, 4]}
    p = column(list(wanted), torch.float32)
    probs = filtered_probs(row.expand(len(p), -1), ones(len(p)), top_p=p, route=route)
    assert [got.nonzero()[:, 0].tolist() for got in probs] == list(wanted.values())


def test_top_p_is_of_what_top_k_left_and_min_p_of_the_maximum():
    row = torch.tensor([[0.4, 0.3, 0.2, 0.1]], device=DEVICE).log()
    p, low, both = (column([v], torch.float32) for v in (0.5, 0.7, 0.6))
    assert filtered_probs(row, ones(1), top_k([2]), p)[0].nonzero()[:, 0].tolist() == [0]  # 0.4/0.7 is past 0.5; of all it is not
    assert filtered_probs(row, ones(1), None, None, low)[0].nonzero()[:, 0].tolist() == [0, 1]
    assert filtered_probs(row, ones(1), top_k([3]), both, low)[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


@pytest.mark.parametrize(("vocab", "route"), [(5, "auto"), (130, "auto"), (4100, "auto"), (5, "general")])
def test_none_and_values_that_are_off_give_the_same_bits(vocab, route):
    logits, t = bell(4, vocab), column([1.0, 0.3, 0.0, 2.0], torch.float32)
    off_k, off_p = top_k([0, -7, vocab, 2**40]), column([1.0, 2.0, inf, 1.0], torch.float32)
    off_min = column([0, -1, -0.0, 0], torch.float32)
    k, p, low = top_k([3, 1, 2, vocab - 1]), column([0.9, 0.1, 0.5, 0.9], torch.float32), column([0.1, 0.5, 0.9, 0.01], torch.float32)
    for none, off in [
        ((None, None, None), (off_k, off_p, off_min)),
        ((k, None, None), (k, off_p, off_min)),
        ((None, p, low), (off_k, p, low)),
    ]:
        assert same_bits(filtered_probs(logits, t, *none, route=route), filtered_probs(logits, t, *off, route=route))


@pytest.mark.parametrize("route", ROUTES)
def test_greedy_is_1_at_the_first_maximum_whatever_the_filters(route):
    logits = torch.zeros(3, 130, device=DEVICE)
    logits[0, 60:], logits[1, 1:], logits[2, 129] = 1.0, -0.0, 5.0
    probs = filtered_probs(logits, torch.zeros(3, device=DEVICE), top_k([0, 50, 3]), column([1.0, 0.5, 0.9], torch.float32), route=route)
    assert probs.nonzero().tolist() == [[0, 60], [1, 0], [2, 129]]
    assert probs.sum() == 3


@pytest.mark.parametrize("vocab", (5, 130, 4100))
def test_nan_and_inf_make_their_own_row_nan_and_no_other(vocab):
    logits, filters = batch(vocab, 4)
    clean = filtered_probs(logits, *filters)
    logits[1, -1], logits[3, 0] = nan, inf
    got = filtered_probs(logits, *filters)
    assert got[[1, 3]].isnan().all()
    assert same_bits(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("vocab", (100, 4112))
def test_a_row_alone_and_in_any_slot_has_the_same_bits(vocab):
    logits, filters = batch(vocab, 4)
    whole = filtered_probs(logits, *filters)
    order = [3, 0]
    assert same_bits(filtered_probs(logits[order], *(f[order] for f in filters)), whole[order])
    assert same_bits(filtered_probs(logits[2:3], *(f[2:3] for f in filters)), whole[2:3])


LAYOUTS = {
    "padded": lambda rows, cols: torch.empty(rows, cols + 7, device=DEVICE)[:, 3 : cols + 3],
    "stepped": lambda rows, cols: torch.empty(rows, 2 * cols, device=DEVICE)[:, ::2],
    "transposed": lambda rows, cols: torch.empty(cols, rows, device=DEVICE).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vocab", (144, 4112))
def test_strides_change_nothing(vocab, layout):
    logits, filters = batch(vocab, 3)
    view = LAYOUTS[layout](*logits.shape)
    view._base.fill_(nan)
    view.copy_(logits)
    doubled = [torch.stack([f, f], 1)[:, 0] for f in filters]  # of stride 2
    got = filtered_probs(view, *doubled)
    assert got.is_contiguous()
    torch.testing.assert_close(got, filtered_probs(logits, *filters), rtol=1e-5, atol=0)
    assert torch.equal(view, logits)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("vocab", (5, 130, 4100))
def test_nothing_is_written_outside_and_no_element_is_left_out(vocab, route):
    logits, filters = batch(vocab, 2)
    before = [t.clone() for t in (logits, *filters)]
    with guarded_memory():
        probs = filtered_probs(logits, *filters, route=route)
    assert wrong_rows(probs, logits, filters) == []
    assert (probs.dtype, probs.shape, probs.is_contiguous()) == (torch.float32, logits.shape, True)
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, *filters), strict=True))


@pytest.mark.parametrize("vocab", (5, 130, 4100, 9000))
def test_greedy_rows_without_filters_write_nothing_outside_either(vocab):
    logits, t = bell(2, vocab), torch.zeros(2, device=DEVICE)
    with guarded_memory():
        probs = filtered_probs(logits, t)
    assert probs.nonzero().tolist() == [[row, id] for row, id in enumerate(logits.argmax(1).tolist())]


@pytest.mark.parametrize("route", ROUTES)
def test_no_rows_give_no_rows(route):
    none = torch.empty(0, device=DEVICE)
    probs = filtered_probs(torch.empty(0, 5, device=DEVICE), none, none.long(), none, none, route=route)
    assert (probs.shape, probs.dtype) == ((0, 5), torch.float32)


def test_the_vocab_and_the_route_decide_the_path():
    assert [module.level_of(v, "auto") for v in (1, 128, 129, 4096, 4097, 262144, 262145)] == [0, 0, 1, 1, 2, 2, 3]
    assert {module.level_of(v, "general") for v in (1, 129, 4097)} == {3}


X, T = torch.zeros(4, 8, device=DEVICE), torch.ones(4, device=DEVICE)
WRONG = {
    "logits have shape [4]; pass [rows, vocab], e.g. logits.reshape(": ((T, T), {}),
    "logits have a vocab of 0; pass 1 to": ((X[:, :0], T), {}),
    "logits have dtype torch.float64; pass torch.float32": ((X.double(), T), {}),
    "temperature has shape [3] but logits have 4 rows; pass one per row, i.e. shape [4]": ((X, T[:3]), {}),
    "temperature has dtype torch.float64; pass temperature.to(torch.float32)": ((X, T.double()), {}),
    "temperature is on meta but logits are on": ((X, T.to("meta")), {}),
    "top_k has shape [4, 1] but logits have 4 rows": ((X, T, T.long()[:, None]), {}),
    "top_k has dtype torch.int32; pass top_k.to(torch.int64)": ((X, T, T.int()), {}),
    "top_p has dtype torch.int64; pass top_p.to(torch.float32)": ((X, T, None, T.long()), {}),
    "top_p has shape [1] but logits have 4 rows": ((X, T, None, T[:1]), {}),
    "min_p has shape [] but logits have 4 rows": ((X, T, None, None, T[0]), {}),
    "min_p is on meta but logits are on": ((X, T, None, None, T.to("meta")), {}),
    "unknown route 'genral'; use 'auto', 'general'": ((X, T), {"route": "genral"}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    arguments, options = WRONG[message]
    with pytest.raises(UsageError) as error:
        filtered_probs(*arguments, **options)
    assert message in str(error.value)
