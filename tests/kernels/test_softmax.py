"""The fused softmax on every route: within the derived bound of fp64, and right about rows, memory and wrong arguments.

Vocab sizes are one tile, one tile and a bit, and the ends; rows are those that break such kernels, all in one batch.
"""

import pytest
import torch

from stabcheck.batches import Batch
from stabcheck.bounds import Contract
from stabcheck.devices import describe, prepare
from stabcheck.errors import UsageError
from stabcheck.floats import by_name, name_of
from stabcheck.operations import operation

DEVICE = prepare("auto")

from stabcheck.kernels import softmax as module  # noqa: E402  (Triton's interpreter is chosen above)
from stabcheck.kernels.softmax import softmax  # noqa: E402

inf, nan = float("inf"), float("nan")
ROUTES = ("single_pass", "online", "split")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VOCABS = (1, 3, 513, 1025)


def _but(vocab, at, value, background):
    row = torch.full((vocab,), background) if isinstance(background, float) else background.clone()
    row[at] = value
    return row


def hard_rows(vocab):
    """(row, temperature) of everything that has broken a softmax."""
    bell = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 5
    last, middle = vocab - 1, vocab // 2
    return [
        (bell, 1.0),
        (bell, 1e-3),
        (bell, 1e-38),
        (bell, 1e-40),  # subnormal: 1/T overflows
        (bell, 100.0),
        (torch.zeros(vocab), 0.7),
        (torch.linspace(-3e38, 3e38, vocab), 1e30),  # the difference of two logits overflows
        (torch.linspace(-3e38, 3e38, vocab), 1e-38),
        (_but(vocab, last, 0.0, -inf), 1.0),  # -inf up to the last column
        (_but(vocab, slice(middle, None), -inf, bell) if vocab > 1 else bell, 0.1),
        (_but(vocab, middle, 1e4, bell), 1e-3),
        (torch.full((vocab,), -inf), 1.0),
        (_but(vocab, last, nan, -inf), 1.0),  # a NaN that a maximum would drop
        (_but(vocab, 0, nan, bell), 0.0),
        (_but(vocab, last, inf, 0.0), 1.0),
        (bell, 0.0),  # greedy
        (_but(vocab, slice(middle, None), 50.0, bell), 0.0),  # greedy among ties
        (torch.full((vocab,), -inf), 0.0),
    ]


def hard_batch(vocab, dtype):
    rows, temperatures = zip(*hard_rows(vocab), strict=True)
    return torch.stack(rows).to(dtype).to(DEVICE), torch.tensor(temperatures, device=DEVICE)


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def wrong_elements(result, logits, temperature, empty_row="nan"):
    """Where the result is further from fp64 than a correct kernel can be."""
    policies = {"empty_row": empty_row, "zero_temperature": "greedy"}
    contract = Contract(by_name(name_of(logits.dtype)), by_name(name_of(result.dtype)), describe(DEVICE).profile, policies)
    expected = operation("temperature_softmax").reference(Batch(logits, {"temperature": temperature}), contract)["probs"]
    off = (result.double() - expected.value).abs() > expected.bound
    return (off | (result.isnan() != expected.value.isnan())).nonzero().tolist()


@pytest.mark.parametrize(
    ("dtype", "vocab"),
    [*((torch.float32, v) for v in VOCABS), *((dtype, v) for dtype in DTYPES[1:] for v in (3, 1025))],  # narrow: loads and stores differ
    ids=lambda value: name_of(value) if isinstance(value, torch.dtype) else None,
)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_stays_within_the_bound_of_fp64(route, dtype, vocab):
    logits, temperature = hard_batch(vocab, dtype)
    assert not wrong_elements(softmax(logits, temperature, route=route), logits, temperature)
    zeros = softmax(logits, temperature, route=route, empty_row="zeros", out_dtype=torch.float32)
    assert not wrong_elements(zeros, logits, temperature, empty_row="zeros")


def test_the_bound_can_be_missed():
    logits, temperature = hard_batch(513, torch.float32)
    result = softmax(logits, temperature)
    result[0, 7] *= 1 + 1e-4
    assert wrong_elements(result, logits, temperature) == [[0, 7]]


@pytest.mark.parametrize("route", ROUTES)
def test_greedy_takes_the_first_of_equal_maxima(route):
    logits = torch.zeros(2, 1030, device=DEVICE)
    logits[0, 600:] = 1.0
    logits[1, 100:] = -0.0
    result = softmax(logits, torch.zeros(2, device=DEVICE), route=route)
    assert result.nonzero().tolist() == [[0, 600], [1, 0]]
    assert result.sum() == 2


@pytest.mark.parametrize("route", ROUTES)
def test_a_nan_stays_in_its_row(route):
    logits = torch.randn(3, 1030, device=DEVICE)
    clean = softmax(logits, torch.ones(3, device=DEVICE), route=route)
    logits[1, 1029] = nan
    spoilt = softmax(logits, torch.ones(3, device=DEVICE), route=route)
    assert spoilt[1].isnan().all()
    assert same_bits(spoilt[::2], clean[::2])


