"""A recipe means the same bits everywhere, and each of its parts does what its docstring says."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from planted import SOFTMAX, inf, logits_of, nan
from planted_losses import LOGPROB, LOSS, LSE

from stabcheck.expansion import materialise
from stabcheck.floats import FORMATS, by_name
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.recipe import BACKGROUNDS, FANS, MASKS, Background, Layout, Mask, Recipe, Row, from_data
from stabcheck.strategies import recipes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COMMITTED = json.loads((Path(__file__).parent / "data" / "recipe_hashes.json").read_text())


PLAIN, UNMASKED = Background(), Mask()
HUGE = [
    Background("constant", (3e38,)),
    Background("bell", (0.0, 1e30)),
    Background("ramp", (-3e38, 1e33)),
    Background("palette", (3e38,) * 4),
]


def one(background=PLAIN, mask=UNMASKED, edits=(), *, vocab=8, temperature=1.0, dtype="fp32", **more):
    """A recipe of one archetype."""
    return Recipe("temperature_softmax", dtype, vocab, (Row(background, mask, edits, (("temperature", temperature),)),), **more)


# ---- the same bits


@pytest.mark.parametrize("device", DEVICES)
def test_committed_recipes_have_their_committed_bits(device):
    """Where this fails on purpose, run tests/data/make_recipe_hashes.py: every reproducer written so far changes its meaning."""
    recipes = [from_data(entry["recipe"]) for entry in COMMITTED]
    differ = [r for r, entry in zip(recipes, COMMITTED, strict=True) if materialise(r, device).digest() != entry["digest"]]
    assert differ == []


def committed(*operations):
    return [r for r in (from_data(entry["recipe"]) for entry in COMMITTED) if r.operation in operations]


def test_committed_recipes_are_a_hundred_of_every_kind():
    recipes = committed(SOFTMAX)
    rows = [row for r in recipes for row in r.rows]
    assert len(recipes) == 100
    assert {r.dtype for r in recipes} == set(FORMATS)
    assert {r.fan for r in recipes if r.siblings > 1} == set(FANS)
    assert {row.background.kind for row in rows} == set(BACKGROUNDS)
    assert {row.mask.kind for row in rows} == set(MASKS)
    assert any(r.vocab == 70000 for r in recipes) and any(not r.siblings for r in recipes)
    assert len({entry["digest"] for entry in COMMITTED[:100]}) > 80  # empty batches and fully masked ones share theirs


def test_committed_recipes_have_every_code_of_a_column_and_options_of_every_sort():
    recipes = committed(LSE, LOGPROB, LOSS)
    turned = [r for r in recipes if r.fan == "rotate" and r.siblings > 1]
    assert {v for r in turned for row in r.rows for name, v in row.inputs if name == "target"} > {LARGEST, SMALLEST, IGNORED, 0, 1}
    assert {v for r in turned for row in r.rows for name, v in row.inputs if name == "labels"} > {LARGEST, SMALLEST, 0, 1}
    assert {type(v) for r in recipes for _, v in r.options} == {int, float, str}
    assert {r.operation for r in turned} == {LSE, LOGPROB, LOSS}


def test_committed_recipes_have_seeds_of_64_bits_positions_that_count_and_chains_of_every_length():
    recipes = committed("filtered_probs", "sample", "verify_speculative")
    given_to = {
        name: [v for r in recipes if r.siblings > 1 for row in r.rows for n, v in row.inputs if n == name] for name in ("seed", "position")
    }
    assert min(given_to["seed"]) < -(2**32) and max(given_to["seed"]) > 2**31
    assert max(given_to["position"]) > 2**31
    assert {v for r in recipes for name, v in r.options if name == "drafts"} == {1, 2, 4}


def test_positions_count_from_sibling_to_sibling_and_start_anew_at_each_archetype():
    from planted_sampling import ids_of

    made = ids_of([0.0, 1.0], [2.0, 0.0], position=[7, 2**40], seed=[5, -6]).with_(siblings=3)
    inputs = materialise(made).inputs
    assert inputs["position"].tolist() == [7, 8, 9, 2**40, 2**40 + 1, 2**40 + 2]
    assert inputs["seed"].tolist() == [5] * 3 + [-6] * 3


@given(recipes("temperature_softmax", "bf16"))
@settings(max_examples=50, deadline=None)
def test_materialising_again_gives_the_same_bits(recipe):
    assert materialise(recipe).digest() == materialise(recipe).digest()


@pytest.mark.parametrize("change", [{"seed": 1}, {"vocab": 9}, {"dtype": "bf16"}, {"siblings": 3}])
def test_another_recipe_gives_other_bits(change):
    plain = one(Background("bell", (0.0, 1.0)), siblings=2)
    assert materialise(plain).digest() != materialise(plain.with_(**change)).digest()


# ---- backgrounds


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        (Background("constant", (3.0,)), [3.0, 3.0, 3.0, 3.0]),
        (Background("ramp", (1.0, -0.5)), [1.0, 0.5, 0.0, -0.5]),
        (Background("literal", (2.0, -inf, 7.0), (2, 1, 1)), [2.0, 2.0, -inf, 7.0]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_background_without_noise(background, expected):
    assert logits_of(one(background, vocab=4)) == [expected]


def test_palette_uses_all_of_its_values_and_no_other():
    (row,) = logits_of(one(Background("palette", (1.0, 2.0, 3.0, 4.0)), vocab=1000))
    counts = [row.count(value) for value in (1.0, 2.0, 3.0, 4.0)]
    assert sum(counts) == 1000
    assert min(counts) > 150


def test_bell_has_its_centre_and_scale():
    x = materialise(one(Background("bell", (100.0, 5.0)), vocab=20000)).logits
    assert abs(x.mean() - 100) < 0.5
    assert 4 < x.std() < 7
    assert (x - 100).abs().max() <= 4 * 5
    assert x.unique().numel() > 19000  # ties are rare


@pytest.mark.parametrize("dtype", FORMATS)
def test_bits_are_finite_and_cover_the_exponents(dtype):
    x = materialise(one(Background("bits", ()), vocab=50000, dtype=dtype)).logits.double().abs()
    fmt = by_name(dtype)
    assert x.isfinite().all()
    assert x.max() > fmt.max / 4
    assert (x < fmt.tiny * 8).any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("fan", FANS)
@pytest.mark.parametrize("background", HUGE, ids=lambda b: b.kind)
def test_finite_stays_finite(dtype, fan, background):
    """Overflow of fp16, or by the doublings of a fan, must not bring an infinity that nobody drew."""
    assert materialise(one(background, vocab=64, dtype=dtype, siblings=30, fan=fan)).logits.isfinite().all()


# ---- masks: which columns of 0..7 are -inf


@pytest.mark.parametrize(
    ("mask", "columns"),
    [
        (Mask(), ""),
        (Mask("prefix", 3), "012"),
        (Mask("suffix", 3), "567"),
        (Mask("span", 2, 3), "234"),
        (Mask("span", 10, 3), "234"),  # modulo V
        (Mask("every", 3, 1), "147"),
        (Mask("all_but", 2, 3), "01567"),
        (Mask("all_but", 0, 1), "1234567"),
        (Mask("all"), "01234567"),
        (Mask("prefix", 100), "01234567"),
        (Mask("suffix", 100), "01234567"),
    ],
    ids=str,
)
def test_mask_covers_its_columns_and_no_other(mask, columns):
    x = materialise(one(Background("bell", (0.0, 1.0)), mask, siblings=2)).logits
    assert [torch.where(row == -inf)[0].tolist() for row in x] == [[int(c) for c in columns]] * 2


# ---- edits


def test_edits_come_after_the_mask():
    assert logits_of(one(mask=Mask("all"), edits=((2, 5.0),), vocab=4)) == [[-inf, -inf, 5.0, -inf]]


def test_edits_count_modulo_v_and_the_last_one_wins():
    assert logits_of(one(edits=((5, 1.0), (1, 2.0)), vocab=4)) == [[0.0, 2.0, 0.0, 0.0]]


def test_edits_reach_every_sibling_of_their_archetype_only():
    rows = (Row(edits=((0, 1.0),)), Row())
    assert logits_of(Recipe("temperature_softmax", "fp32", 2, rows, siblings=2)) == [[1.0, 0.0]] * 2 + [[0.0, 0.0]] * 2


@pytest.mark.parametrize("value", [nan, inf, -0.0, 2.0**-149], ids=str)
def test_special_values_arrive(value):
    assert str(logits_of(one(edits=((1, value),), vocab=2))[0][1]) == str(value)


# ---- fans


def temperatures(made):
    return materialise(made).inputs["temperature"].tolist()


@pytest.mark.parametrize("fan", FANS)
def test_sibling_0_is_the_archetype(fan):
    alone = one(Background("bell", (0.0, 1.0)), edits=((3, 9.0),), temperature=0.5)
    first = materialise(alone.with_(siblings=5, fan=fan)).pick(slice(0, 1))
    assert first.digest() == materialise(alone).digest()


def test_reseed_draws_other_noise():
    x = materialise(one(Background("bell", (0.0, 1.0)), siblings=4)).logits
    assert len({tuple(row) for row in x.tolist()}) == 4


def test_rotate_turns_each_siblings_columns():
    x = materialise(one(Background("ramp", (0.0, 1.0)), siblings=16, fan="rotate")).logits
    starts = x[:, 0].int()
    assert (x == (torch.arange(8) + starts[:, None]) % 8).all()
    assert starts.unique().numel() > 3


def test_ladder_halves_the_temperature_over_32_steps():
    assert temperatures(one(siblings=34, fan="ladder", temperature=0.5)) == [*(0.5 * 2.0**-k for k in range(32)), 0.5, 0.25]


def test_ladder_stops_at_the_smallest_temperature_and_leaves_zero():
    assert temperatures(one(siblings=3, fan="ladder", temperature=2.0**-148)) == [2.0**-148, 2.0**-149, 2.0**-149]
    assert temperatures(one(siblings=3, fan="ladder", temperature=0.0)) == [0.0] * 3


def test_scale_doubles_the_background_over_24_steps_but_not_the_edits():
    x = materialise(one(Background("constant", (3.0,)), edits=((1, 1.0),), vocab=2, siblings=25, fan="scale")).logits
    assert x[:, 0].tolist() == [*(3.0 * 2**k for k in range(24)), 3.0]
    assert (x[:, 1] == 1).all()


def test_other_fans_keep_the_temperature():
    assert temperatures(one(siblings=3, fan="scale", temperature=0.3)) == temperatures(one(temperature=0.3)) * 3


# ---- columns named by an input


def targeted(target, background=PLAIN, mask=UNMASKED, edits=(), *, vocab=8, **more):
    """A recipe of one archetype of a loss."""
    return Recipe(LOSS, "fp32", vocab, (Row(background, mask, edits, (("target", target), ("upstream", 0.5))),), **more)


def targets(made):
    return materialise(made).inputs["target"].tolist()


@pytest.mark.parametrize(("target", "column"), [(3, 3), (7, 7), (8, 0), (21, 5)])
def test_a_column_counts_modulo_v(target, column):
    assert targets(targeted(target)) == [column]


def test_a_column_moves_with_its_column():
    batch = materialise(targeted(2, Background("ramp", (0.0, 1.0)), siblings=16, fan="rotate"))
    assert len(set(batch.inputs["target"].tolist())) > 3
    assert batch.logits.gather(1, batch.inputs["target"][:, None]).flatten().tolist() == [2.0] * 16


@pytest.mark.parametrize("fan", ["reseed", "scale"])
def test_a_column_stays_where_columns_stay(fan):
    assert targets(targeted(2, siblings=3, fan=fan)) == [2] * 3


@pytest.mark.parametrize(
    ("code", "edits", "column"),
    [
        (LARGEST, ((5, 9.0),), 5),
        (LARGEST, ((5, 9.0), (3, 9.0)), 3),  # the first of equals
        (LARGEST, ((5, 9.0), (6, nan)), 6),  # as torch orders them
        (LARGEST, (), 0),
        (SMALLEST, ((5, -9.0), (3, -9.0)), 3),
        (SMALLEST, ((5, -inf), (3, -9.0)), 5),
    ],
)
def test_a_code_is_the_first_column_that_it_describes_in_the_finished_row(code, edits, column):
    assert targets(targeted(code, edits=edits)) == [column]


@pytest.mark.parametrize("code", [LARGEST, SMALLEST])
def test_a_code_is_resolved_in_each_sibling_for_itself(code):
    batch = materialise(
        targeted(code, Background("bell", (0.0, 1.0)), Mask("prefix", 3), siblings=12, fan="rotate", layout=Layout(5, 3, 7))
    )
    chosen = batch.logits.argmax(-1) if code == LARGEST else batch.logits.argmin(-1)
    assert batch.inputs["target"].tolist() == chosen.tolist()
    assert chosen.unique().numel() > 2


def test_codes_of_one_archetype_do_not_reach_another():
    rows = tuple(Row(edits=((4, 1.0), (6, -1.0)), inputs=(("target", v),)) for v in (LARGEST, 0, SMALLEST, IGNORED))
    assert targets(Recipe(LOSS, "fp32", 8, rows, siblings=2)) == [4, 4, 0, 0, 6, 6, IGNORED, IGNORED]


@pytest.mark.parametrize(("options", "index"), [((), -100), ((("ignore_index", 2),), 2), ((("ignore_index", 0),), 0)])
@pytest.mark.parametrize("vocab", [1, 8])
def test_an_ignored_row_has_the_index_that_is_ignored_wherever_columns_go(options, index, vocab):
    assert targets(targeted(IGNORED, vocab=vocab, siblings=5, fan="rotate", options=options)) == [index] * 5


def test_a_batch_carries_inputs_in_their_dtypes_and_the_options_and_knows_no_smallest_column():
    batch = materialise(targeted(1, siblings=2, options=(("softcap", 30.0), ("reduction", "mean"))))
    assert [(name, v.dtype) for name, v in batch.inputs.items()] == [("target", torch.int64), ("upstream", torch.float32)]
    assert batch.inputs["upstream"].tolist() == [0.5] * 2
    assert (batch.options, batch.known) == ({"softcap": 30.0, "reduction": "mean"}, {"upstream": 0.5})


def test_an_input_that_a_recipe_leaves_out_has_its_default():
    batch = materialise(Recipe(LOGPROB, "fp32", 3, siblings=2))
    assert {name: v.tolist() for name, v in batch.inputs.items()} == {"labels": [0, 0], "temperature": [1.0, 1.0]}


def test_an_operation_without_inputs_has_none():
    assert materialise(Recipe(LSE, "fp32", 3, siblings=2)).inputs == {}


def test_an_empty_batch_has_no_targets():
    assert targets(targeted(LARGEST, siblings=0)) == []


# ---- layouts


@pytest.mark.parametrize("layout", [Layout(), Layout(3), Layout(0, 2), Layout(0, 1, 5), Layout(5, 3, 7)], ids=str)
def test_layout_changes_where_values_lie_but_not_the_values(layout):
    plain = one(Background("bell", (0.0, 1.0)), siblings=3)
    x = materialise(plain.with_(layout=layout)).logits
    assert x.equal(materialise(plain).logits)
    assert x.stride() == (8 * layout.step + layout.pad, layout.step)
    assert x.storage_offset() == layout.offset


# ---- sizes


def test_no_siblings_make_an_empty_batch():
    batch = materialise(one(siblings=0))
    assert batch.logits.shape == (0, 8)
    assert batch.inputs["temperature"].shape == (0,)


@pytest.mark.parametrize(("kind", "values"), [("constant", 1), ("palette", 4), ("bell", 2), ("ramp", 2), ("bits", 0)])
@pytest.mark.parametrize("fan", FANS)
def test_one_column_is_enough_for_every_background_and_fan(kind, values, fan):
    assert materialise(one(Background(kind, (1.0,) * values), vocab=1, siblings=2, fan=fan)).logits.shape == (2, 1)


def test_rows_wider_than_the_noise_are_filled_to_the_end():
    x = materialise(one(Background("bell", (0.0, 1.0)), vocab=300_000)).logits
    assert x[0, 262_144:].std() > 0.5
