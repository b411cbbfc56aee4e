"""Every proposal of the domain shrinker is simpler than what it starts from, or shrinking would go round in circles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import inf, nan

from stabcheck.operations import operation
from stabcheck.recipe import Layout
from stabcheck.simpler import (
    Hints,
    State,
    few_columns,
    few_counted,
    fewer_columns,
    fewer_rows,
    one_value,
    plainer_inputs,
    plainer_layout,
    rank,
    rounder_values,
)

SOFTMAX = operation("temperature_softmax")
TABLE = list(SOFTMAX.inputs[0].values)
VALUES = [0.0, 1.0, -1.0, 88.7, -104.0, 123.456, 1e30, 2.0**-149, inf, -inf, nan]


def state(*rows, temperature=1.0, layout=Layout()):  # noqa: B008 (frozen)
    return State(torch.tensor(rows), {"temperature": torch.full((len(rows),), temperature)}, layout, seed=5)


def hints(row=0, column=0, row_local=True):
    return Hints(row, column, row_local, 1, SOFTMAX)


def ranks(s):
    return sum(map(rank, torch.unique(s.logits).tolist()))


def place(s):
    return sum(TABLE.index(t) if t in TABLE else len(TABLE) for t in s.inputs["temperature"].double().tolist())


MEASURES = {
    fewer_rows: lambda s: s.logits.shape[0],
    plainer_layout: lambda s: s.layout.pad + s.layout.step + s.layout.offset,
    few_columns: lambda s: s.logits.shape[1],
    fewer_columns: lambda s: s.logits.shape[1],
    one_value: lambda s: len(s.stretches()),
    rounder_values: ranks,
    plainer_inputs: place,
}
ROWS = st.integers(1, 12).flatmap(lambda v: st.lists(st.lists(st.sampled_from(VALUES), min_size=v, max_size=v), min_size=1, max_size=5))


@pytest.mark.parametrize("row_local", [True, False], ids=["rows apart", "rows together"])
@pytest.mark.parametrize("propose", MEASURES, ids=lambda p: p.__name__)
def test_proposals_are_strictly_simpler(propose, row_local):
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(ROWS, st.sampled_from([1.0, 0.5, 0.1]), st.sampled_from([Layout(), Layout(3), Layout(5, 3, 7)]), st.data())
    def examine(rows, temperature, layout, data):
        start = state(*rows, temperature=temperature, layout=layout)
        at = hints(data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(rows[0]) - 1)), row_local)
        for simpler in propose(start, at):
            assert MEASURES[propose](simpler) < MEASURES[propose](start)
            assert simpler.logits.numel()
            assert set(simpler.inputs) == set(start.inputs)
            assert all(len(v) == len(simpler.logits) for v in simpler.inputs.values())

    examine()


def lists(proposals):
    return [[[str(v) for v in row] for row in s.logits.tolist()] for s in proposals]


def test_the_failing_row_alone_comes_first():
    start = state([0.0], [1.0], [2.0], [3.0])
    first, second, *_ = fewer_rows(start, hints(row=2))
    assert first.logits.tolist() == [[2.0]]
    assert second.logits.tolist() == [[0.0]]  # laws on one row take the first
    assert first.seed == start.seed + 2  # laws that draw from the seed see what they saw at row 2


def test_neighbours_are_proposed_only_where_rows_act_on_each_other():
    start = state([0.0], [1.0], [2.0], [3.0])
    together = [s.logits.flatten().tolist() for s in fewer_rows(start, hints(row=2, row_local=False))]
    assert together[2:4] == [[1.0, 2.0], [2.0, 3.0]]


def test_contiguous_comes_first():
    proposals = [s.layout for s in plainer_layout(state([0.0], layout=Layout(5, 3, 7)), hints())]
    assert proposals[0] == Layout()
    assert Layout(5, 3, 0) in proposals and Layout(5, 1, 7) in proposals and Layout(1, 3, 7) in proposals


def test_a_contiguous_layout_has_nothing_plainer():
    assert list(plainer_layout(state([0.0]), hints())) == []


def test_the_column_that_fails_and_the_maximum_are_tried_alone_and_together():
    proposals = lists(few_columns(state([3.0, 9.0, 0.0, 5.0, 1.0]), hints(column=3)))
    assert [["5.0"]] in proposals and [["9.0"]] in proposals and [["9.0", "5.0"]] in proposals


def test_nan_is_a_likely_culprit():
    assert [["nan"]] in lists(few_columns(state([3.0, nan, 0.0, 5.0, 1.0]), hints(column=3)))


def test_halves_of_a_stretch_are_taken_out_boldest_first():
    sizes = [s.logits.shape[1] for s in fewer_columns(state([0.0] * 8 + [1.0]), hints())]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert {1, 5, 7, 8} <= set(sizes)


def test_all_columns_are_never_taken_out():
    assert all(s.logits.shape[1] for s in fewer_columns(state([0.0] * 4), hints()))


def test_a_whole_row_of_one_value_is_tried_first():
    assert lists(one_value(state([1.0, 2.0, 3.0]), hints()))[0] == [["0.0"] * 3]


def test_a_common_offset_is_taken_off():
    assert [["0.0", "-1.0"]] in lists(rounder_values(state([1000.0, 999.0]), hints()))


def test_values_become_rounder_in_the_dtype():
    start = State(torch.tensor([[123.5]], dtype=torch.bfloat16), {"temperature": torch.ones(1)}, Layout(), 0)
    proposals = [s.logits for s in rounder_values(start, hints())]
    assert {p.dtype for p in proposals} == {torch.bfloat16}
    assert 100.0 in [p.item() for p in proposals] and 0.0 in [p.item() for p in proposals]


def test_nan_can_be_replaced():
    assert [["0.0", "1.0"]] in lists(rounder_values(state([nan, 1.0]), hints()))


def test_temperatures_become_plainer_one_row_at_a_time():
    start = state([0.0], [0.0], temperature=0.1)
    proposals = [s.inputs["temperature"].tolist() for s in plainer_inputs(start, hints())]
    assert proposals[0] == [1.0, pytest.approx(0.1)]
    assert [pytest.approx(0.1), 1.0] in proposals


def test_a_temperature_outside_the_table_may_become_any_of_the_table():
    assert next(plainer_inputs(state([0.0], temperature=0.123), hints())).inputs["temperature"].tolist() == [1.0]


def test_values_rank_from_easy_to_hard_on_the_eye():
    order = [0.0, 1.0, -1.0, -inf, inf, nan, 2.0, -2.0, 10.0, 123.0, 123.456, 1.1754943508222875e-38]
    assert sorted(order, key=rank)[:5] == order[:5]
    assert rank(nan) < rank(2.0) < rank(-2.0) < rank(123.0) < rank(123.456) < rank(1.1754943508222875e-38)


def test_stretches_are_columns_equal_in_every_row():
    assert state([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]).stretches() == [(0, 2), (2, 3), (3, 4)]


def test_columns_and_the_count_of_them_fall_together():
    filters = operation("filtered_probs")
    given = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.0}
    start = State(torch.zeros(1, 52), {name: torch.tensor([value]) for name, value in given.items()}, Layout(), seed=5)
    proposals = list(few_counted(start, Hints(0, 46, True, 1, filters)))
    assert {s.logits.shape[1] for s in proposals} == {3, 5}
    assert all(0 < s.inputs["top_k"].item() < s.logits.shape[1] and s.inputs["temperature"].item() == 1 for s in proposals)
    table = {torch.tensor(value).item() for value in filters.inputs[2].values}
    assert {s.inputs["top_p"].item() for s in proposals} == table  # k = 2, p = 0.1 of ten equal tokens is k = 2, p = 0.3 of four
    assert list(few_counted(state([0.0] * 9), hints())) == []  # nothing is counted
    near = list(few_counted(start, Hints(0, 1, True, 1, filters)))
    assert {s.logits.shape[1] for s in near} == {3, 5}  # also where the column is one of the first
    cut = {(s.logits.shape[1], s.inputs["top_k"].item()) for s in fewer_columns(start, Hints(0, 46, True, 1, filters))}
    assert {(26, 50), (26, 24), (51, 49)} <= cut
    off = State(start.logits, start.inputs | {"top_k": torch.tensor([0])}, Layout(), seed=5)
    assert {s.inputs["top_k"].item() for s in fewer_columns(off, Hints(0, 46, True, 1, filters))} == {0}
