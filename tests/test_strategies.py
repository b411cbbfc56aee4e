"""What is drawn stays within the space, reaches all of it, and shrinks to the simple end."""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, find, given, settings
from planted import LAWS, SOFTMAX, kernel, right
from planted_losses import LOGPROB, LOSS, LSE, right_loss

from stabcheck.errors import UsageError
from stabcheck.floats import FORMATS, by_name
from stabcheck.operations import operation
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.profiles import LIMITS
from stabcheck.recipe import Background, Layout, Mask, Recipe, Row, from_data, to_data
from stabcheck.strategies import Space, backgrounds, drawn, edges, masks, recipes, space_for, values, vocab_sizes, weighted

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SMALL = Space("temperature_softmax", "fp32", max_rows=24, max_elements=1 << 15, max_vocab=32768)


PLAIN = Row(inputs=(("temperature", 1.0),))
SIMPLEST = Recipe("temperature_softmax", "fp32", 1, (PLAIN,))


def smallest(condition, space=SMALL):
    return find(drawn(space), condition, settings=settings(QUICK, max_examples=2000), random=random.Random(0))


def temperature(recipe):
    return recipe.rows[0].input("temperature", 1.0)


# ---- for an outsider


@given(recipe=recipes("temperature_softmax", "bf16"))
@settings(max_examples=20, deadline=None)
def test_recipes_can_be_given_to_any_test(recipe):
    assert isinstance(recipe, Recipe)
    assert recipe.dtype == "bf16"


def test_the_package_has_the_strategy_under_its_public_name():
    """Its module `recipes` takes the place of the attribute as soon as anything imports it."""
    import stabcheck

    @given(stabcheck.recipes("temperature_softmax"))
    @settings(max_examples=2, deadline=None)
    def examine(recipe):
        assert recipe.vocab

    examine()


@pytest.mark.parametrize(
    ("arguments", "told"), [(("softmx",), "unknown operation 'softmx'"), (("temperature_softmax", "fp8"), "unknown dtype 'fp8'")]
)
def test_wrong_names_are_told_at_once(arguments, told):
    with pytest.raises(UsageError, match=told):
        recipes(*arguments)


# ---- limits


