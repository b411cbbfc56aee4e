"""Each mutant is right where its mistake does not show, and wrong where it does; without its mistake it breaks no law."""

from importlib import import_module
from math import inf, log, nan

import pytest
import torch
from planted import holds

from stabcheck.cases import Case
from stabcheck.devices import describe
from stabcheck.kernels.mutants import cross_entropy, cross_entropy_skeleton, logsumexp, skeleton, token_logprob
from stabcheck.laws import all_laws
from stabcheck.operations import operation
from stabcheck.recipe import Background, Recipe, Row
from stabcheck.registry import make_kernel
from stabcheck.targets import load

MUTANTS = {k.mutant.id: k for k in load(["stabcheck.kernels.mutants"])}
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


def loss_and_grad(id, logits, target, dtype=torch.float32, **options):
    """Loss and gradient of a cross-entropy mutant as lists, under an upstream gradient of 1."""
    rows = torch.tensor(logits, dtype=dtype, device=DEVICE)
    upstream = torch.ones(len(rows), device=DEVICE)
    results = operation("cross_entropy").call(MUTANTS[id].function, rows, torch.tensor(target, device=DEVICE), upstream, **options)
    return [values.tolist() for values in results]


def test_all_mutants_of_the_table_are_here():
    table = {"SM": 17, "V": 4, "LS": 4, "CE": 8, "SA": 16}
    assert set(MUTANTS) == {f"{family}{n}" for family, count in table.items() for n in range(1, count + 1)}


def test_the_families_stand_in_the_order_of_the_table():
    families = [id.rstrip("0123456789") for id in MUTANTS]
    assert sorted(families, key=["SM", "V", "LS", "CE", "SA"].index) == families


@pytest.mark.parametrize("id", [id for id in MUTANTS if not id.startswith(("V", "SA"))])  # for the latter see test_sampling_mutants
def test_is_right_on_an_ordinary_input(id):
    kernel = MUTANTS[id]
    inputs = [("temperature", 0.7)] if any(spec.name == "temperature" for spec in operation(kernel.operation).inputs) else []
    row = Row(Background("bell", (0.0, 5.0)), inputs=tuple(inputs))
    for dtype in kernel.dtypes:
        case = Case(kernel, describe(DEVICE), Recipe(kernel.operation, dtype, 256, (row,), siblings=3))  # two whole tiles
        for name, got in case.run().items():
            torch.testing.assert_close(got.double(), case.expected[name].value, rtol=0.005, atol=0.02)


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


# id, logits, what the log-sum-exp is
LOG_SUM_EXPS = [
    ("LS1", [-110.0], -inf),
    ("LS1", [-80.0], -80.0),  # as long as nothing underflows
    ("LS2", [0.0], log(128)),
    ("LS3", [-inf] * 128 + [0.0], nan),
    ("LS3", [-inf], -inf),  # a single split
    ("LS3", [0.0] + [-inf] * 128, 0.0),
    ("LS4", [-inf], nan),
    ("LS4", [-inf] * 128 + [0.0], 0.0),
]


@pytest.mark.parametrize(("id", "logits", "seen"), LOG_SUM_EXPS)
def test_a_log_sum_exp_mutant_is_wrong_on_its_trigger_only(id, logits, seen):
    assert MUTANTS[id].function(torch.tensor([logits], device=DEVICE)).tolist() == pytest.approx([seen], nan_ok=True)


def test_ce1_loses_the_loss_under_a_common_offset():
    assert loss_and_grad("CE1", [[1e8, 1e8]], [0]) == [[0.0], [[-0.5, 0.5]]]


def test_ce2_gives_nan_for_a_masked_first_chunk():
    loss, _ = loss_and_grad("CE2", [[-inf] * 128 + [0.0]], [128])
    assert loss == pytest.approx([nan], nan_ok=True)


def test_ce3_gives_an_ignored_row_a_gradient_but_no_loss():
    assert loss_and_grad("CE3", [[0.0, 0.0]], [-100]) == [[0.0], [[0.5, 0.5]]]


def test_ce4_divides_by_ignored_rows_too():
    loss, grad = loss_and_grad("CE4", [[0.0, 0.0], [0.0, 0.0]], [0, -100], reduction="mean")
    assert loss == pytest.approx(log(2) / 2)
    assert grad == [[-0.25, 0.25], [0.0, 0.0]]


def test_ce5_takes_the_next_rows_logit_for_the_target():
    loss, _ = loss_and_grad("CE5", [[0.0, 0.0], [3.0, 0.0]], [2, 0])
    assert loss[0] == pytest.approx(log(2) - 3)


def test_ce6_rounds_a_small_gradient_away():
    _, grad = loss_and_grad("CE6", [[0.0, -7.0]], [0], torch.bfloat16)
    assert grad[0][0] in (0.0, -(2.0**-8))  # rounded to nearest, and cut off as the interpreter does it; right is -0.00091


def test_ce7_is_infinite_with_smoothing_and_a_masked_class_only():
    logits = [[0.0, -inf]]
    assert loss_and_grad("CE7", logits, [0]) == [[0.0], [[0.0, 0.0]]]
    assert loss_and_grad("CE7", logits, [0], label_smoothing=0.5) == [[inf], [[0.0, 0.0]]]


def test_ce8_has_no_entropy_where_a_token_is_masked():
    logits, labels = torch.tensor([[0.0, -inf], [0.0, 0.0]], device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    logprob, entropy = MUTANTS["CE8"].function(logits, labels, torch.ones(2, device=DEVICE))
    assert logprob.tolist() == pytest.approx([0.0, -log(2)])
    assert entropy.tolist() == pytest.approx([nan, log(2)], nan_ok=True)


# ---- the skeletons: what the mutants are without their mistakes


def softmax(logits, temperature):
    return skeleton.launch(skeleton.softmax, logits, temperature)


SHARED = {"dtypes": ["fp32", "bf16"], "tile": skeleton.TILE, "blocks": (skeleton.TILE,)}
SKELETONS = {
    "temperature_softmax": make_kernel("temperature_softmax", softmax, **SHARED),
    "logsumexp": make_kernel("logsumexp", logsumexp.logsumexp, **SHARED),
    "token_logprob": make_kernel("token_logprob", token_logprob.token_logprob, policies={"bad_target": "error"}, **SHARED),
    "cross_entropy": make_kernel("cross_entropy", cross_entropy_skeleton.cross_entropy, **cross_entropy.SUPPORTED, **SHARED),
}
APPLYING = [
    (name, law)
    for name, kernel in SKELETONS.items()
    for law in all_laws().values()
    if law.applies(kernel) and not law.why_not(kernel, describe(DEVICE)) and not law.once
    and not (law.name == "graph_replay" and kernel.policies.get("bad_target") == "error")  # they ask the host about their targets
]


@pytest.mark.parametrize(("name", "law"), APPLYING, ids=[f"{name}-{law.name}" for name, law in APPLYING])
def test_a_mutant_without_its_mistake_breaks_no_law(name, law):
    assert holds(SKELETONS[name], law, DEVICE, examples=8)
