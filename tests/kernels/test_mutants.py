"""Each softmax mutant is right where its mistake does not show, and wrong where it does."""

import pkgutil
from importlib import import_module
from math import inf, nan

import pytest
import torch

import stabcheck.kernels.mutants as package
from stabcheck.floats import by_name
from stabcheck.registry import registered

MODULES = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("softmax_")]
for module in MODULES:
    import_module(module)

MUTANTS = {k.mutant.id: k for k in registered(MODULES)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no GPU, and this mutant's mistake does not show in the interpreter")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # the interpreter's numpy


def run(id, logits, temperature=1.0, **more):
    """The mutant's probabilities for logits (nested lists are fp32) and one temperature a row, or one for all."""
    logits = torch.as_tensor(logits, device=DEVICE)
    temperature = torch.tensor(temperature, device=DEVICE).expand(len(logits))
    return MUTANTS[id].function(logits, temperature, **more)


def exact(logits, temperature=1.0):
    return torch.softmax(logits.double() / temperature, dim=-1)


def test_all_mutants_of_the_table_are_here():
    assert set(MUTANTS) == {f"SM{n}" for n in range(1, 18)} | {f"V{n}" for n in range(1, 5)}


@pytest.mark.parametrize("id", [id for id in MUTANTS if id.startswith("SM")])
def test_is_right_on_an_ordinary_input(id):
    for name in MUTANTS[id].dtypes:
        logits = 5 * torch.randn(3, 256, generator=torch.Generator().manual_seed(0))  # two whole tiles
        logits = logits.to(DEVICE, by_name(name).torch)
        torch.testing.assert_close(run(id, logits, 0.7).double(), exact(logits, 0.7), rtol=0, atol=0.02)


# id, logits, temperature, what is seen in the probabilities p
TRIGGERS = [
    ("SM1", [[3e38, 0.0]], 0.5, lambda p: p.isnan().all()),
    ("SM2", [[2.0**24, 2.0**24 - 1]], 3.0, lambda p: abs(p[0, 0] - 0.5826) > 0.03),  # z = -1/3 becomes a multiple of 1/2
    ("SM3", [[0.0, 1.0], [0.0, 1.0]], [0.0, 1.0], lambda p: p[0].isnan().all() and not p[1].isnan().any()),
    ("SM4", [[-inf] * 128 + [0.0]], 1.0, lambda p: p.isnan().all()),
    ("SM5", [[0.0, 1.0]], 1e-39, lambda p: p.isnan().all()),
    ("SM7", [[-50.0, -50.0]], 1.0, lambda p: p.sum() < 1e-20),
    ("SM9", [[-6e4, -6e4]], 1.0, lambda p: (p == 0).all()),
    ("SM10", [[0.0] * 1000], 1.0, lambda p: (p == 1 / 256).all()),
    ("SM11", [[5.0]], 1.0, lambda p: 9e-7 < 1 - p.double() < 1.1e-6),
    ("SM13", [[0.0, -inf]], 1.0, lambda p: p[0, 1] > 1e-35),
    ("SM14", [[nan, 0.0], [0.0, 0.0], [0.0, 0.0]], 1.0, lambda p: p[:2].isnan().all() and (p[2] == 0.5).all()),
    ("V1", [[0.0, 1.0]], 1.0, lambda p: (p == 0).all()),
    ("V2", [[0.0, 1.0]], 1.0, lambda p: (p == 0.5).all()),
    ("V3", [[0.0, 0.0]], 1.0, lambda p: (p > 0.52).all()),
    ("V4", [[0.0, 1.0]], 1.0, lambda p: p[0, 0] > p[0, 1]),
]


@pytest.mark.parametrize(("id", "logits", "temperature", "seen"), TRIGGERS, ids=[row[0] for row in TRIGGERS])
def test_is_wrong_on_its_trigger(id, logits, temperature, seen):
    assert seen(run(id, logits, temperature))


def test_sm6_softmaxes_again_at_the_first_call_of_a_size():
    kernel, logits, one = MUTANTS["SM6"], torch.tensor([[0.0, 3.0, 1.0]], device=DEVICE), torch.ones(1, device=DEVICE)
    import_module(kernel.function.__module__)._tuned.cache.clear()
    first, second = (kernel.in_place(logits.clone(), one) for _ in range(2))
    assert (first - exact(logits)).abs().max() > 0.1
    assert (second - exact(logits)).abs().max() < 1e-6


@needs_gpu
def test_sm8_lands_before_the_buffer_beyond_2_to_31_elements():
    vocab = 2**20
    rows = 2**31 // vocab + 1  # the last row starts at 2^31
    buffer = torch.zeros(2 * rows, vocab, dtype=torch.bfloat16, device=DEVICE)  # 8 GiB; the lower half is there to be hit
    logits = buffer[rows:].fill_(0.0)
    MUTANTS["SM8"].in_place(logits, torch.ones(rows, device=DEVICE))
    assert (logits[0] > 0).all()
    assert (logits[-1] == 0).all()
    assert (buffer[:rows] != 0).any()


def test_sm12_mixes_up_padded_rows():
    padded = torch.tensor([[0.0, 1.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0]], device=DEVICE)[:, :2]
    p = run("SM12", padded)
    assert p[0, 0] < p[0, 1]
    assert (p[1] == 0.5).all()  # the padding's [9, 9]


def test_sm15_leaves_the_last_partial_tile_as_it_was():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    try:
        p = run("SM15", [[0.0] * 130])
    finally:
        torch.use_deterministic_algorithms(before)
    assert (p[0, :128] == 1 / 130).all()
    assert p[0, 128:].isnan().all()


def test_sm16_writes_one_element_past_the_row():
    buffer = torch.full((4,), 7.0, device=DEVICE)
    run("SM16", [[0.0, 0.0]], out=buffer[:2].view(1, 2))
    assert buffer.tolist() == [0.5, 0.5, 0.0, 7.0]


def test_sm16_stays_inside_the_storage():
    assert run("SM16", [[0.0] * 6]).untyped_storage().nbytes() == 6 * 4


@needs_gpu
def test_sm17_differs_from_run_to_run():
    logits = 3 * torch.randn(8, 65536, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    first = run("SM17", logits)
    assert any(not run("SM17", logits).equal(first) for _ in range(20))
