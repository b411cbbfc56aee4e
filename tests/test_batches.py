"""A batch tells its rows, its smallest inputs and the digest of its bits, wherever its logits lie in memory."""

import pytest
import torch
from planted import nan, recipe

from stabcheck.batches import empty_layout
from stabcheck.expansion import materialise
from stabcheck.recipe import Layout, Recipe


def one(**more):
    """A recipe of rows of zeros."""
    return Recipe("temperature_softmax", "fp32", **{"vocab": 8} | more)


# ---- digests


@pytest.mark.parametrize("tensor", ["logits", "temperature"])
def test_one_bit_changes_the_digest(tensor):
    batch = materialise(one(siblings=2))
    before = batch.digest()
    changed = batch.logits if tensor == "logits" else batch.inputs["temperature"]
    changed.view(torch.int32)[-1:] ^= 1
    assert batch.digest() != before


def test_an_empty_batch_has_a_digest():
    assert materialise(one(siblings=0)).digest() == materialise(one(siblings=0)).digest()


def test_a_single_strided_column_has_a_digest():
    """torch calls a [1, 1] tensor contiguous whatever its strides are."""
    assert materialise(one(vocab=1, layout=Layout(0, 2))).digest() == materialise(one(vocab=1)).digest()


# ---- layouts


def test_memory_around_the_rows_is_nan():
    view = empty_layout((2, 3), torch.float32, Layout(2, 2, 4), "cpu").fill_(0.0)
    flat = torch.as_strided(view, (view.untyped_storage().nbytes() // 4,), (1,), 0)
    inside = [4 + 8 * row + 2 * column for row in range(2) for column in range(3)]
    assert torch.where(~flat.isnan())[0].tolist() == inside
    assert len(flat) >= inside[-1] + 16


# ---- rows and inputs


def test_picked_rows_are_those_of_the_batch():
    batch = materialise(recipe([1, 2], [3, 4], temperature=[1.0, 2.0])).pick(slice(1, 2))
    assert (batch.logits.tolist(), batch.inputs["temperature"].tolist()) == ([[3.0, 4.0]], [2.0])


def test_the_smallest_input_is_known_without_asking_the_device():
    batch = materialise(recipe([1, 2], [3, 4], temperature=[1.0, 0.5]))
    assert batch.known == {"temperature": 0.5}
    assert batch.pick(slice(0, 1)).smallest("temperature") == 1.0


@pytest.mark.parametrize("temperature", [0.0, nan, -1.0], ids=str)
def test_a_temperature_that_a_policy_rules_is_known(temperature):
    batch = materialise(recipe([1], [1], temperature=[1.0, temperature]))
    assert str(batch.smallest("temperature")) == str(temperature)
