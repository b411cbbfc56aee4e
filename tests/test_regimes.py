"""Every adversarial condition that the design names is really drawn, and counted as what it is."""

from contextlib import suppress
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from planted import SOFTMAX, inf, kernel, nan, right
from planted_losses import LOGPROB, LOSS, LSE, logprob, lse, right_loss

from stabcheck.floats import FORMATS
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.profiles import LIMITS
from stabcheck.recipe import Background, Layout, Mask, Recipe, Row
from stabcheck.regimes import EMPTY, REGIMES, names, regimes
from stabcheck.strategies import drawn, space_for

UNREACHABLE = {"GPU": set(), "interpreter": {"≥ 64 rows"}}
KERNELS = {
    SOFTMAX: kernel(right, policies={"zero_temperature": "greedy"}),
    LSE: kernel(lse, LSE),
    LOGPROB: kernel(logprob, LOGPROB),
    LOSS: kernel(right_loss, LOSS),
}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("where", UNREACHABLE)
@pytest.mark.parametrize("operation", KERNELS)
def test_every_regime_is_drawn_within_a_run(operation, where, dtype):
    space = space_for(KERNELS[operation], dtype, **LIMITS[where == "GPU"])
    missing = set(names(operation)) - UNREACHABLE[where]

    def complete(recipe):
        missing.difference_update(name for name, rows in regimes(recipe).items() if rows)
        return not missing

    run = settings(max_examples=1500, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    with suppress(NoSuchExample):
        find(drawn(space), complete, settings=run, random=Random(0))
    assert not missing


def of(background=None, mask=None, edits=(), *, vocab=8, temperature=0.7, operation=SOFTMAX, inputs=None, **more):
    given = (("temperature", temperature),) if operation == SOFTMAX else tuple((inputs or {}).items())
    row = Row(background or Background("constant", (2.0,)), mask or Mask(), edits, given)
    return set(regimes(Recipe(operation, "fp32", vocab, (row,), **more)))


BASE = {"ties", "one row"}


@pytest.mark.parametrize(
    ("recipe", "regime"),
    [
        ({"background": Background("constant", (1e4,))}, "huge magnitudes"),
        ({"background": Background("bell", (0.0, 5e3))}, "huge magnitudes"),
        ({"edits": ((0, 88.7),)}, "exp's cliffs"),
        ({"background": Background("constant", (-104.0,))}, "exp's cliffs"),
        ({"edits": ((0, 2.0**-149),)}, "subnormal logits"),
        ({"background": Background("palette", (1.0, 1.0, 1 + 2.0**-23, 1.0))}, "one-ulp neighbours"),
        ({"background": Background("bits", ())}, "random bit patterns"),
        ({"mask": Mask("prefix", 2)}, "-inf prefix"),
        ({"mask": Mask("suffix", 2)}, "-inf suffix"),
        ({"mask": Mask("span", 2, 2)}, "-inf blocks"),
        ({"mask": Mask("every", 2, 0)}, "-inf every k-th"),
        ({"mask": Mask("all_but", 2, 1)}, "-inf all but a few"),
        ({"mask": Mask("all")}, "-inf everywhere"),
        ({"edits": ((1, nan),)}, "NaN"),
        ({"edits": ((1, inf),)}, "+inf"),
        ({"temperature": 1e-3}, "T < 1e-2"),
        ({"temperature": 1e-39}, "subnormal T"),
        ({"temperature": 0.0}, "T = 0"),
        ({"siblings": 2, "fan": "ladder"}, "mixed T"),
        ({"vocab": 7}, "odd V"),
        ({"vocab": 1}, "V = 1"),
        ({"vocab": 1025}, "V = 2^k ± 1"),
        ({"vocab": 1023}, "V = 2^k ± 1"),
        ({"vocab": 32000}, "V ≥ 32000"),
        ({"siblings": 64}, "≥ 64 rows"),
        ({"layout": Layout(1)}, "padded rows"),
        ({"layout": Layout(0, 2)}, "column stride"),
        ({"layout": Layout(0, 1, 1)}, "base offset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_regime_is_recognised_by_what_makes_it(recipe, regime):
    assert regime not in of()
    assert regime in of(**recipe)


LOSSES = [
    (LOSS, {"inputs": {"target": LARGEST}}, "target at the maximum"),
    (LOSS, {"inputs": {"target": SMALLEST}}, "target at the minimum"),
    (LOSS, {"inputs": {"target": 3}, "edits": ((3, 1.0),)}, "target edited"),
    (LOSS, {"inputs": {"target": IGNORED}}, "ignored row"),
    (LOSS, {"inputs": {"target": IGNORED}}, "every row ignored"),
    (LOSS, {"inputs": {"upstream": 0.0}}, "zero upstream"),
    (LOSS, {"inputs": {"upstream": -1e30}}, "huge upstream"),
    (LOSS, {"options": (("ignore_index", 2),)}, "ignore_index = 2"),
    (LOSS, {"options": (("ignore_index", 0),)}, "ignore_index = 0"),
    (LOSS, {"options": (("label_smoothing", 0.1),)}, "label_smoothing = 0.1"),
    (LOSS, {"options": (("label_smoothing", 0.5),)}, "label_smoothing = 0.5"),
    (LOSS, {"options": (("lse_square_scale", 1e-4),)}, "lse_square_scale = 0.0001"),
    (LOSS, {"options": (("lse_square_scale", 1e-2),)}, "lse_square_scale = 0.01"),
    (LOSS, {"options": (("softcap", 1.0),)}, "softcap = 1.0"),
    (LOSS, {"options": (("softcap", 30.0),)}, "softcap = 30.0"),
    (LOGPROB, {"inputs": {"labels": LARGEST}}, "target at the maximum"),
    (LOGPROB, {"inputs": {"labels": SMALLEST}}, "target at the minimum"),
    (LOGPROB, {"inputs": {"labels": 3}, "edits": ((3, 1.0),)}, "target edited"),
    (LOGPROB, {"inputs": {"temperature": 1e-3}}, "T < 1e-2"),
    (LOGPROB, {"inputs": {"temperature": 1e-39}}, "subnormal T"),
    (LOGPROB, {"siblings": 2, "fan": "ladder"}, "mixed T"),
]


@pytest.mark.parametrize(("operation", "made", "regime"), LOSSES)
def test_a_regime_of_an_operations_inputs_and_options_is_recognised(operation, made, regime):
    assert regime not in of(operation=operation)
    assert regime in of(operation=operation, **made)


def test_every_regime_has_such_a_recipe():
    (mark,) = (m for m in test_a_regime_is_recognised_by_what_makes_it.pytestmark if m.name == "parametrize")
    assert {regime for _, regime in mark.args[1]} | BASE | {EMPTY} == set(names(SOFTMAX))
    assert {*REGIMES, EMPTY} == set(names(LSE))
    for operation, more in ((LOGPROB, set()), (LOSS, {"mixed upstream"})):
        assert {*REGIMES, EMPTY, *more, *(regime for of, _, regime in LOSSES if of == operation)} == set(names(operation))


def test_what_an_operation_cannot_have_is_no_regime_of_it():
    assert not {"T < 1e-2", "mixed T", "ignored row"} & set(names(LSE))
    assert not {"ignored row", "every row ignored", "T = 0"} & set(names(LOGPROB))


@pytest.mark.parametrize(
    ("name", "values", "regime"), [("target", (IGNORED, 1), "every row ignored"), ("upstream", (1.0, 0.5), "mixed upstream")]
)
def test_regimes_of_several_archetypes(name, values, regime):
    mixed, equal = (Recipe(LOSS, "fp32", 8, tuple(Row(inputs=((name, v),)) for v in chosen)) for chosen in (values, values[:1] * 2))
    assert (regime in regimes(mixed)) == (regime == "mixed upstream")
    assert (regime in regimes(equal)) != (regime == "mixed upstream")


def test_a_plain_recipe_is_in_no_other_regime():
    assert of() == BASE


def test_mixed_temperatures_of_two_archetypes():
    rows = tuple(Row(inputs=(("temperature", t),)) for t in (1.0, 0.5))
    assert regimes(Recipe("temperature_softmax", "fp32", 8, rows))["mixed T"] == 2


def test_regimes_count_rows():
    rows = (Row(mask=Mask("all")), Row())
    found = regimes(Recipe("temperature_softmax", "fp32", 8, rows, siblings=5))
    assert (found["-inf everywhere"], found["ties"]) == (5, 10)


def test_an_empty_batch_counts_once():
    assert regimes(Recipe("temperature_softmax", "fp32", 8, siblings=0)) == {EMPTY: 1}
