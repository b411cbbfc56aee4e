"""Operations are found by name, and know what becomes of a batch whose columns are taken apart."""

import pytest
import torch
from planted import SOFTMAX
from planted_losses import LOGPROB, LOSS

from stabcheck.batches import Batch
from stabcheck.errors import UsageError
from stabcheck.operations import operation


def test_an_unknown_operation_is_told_with_the_known_ones():
    with pytest.raises(
        UsageError, match=r"unknown operation 'softmx'; stabcheck knows cross_entropy, filtered_probs, .*temperature_softmax"
    ):
        operation("softmx")


# ---- options


@pytest.mark.parametrize(
    ("options", "names", "plain"),
    [
        ({}, ["softcap"], True),
        ({"softcap": 0.0}, ["softcap"], True),
        ({"softcap": 1.0}, ["softcap"], False),
        ({"softcap": 1.0}, ["label_smoothing"], True),
        ({"softcap": 1.0}, [], True),
        ({"reduction": "mean"}, ["softcap", "reduction"], False),
    ],
    ids=str,
)
def test_options_are_plain_where_they_have_their_defaults(options, names, plain):
    assert operation(LOSS).plain(options, names) == plain


# ---- columns taken


def taken(targets, kept, operation_name=LOSS, **options):
    """(the targets after taking the columns `kept` of five, which rows changed their meaning)."""
    name = operation(operation_name).column_input
    x = torch.arange(5.0).expand(len(targets), 5)
    batch = Batch(x, {name: torch.tensor(targets), "other": torch.ones(len(targets))}, options=options)
    moved, lost = operation(operation_name).take_columns(batch, torch.tensor(kept))
    assert moved.logits.equal(x[:, kept])
    assert moved.options == options and moved.inputs["other"].equal(batch.inputs["other"])
    return moved.inputs[name].tolist(), lost.tolist()


@pytest.mark.parametrize("name", [LOSS, LOGPROB])
def test_a_target_follows_its_column(name):
    assert taken([0, 3, 4], [4, 0, 3], name) == ([1, 2, 0], [False] * 3)


def test_a_row_whose_column_is_gone_has_lost_its_meaning():
    targets, lost = taken([1, 3], [0, 3])
    assert lost == [True, False]
    assert targets[1] == 1
    assert 0 <= targets[0] < 2  # a target that a kernel may be given


def test_an_ignored_row_and_one_out_of_range_stay_what_they_are():
    assert taken([-100, 2, 5, -1], [0], ignore_index=2) == ([-100, 2, 5, -1], [False] * 4)


def test_a_target_that_comes_to_stand_at_the_ignored_index_would_be_ignored():
    assert taken([3, 4], [1, 0, 3, 4], ignore_index=2) == ([2, 3], [True, False])


def test_without_targets_nothing_is_lost():
    batch = Batch(torch.arange(5.0)[None], {"temperature": torch.ones(1)})
    moved, lost = operation(SOFTMAX).take_columns(batch, torch.tensor([4, 2]))
    assert (moved.logits.tolist(), lost.tolist()) == ([[4.0, 2.0]], [False])