LAYOUTS = {
    "padded": lambda rows, cols: torch.empty(rows, cols + 7, device=DEVICE)[:, 3 : cols + 3],
    "every second column": lambda rows, cols: torch.empty(rows, 2 * cols, device=DEVICE)[:, ::2],
    "transposed": lambda rows, cols: torch.empty(cols, rows, device=DEVICE).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("route", ROUTES)
def test_strides_change_nothing_and_in_place_writes_nothing_else(route, layout):
    logits, temperature = torch.randn(5, 528, device=DEVICE), torch.rand(5, device=DEVICE)
    view = LAYOUTS[layout](5, 528)
    whole = view._base
    whole.fill_(42.0)
    view.copy_(logits)
    result = softmax(view, temperature, route=route)
    assert wrong_elements(result, logits, temperature) == []  # within the bound: lanes have other maxima, and their errors are of exponents
    assert softmax(view, temperature, route=route, out=view) is view
    assert same_bits(view, result)
    view.fill_(42.0)
    assert (whole == 42.0).all()


def test_rows_may_be_expanded_and_temperatures_too():
    logits = torch.randn(1, 100, device=DEVICE).expand(4, 100)
    result = softmax(logits, torch.ones(1, device=DEVICE).expand(4))
    assert same_bits(result, softmax(logits.contiguous(), torch.ones(4, device=DEVICE)))


@pytest.mark.parametrize("route", (*ROUTES, "auto"))
def test_no_rows_give_no_rows(route):
    assert softmax(torch.empty(0, 5, device=DEVICE), torch.empty(0, device=DEVICE), route=route).shape == (0, 5)


def test_auto_takes_every_route():
    shapes = [(8, 1000), (512, 32000), (8, 128256), (512, 128256)]
    assert [module._choose(*shape) for shape in shapes] == ["single_pass", "online", "split", "online"]


X, T = torch.zeros(4, 8, device=DEVICE), torch.ones(4, device=DEVICE)
WRONG = {
    "temperature has shape [3] but logits have 4 rows; pass one temperature per row, e.g. torch.ones(4)": ((X, T[:3]), {}),
    "temperature has dtype torch.float64; pass temperature.float()": ((X, T.double()), {}),
    "logits have shape [4]; pass [rows, vocab]": ((T, T), {}),
    "logits have a vocab of 0; pass 1 to": ((X[:, :0], T), {}),
    "logits have dtype torch.float64; pass torch.float32": ((X.double(), T), {}),
    "temperature is on meta but logits are on": ((X, T.to("meta")), {}),
    "out is torch.float32 [4, 9]": ((X, T), {"out": torch.empty(4, 9, device=DEVICE)}),
    "out has strides (0, 1), so that elements share memory": ((X, T), {"out": X[:1].clone().expand(4, 8)}),
    "the output would have dtype torch.float16; use the logits' torch.float32": ((X, T), {"out_dtype": torch.float16}),
    "unknown route 'spilt'; use 'auto', 'single_pass', 'online', 'split'": ((X, T), {"route": "spilt"}),
    "unknown empty_row 'zero'; use 'nan' or 'zeros'": ((X, T), {"empty_row": "zero"}),
    "route 'single_pass' holds up to 32768 logits but the vocab is 32769": (
        (torch.zeros(4, 32769, device=DEVICE), T),
        {"route": "single_pass"},
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_is_told_the_value_and_the_cure(message):
    arguments, options = WRONG[message]
    with pytest.raises(UsageError) as error:
        softmax(*arguments, **options)
    assert message in str(error.value)


needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no GPU, and through the interpreter these sizes take minutes")


@needs_gpu
@pytest.mark.parametrize("vocab", (32000, 50257, 128256))
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_real_vocabs_on_every_route(dtype, vocab):
    logits, temperature = hard_batch(vocab, dtype)
    for route in ROUTES if vocab <= module.MAX_SINGLE else ("online", "split"):
        assert not wrong_elements(softmax(logits, temperature, route=route), logits, temperature)


@needs_gpu
@pytest.mark.parametrize("route", ROUTES)
def test_offsets_have_64_bits(route):
    logits = torch.zeros(70_000, 32_000, dtype=torch.bfloat16, device=DEVICE)  # 2.24e9 elements
    logits[-1, -1] = 20.0
    result = softmax(logits, torch.ones(len(logits), device=DEVICE), out=logits, route=route)
    assert not wrong_elements(result[-1:], _but(32_000, -1, 20.0, 0.0).to(result)[None], torch.ones(1, device=DEVICE))
    assert (result[:-1] == result[0, 0]).all()


@needs_gpu
@pytest.mark.parametrize("route", ROUTES)
def test_a_captured_call_replays(route):
    logits, temperature = torch.randn(6, 20_000, device=DEVICE), torch.ones(6, device=DEVICE)
    softmax(logits, temperature, route=route)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = softmax(logits, temperature, route=route)
    logits.mul_(2)
    graph.replay()
    assert same_bits(captured, softmax(logits, temperature, route=route))
