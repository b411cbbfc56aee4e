"""The transformed batches are what the metamorphic laws take them for."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from planted import CPU, inf, kernel, nan, recipe, right, right_in_place

from stabcheck.cases import Case, KernelFault
from stabcheck.expansion import materialise
from stabcheck.recipe import Background, Layout, Recipe, Row
from stabcheck.strategies import recipes
from stabcheck.variations import (
    exact_shift,
    forget_tuning,
    random_order,
    relaid,
    run_in_place,
    running_maximum,
    with_columns_masked,
    with_other_rows_nan,
)


def case(made, function=right, **declared):
    return Case(kernel(function, **declared), CPU, made)


def bell(vocab=40, siblings=60, **more):
    return Recipe("temperature_softmax", "fp32", vocab, (Row(Background("bell", (0.0, 5.0))),), siblings, **more)


# ---- shifts


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_shift_said_to_be_exact_is_exact(dtype):
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(recipes("temperature_softmax", dtype, max_vocab=32, max_rows=64))
    def examine(drawn):
        shifted, base, exact = exact_shift(case(drawn))
        y, x = shifted.logits.double(), base.logits.double()
        for k in torch.where(exact[:, 0])[0].tolist():
            finite = x[k].isfinite() & y[k].isfinite()
            offsets = (y[k] - x[k])[finite]
            if offsets.numel():  # fp64 itself rounds where a logit is 2^53 times the offset
                assert offsets.max() - offsets.min() <= 2.0**-52 * x[k][finite].abs().max()

    examine()


def test_most_shifts_are_exact_and_reach_from_1_past_1e8_in_both_directions():
    shifted, base, exact = exact_shift(case(bell()))
    c = (shifted.logits.double() - base.logits.double())[exact[:, 0], 0]
    assert exact.float().mean() > 0.8
    assert c.abs().min() == 1
    assert c.abs().max() > 1e8
    assert (c > 0).any() and (c < 0).any()


def test_a_shift_that_cannot_be_exact_is_not_said_to_be():
    _, _, exact = exact_shift(case(recipe([0.0, 1000.0], [0.0, 1.0], dtype="bf16", seed=0)))  # bf16 has 1000 and 1004
    assert exact.flatten().tolist() == [False, True]


def test_masked_columns_stay_masked_when_shifted():
    shifted, base, exact = exact_shift(case(recipe([0.0, -inf])))
    assert exact.all()
    assert shifted.logits[0, 1] == base.logits[0, 1] == -inf


# ---- the running maximum


def running(x, got, slack=None):
    x, got, slack = (torch.tensor([values], dtype=torch.float64) for values in (x, got, slack or [0.0] * len(x)))
    largest, both = running_maximum(x, got, slack)
    return largest[0].tolist(), both[0].tolist()


@pytest.mark.parametrize(
    ("x", "got", "largest"),
    [
        ([1.0, 2.0, 3.0], [0.1, 0.2, 0.7], [0.1, 0.2, 0.7]),
        ([3.0, 2.0, 1.0], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1]),
        ([1.0, 2.0, 3.0], [0.5, 0.2, 0.3], [0.5, 0.5, 0.5]),  # 0.5 at the smallest logit stands above what follows
        ([5.0, 5.0, 1.0], [0.4, 0.5, 0.1], [0.5, 0.5, 0.1]),  # ties see each other, whichever comes first
        ([-inf, 0.0, -inf], [0.0, 1.0, 0.2], [0.2, 1.0, 0.2]),
        ([0.0], [1.0], [1.0]),
    ],
)
def test_the_largest_result_among_logits_at_most_ones_own(x, got, largest):
    assert running(x, got)[0] == largest


def test_the_slack_is_ones_own_and_that_of_the_other():
    assert running([1.0, 2.0, 3.0], [0.5, 0.2, 0.3], [0.01, 0.02, 0.04])[1] == pytest.approx([0.02, 0.04, 0.08])


# ---- masked and deleted columns


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kept_columns_are_as_they_were_and_the_others_masked(seed):
    made = case(bell(vocab=9, siblings=2, seed=seed))
    masked, kept = with_columns_masked(made)
    assert masked.logits[:, kept].equal(made.batch.logits[:, kept])
    others = torch.ones(9, dtype=torch.bool).index_fill_(0, kept, False)
    assert (masked.logits[:, others] == -inf).all()
    assert len(kept) == [5, 5, 1][seed]
    assert kept.tolist() == sorted(set(kept.tolist()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_column_is_always_kept(seed):
    _, kept = with_columns_masked(case(recipe([1.0], seed=seed)))
    assert kept.tolist() == [0]


# ---- rows and layouts


@pytest.mark.parametrize("parity", [0, 1])
def test_every_other_row_becomes_nan(parity):
    made = case(bell(siblings=5))
    x = with_other_rows_nan(made, parity).logits
    assert x[parity::2].equal(made.batch.logits[parity::2])
    assert x[1 - parity :: 2].isnan().all()
    assert not made.batch.logits.isnan().any()


def test_relaid_rows_hold_the_same_values_in_another_place():
    made = case(bell(siblings=3))
    x = relaid(made, Layout(5, 2, 1)).logits
    assert x.equal(made.batch.logits)
    assert x.stride() == (85, 2)
    assert x.data_ptr() != made.batch.logits.data_ptr()


def test_the_order_depends_on_the_seed_only():
    order = random_order(case(bell()), 100)
    assert order.equal(random_order(case(bell(siblings=1)), 100))
    assert not order.equal(random_order(case(bell(seed=1)), 100))
    assert sorted(order.tolist()) == list(range(100))


# ---- in place


def test_in_place_works_on_a_copy_in_the_same_layout():
    seen = []

    def in_place(x, t):
        seen.append(x.stride())
        return right_in_place(x, t)

    made = case(recipe([0.0, 1.0], layout=Layout(3)), in_place=in_place)
    before = made.batch.digest()
    assert run_in_place(made)["probs"].equal(right(made.batch.logits, torch.ones(1)))
    assert seen == [(5, 1)]
    assert made.batch.digest() == before


def test_in_place_must_return_its_input():
    with pytest.raises(KernelFault, match="another tensor"):
        run_in_place(case(recipe([0.0, 1.0]), in_place=right))


def test_autotuners_of_a_module_are_forgotten_and_nothing_else(monkeypatch):
    triton = pytest.importorskip("triton")

    @triton.autotune([triton.Config({}), triton.Config({}, num_warps=2)], key=["n"])
    @triton.jit
    def tuned(x, n):
        pass

    module = ModuleType("tuned_kernels")
    module.tuned, module.other = tuned, {"cache": 1}
    monkeypatch.setitem(sys.modules, "tuned_kernels", module)
    tuned.cache[1] = "a choice"
    forget_tuning("tuned_kernels")
    assert tuned.cache == {}
    assert module.other == {"cache": 1}


def test_forgetting_the_tuning_of_a_module_that_is_gone_is_no_error():
    assert forget_tuning("no_such_module") is None


def test_nan_rows_survive_a_shift():
    shifted, _, _ = exact_shift(case(recipe([nan, 0.0])))
    assert shifted.logits[0, 0].isnan()
    assert materialise(recipe([nan, 0.0])).logits[0, 0].isnan()


def test_no_shift_overflows_the_format():
    """inf + c = inf is exact and says nothing; in fp16 half of the rows once were of that sort."""
    made = case(recipe([0.0, 1.0, -2.0], dtype="fp16").with_(siblings=64))
    shifted, base, exact = exact_shift(made)
    assert shifted.logits.isfinite().all()
    assert base.logits.isfinite().all()
    assert exact.float().mean() > 0.5


def test_an_autotuner_of_another_module_is_forgotten_too():
    import types

    import triton

    elsewhere = types.ModuleType("elsewhere")
    elsewhere.tuned = triton.autotune([triton.Config({})], key=[])(triton.jit(_body))
    elsewhere.tuned.cache["key"] = "best"
    forget_tuning("a module of its own")
    assert not elsewhere.tuned.cache


def _body(x):
    pass