@pytest.mark.parametrize("limits", LIMITS.values(), ids=["GPU", "interpreter"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_sizes_respect_the_space(dtype, limits):
    space = Space("temperature_softmax", dtype, **limits)

    @QUICK
    @given(drawn(space))
    def examine(recipe):
        assert 1 <= recipe.vocab <= space.max_vocab
        assert recipe.total_rows <= space.max_rows
        assert recipe.elements <= space.max_elements
        assert recipe.dtype == dtype

    examine()


def test_the_largest_sizes_of_the_space_are_drawn():
    sizes = []
    QUICK(given(drawn(SMALL))(lambda recipe: sizes.append(recipe)))()
    assert max(r.total_rows for r in sizes) > 10
    assert max(r.vocab for r in sizes) >= 16384


def test_values_are_of_the_format():
    for fmt in FORMATS.values():
        assert all(fmt.round(v) == v for v in values(fmt))
        assert all(fmt.round(v) == v for b in backgrounds(fmt) if b.kind in ("constant", "palette") for v in b.values)


def test_a_kernel_without_strides_gets_contiguous_rows():
    @QUICK
    @given(drawn(Space("temperature_softmax", "fp32", strides=False)))
    def examine(recipe):
        assert recipe.layout.contiguous

    examine()


def test_zero_temperature_is_drawn_where_it_means_something_and_nowhere_else():
    def zeros(space):
        seen = []
        QUICK(given(drawn(space))(lambda recipe: seen.extend(row.input("temperature", 1.0) == 0 for row in recipe.rows)))()
        return sum(seen)

    limits = LIMITS[False]
    assert zeros(space_for(kernel(right), "fp32", **limits)) == 0
    assert zeros(space_for(kernel(right, policies={"zero_temperature": "greedy"}), "fp32", **limits)) > 5


def test_a_kernel_narrows_its_space():
    space = space_for(kernel(right, max_vocab=100, blocks=(64,), strides=False), "bf16", **LIMITS[False])
    assert (space.max_vocab, space.blocks, space.strides, space.dtype) == (100, (64,), False, "bf16")


def test_vocabularies_lie_around_powers_and_multiples_of_the_blocks():
    sizes = set(vocab_sizes(Space("temperature_softmax", "fp32", blocks=(192,))))
    assert {1, 2, 3, 191, 192, 193, 383, 385, 575, 577, 65535, 65536, 65537, 32000, 128256, 151936, 262144} <= sizes


def test_columns_and_masks_lie_at_the_edges_of_blocks():
    assert {0, 99, 63, 64, 65} <= set(edges(100, (64,)))
    assert {Mask("prefix", 64), Mask("suffix", 64), Mask("prefix", 99), Mask("all"), Mask("all_but", 99, 1)} <= set(masks(100, (64,)))


@pytest.mark.parametrize("vocab", [1, 2, 3, 5])
def test_masks_and_columns_of_a_tiny_vocabulary_lie_inside(vocab):
    assert all(0 <= c < vocab for c in edges(vocab, (1024,)))
    assert all(m.a <= vocab for m in masks(vocab, (1024,)) if m.kind in ("prefix", "suffix"))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("blocks", [(1024,), (64, 128, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096)], ids=["one block", "many blocks"])
def test_every_entry_of_every_table_can_be_drawn(dtype, blocks):
    """A choice is one byte: what stands behind the 256th place would never be drawn."""
    fmt, space = by_name(dtype), Space("temperature_softmax", dtype, blocks=blocks)
    tables = [vocab_sizes(space), backgrounds(fmt), values(fmt), masks(70000, blocks), edges(70000, blocks)]
    assert all(len(table) <= 256 for table in tables)


# ---- options and targets


def all_drawn(space):
    seen = []
    QUICK(given(drawn(space))(lambda recipe: seen.append(recipe)))()
    return seen


def options_of(made, **fixed):
    """option -> the values that are drawn, those of a default not among them."""
    seen = {}
    for recipe in all_drawn(space_for(made, "fp32", **LIMITS[False], **fixed)):
        for name, value in recipe.options:
            seen.setdefault(name, set()).add(value)
    return seen


ALL = {"ignore_index": {0, 2}, "label_smoothing": {0.1, 0.5}, "lse_square_scale": {1e-4, 1e-2}, "softcap": {30.0, 1.0}}


def test_every_value_of_every_option_is_drawn_and_a_default_is_left_out():
    assert options_of(kernel(right_loss, LOSS)) == ALL


def test_options_are_drawn_for_an_outsider_too():
    seen = set()
    QUICK(given(recipes(LOSS))(lambda recipe: seen.update(recipe.options)))()
    assert {name for name, _ in seen} == set(ALL)


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 3), (1, 2, 3, 4, 5)], ids=str)
def test_a_default_is_drawn_a_little_more_often_than_all_the_rest(values):
    table = weighted(values)
    assert table[0] == values[0] and set(table) == set(values)
    assert len(table) / 2 < table.count(values[0]) + 0.5 <= len(table) / 2 + 1


@pytest.mark.parametrize(
    ("supported", "left"),
    [
        ({"softcap": (0.0,)}, {name: ALL[name] for name in ALL if name != "softcap"}),
        ({"softcap": [0.0, 30.0]}, ALL | {"softcap": {30.0}}),
        ({name: operation(LOSS).option(name).values[:1] for name in ALL}, {}),
        ({"softcap": (50.0,)}, ALL | {"softcap": {50.0}}),
    ],
    ids=["not at all", "one value", "none", "a value of its own"],
)
def test_what_a_kernel_does_not_support_is_not_drawn(supported, left):
    assert options_of(kernel(right_loss, LOSS, options=supported)) == left


@pytest.mark.parametrize("name", ["shift_invariance", "masking", "accuracy"])
def test_options_that_break_a_law_keep_their_defaults_under_it(name):
    made = kernel(right_loss, LOSS)
    breaking = {"shift_invariance": {"softcap", "lse_square_scale"}, "masking": {"softcap", "label_smoothing"}, "accuracy": set()}[name]
    fixed = LAWS[name].fixed_options(made)
    assert fixed == breaking
    assert options_of(made, fixed_options=fixed) == {n: values for n, values in ALL.items() if n not in breaking}


