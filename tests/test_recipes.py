"""A recipe written down is the recipe read back, bit for bit, and a file that is no recipe says what is wrong with it."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import inf, nan

from stabcheck.errors import UsageError
from stabcheck.recipe import FANS, MASKS, VALUES, Background, Layout, Mask, Recipe, Row, from_data, to_data
from stabcheck.strategies import recipes

PLAIN = Recipe("temperature_softmax", "fp32", 2)
ROWS = st.builds(
    Row,
    st.sampled_from(list(VALUES.items())).flatmap(lambda b: st.builds(Background, st.just(b[0]), st.tuples(*[st.floats()] * b[1]))),
    st.builds(Mask, st.sampled_from(MASKS), st.integers(0, 100), st.integers(0, 100)),
    st.lists(st.tuples(st.integers(0, 1000), st.floats()), max_size=3).map(tuple),
    st.floats(width=32).map(lambda t: (("temperature", t),)),
)
ANY = st.builds(
    Recipe,
    operation=st.just("temperature_softmax"),
    dtype=st.sampled_from(["fp32", "bf16", "fp16"]),
    vocab=st.integers(1, 300000),
    rows=st.lists(ROWS, min_size=1, max_size=3).map(tuple),
    siblings=st.integers(0, 512),
    fan=st.sampled_from(FANS),
    seed=st.integers(0, 2**16),
    layout=st.builds(Layout, st.integers(0, 64), st.integers(1, 3), st.integers(0, 64)),
)


def through_json(recipe):
    return from_data(json.loads(recipe.to_json()))


@given(ANY | recipes("temperature_softmax", "bf16"))
@settings(deadline=None)
def test_json_gives_back_every_bit(recipe):
    back = through_json(recipe)
    for name in Recipe.__dataclass_fields__:  # repr tells -0.0 from 0.0, and NaN is equal to itself there
        assert repr(getattr(back, name)) == repr(getattr(recipe, name))


@pytest.mark.parametrize("value", [nan, inf, -inf, -0.0, 2.0**-149, 0.1])
def test_special_values_survive(value):
    edited = PLAIN.with_(rows=(Row(edits=((0, value),)),))
    assert str(through_json(edited).rows[0].edits[0][1]) == str(value)


def test_an_integer_input_stays_an_integer():
    recipe = PLAIN.with_(rows=(Row(inputs=(("top_k", 5), ("temperature", 1.0))),))
    (row,) = through_json(recipe).rows
    assert [type(value) for _, value in row.inputs] == [int, float]


def test_the_order_of_inputs_survives():
    recipe = PLAIN.with_(rows=(Row(inputs=(("temperature", 1.0), ("a", 2.0))),))
    assert [name for name, _ in through_json(recipe).rows[0].inputs] == ["temperature", "a"]


def test_json_is_strict():
    foreign = []
    json.loads(PLAIN.with_(rows=(Row(edits=((0, nan), (1, inf))),)).to_json(), parse_constant=foreign.append)
    assert not foreign  # NaN and Infinity are no JSON


def test_the_id_is_the_same_in_every_process():
    code = "from stabcheck.recipe import Recipe; print(Recipe('temperature_softmax', 'fp32', 2).id)"
    told = {subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True) for seed in "12"}
    assert told == {PLAIN.id + "\n"}
    assert len(PLAIN.id) == 6


def test_another_recipe_has_another_id():
    assert PLAIN.with_(seed=1).id != PLAIN.id


# ---- damage

DATA = to_data(PLAIN.with_(rows=(Row(Background("bell", (0.0, 1.0)), Mask("span", 1, 1), ((0, 1.0),)),)))


def damaged(**changes):
    return {k: v for k, v in (DATA | changes).items() if v is not ...}


def row(**changes):
    return damaged(rows=[{k: v for k, v in (DATA["rows"][0] | changes).items() if v is not ...}])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "NoneType"),
        ([], "list"),
        ("text", "str"),
        ({}, "schema None"),
        (damaged(schema="stabcheck-recipe/9"), "stabcheck-recipe/9"),
        (damaged(vocab=...), "vocab"),
        (damaged(rows=...), "rows"),
        (damaged(rows=7), "damaged"),
        (damaged(rows=[]), "0 rows"),
        (damaged(rows=["x"]), "damaged"),
        (damaged(dtype="fp8"), "unknown dtype 'fp8'"),
        (damaged(dtype=["fp32"]), "damaged"),
        (damaged(vocab=0), "vocab 0"),
        (damaged(vocab="many"), "many"),
        (damaged(siblings=-1), "-1"),
        (damaged(fan="twist"), "'twist' is not one of"),
        (damaged(layout=[1, 2]), None),
        (damaged(layout=[0, 0, 0]), "step 0"),
        (damaged(layout=[1, 2, 3, 4]), "damaged"),
        (damaged(layout=[-1, 1, 0]), "-1"),
        (damaged(layout=[0, 1, -1]), "-1"),
        (row(background=["blob", [], []]), "'blob' is not one of"),
        (row(background=["bell", ["zero", "one"], []]), "damaged"),
        (row(background=["bell", [1.0, 2.0], []]), "damaged"),
        (row(background=["bell", ["0x0p+0"], []]), "bell"),
        (row(background=["literal", ["0x0p+0"], [5]]), "5 columns but vocab is 2"),
        (row(background=["literal", ["0x0p+0"], [1, 1]]), "literal"),
        (row(background=["literal", ["0x0p+0", "0x0p+0"], [3, -1]]), "-1"),
        (row(mask=["half", 0, 0]), "'half' is not one of"),
        (row(mask=["prefix", -5, 0]), "-5"),
        (row(mask=["prefix"]), "damaged"),
        (row(edits=[[0]]), "damaged"),
        (row(edits=[[0, "0xz"]]), "damaged"),
        (row(inputs=...), "inputs"),
        (row(inputs={"temperature": None}), "damaged"),
        (row(inputs=[["temperature"]]), "damaged"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else repr(value),
)
def test_what_is_no_recipe_is_told_in_one_line(data, told):
    if told is None:  # two of three layout numbers are a layout
        assert from_data(data).layout == Layout(1, 2)
        return
    with pytest.raises(UsageError) as error:
        from_data(data)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data", [damaged(schema="other/1"), damaged(vocab=...), damaged(vocab=0), row(background=["literal", ["0x0p+0"], [5]])]
)
def test_the_error_names_a_cure(data):
    with pytest.raises(UsageError, match=r"use the version|restore|must be at least"):
        from_data(data)


# ---- for readers


def test_repr_is_one_short_line():
    many = tuple(float(i) for i in range(9))
    recipe = PLAIN.with_(
        vocab=9, rows=(Row(Background("literal", many, (1,) * 9), Mask("prefix", 2), ((1, nan),), (("temperature", 0.5),)),)
    )
    assert repr(recipe) == (
        "Recipe(temperature_softmax, fp32, 1 × 9: [0, 1, 2, 3, 4, 5, 6, 7, 8] -inf prefix(2, 0) [1]=nan temperature=0.5)"
    )


def test_repr_of_a_wide_recipe_is_cheap_and_short():
    wide = PLAIN.with_(vocab=262144, siblings=512, rows=(Row(Background("bits", ())),) * 3, fan="rotate", layout=Layout(3))
    assert len(repr(wide)) < 300
    assert "1536 × 262144" in repr(wide)


def test_sizes():
    recipe = PLAIN.with_(vocab=10, rows=(Row(),) * 3, siblings=4)
    assert (recipe.total_rows, recipe.elements) == (12, 120)