@pytest.mark.parametrize(("name", "operation_name"), [("target", LOSS), ("labels", LOGPROB)])
def test_targets_are_drawn_at_the_codes_and_where_kernels_go_wrong(name, operation_name):
    space = Space(operation_name, "fp32", max_vocab=1025, max_rows=24, max_elements=1 << 15, blocks=(64,))
    codes = {LARGEST, SMALLEST} | ({IGNORED} if operation_name == LOSS else set())
    seen = {(recipe.vocab, row.input(name, None)) for recipe in all_drawn(space) for row in recipe.rows}
    assert all(target in codes or target in edges(vocab, (64,)) for vocab, target in seen)
    assert {target for vocab, target in seen if vocab > 65} >= {0, 1, 63, 64, 65} | codes


@pytest.mark.parametrize("name", [SOFTMAX, LSE, LOGPROB, LOSS])
def test_a_ladder_is_drawn_only_where_there_is_a_temperature(name):
    fans = {recipe.fan for recipe in all_drawn(Space(name, "fp32", max_vocab=5)) if recipe.siblings > 1}
    assert fans - {"ladder"} == {"reseed", "rotate", "scale"}
    assert ("ladder" in fans) == (name in (SOFTMAX, LOGPROB))


# ---- shrinking


def test_the_simplest_recipe_is_one_zero_at_temperature_one():
    assert smallest(lambda recipe: True) == SIMPLEST


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda r: r.vocab >= 1000, lambda r: r == SIMPLEST.with_(vocab=1000)),
        (lambda r: r.total_rows >= 2, lambda r: r.vocab == 1 and len(set(r.rows)) == 1 and r.total_rows <= 3),
        (lambda r: not r.layout.contiguous, lambda r: r == SIMPLEST.with_(layout=Layout(1))),
        (lambda r: temperature(r) < 1e-3, lambda r: r.rows == (Row(inputs=(("temperature", 1e-4),)),) and r.vocab == 1),
        (lambda r: r.rows[0].mask.kind == "prefix", lambda r: r.rows == (replace(PLAIN, mask=Mask("prefix", 1)),)),
        (
            lambda r: r.rows[0].background.kind == "bits",
            lambda r: r.vocab == 1 and r.rows == (replace(PLAIN, background=Background("bits", ())),),
        ),
        (lambda r: r.rows[0].edits, lambda r: r.vocab == 1 and r.rows == (replace(PLAIN, edits=((0, 0.0),)),)),
        (lambda r: r.seed > 0, lambda r: r == SIMPLEST.with_(seed=1)),
    ],
    ids=["vocabulary", "rows", "layout", "temperature", "mask", "bits", "edit", "seed"],
)
def test_everything_but_the_cause_shrinks_away(condition, expected):
    found = smallest(condition)
    assert expected(found), found


LOSSES = Space(LOSS, "fp32", max_rows=24, max_elements=1 << 12, max_vocab=4096, options=(("softcap", (0.0, 0.0, 30.0, 1.0)),))


@pytest.mark.parametrize(
    ("condition", "inputs", "options"),
    [
        (lambda r: True, (0, 1.0), ()),
        (lambda r: dict(r.options).get("softcap", 0.0) > 0, (0, 1.0), (("softcap", 30.0),)),
        (lambda r: r.rows[0].input("target", 0) == IGNORED, (IGNORED, 1.0), ()),
        (lambda r: r.rows[0].input("upstream", 1.0) < 0, (0, -1.0), ()),
    ],
    ids=["nothing", "option", "target", "upstream"],
)
def test_an_option_or_an_input_that_is_the_cause_is_all_that_is_left(condition, inputs, options):
    found = smallest(condition, LOSSES)
    assert found.vocab <= 2  # the place of a code in its table depends on V
    row = Row(inputs=tuple(zip(("target", "upstream"), inputs, strict=True)))
    assert found.with_(vocab=1) == Recipe(LOSS, "fp32", 1, (row,), options=options)


# ---- what Hypothesis shows


@pytest.mark.parametrize("space", [SMALL, LOSSES], ids=lambda s: s.operation)
def test_a_drawn_recipe_survives_json(space):
    @QUICK
    @given(drawn(space))
    def examine(recipe):
        assert repr(from_data(to_data(recipe))) == repr(recipe)

    examine()


def test_many_block_sizes_do_not_hide_the_large_vocabularies():
    """One byte picks a size: with more sizes than that, the largest must still be among them."""
    from stabcheck.strategies import CHOICES, Space, vocab_sizes

    sizes = vocab_sizes(Space("temperature_softmax", "fp32", blocks=tuple(range(100, 4000, 97))))
    assert len(sizes) == CHOICES
    assert (sizes[0], sizes[-1]) == (1, 262144)
