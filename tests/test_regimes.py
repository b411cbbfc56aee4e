"""Every adversarial condition that the design names is really drawn, and counted as what it is."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from planted import inf, nan

from stabcheck.floats import FORMATS
from stabcheck.profiles import LIMITS
from stabcheck.recipe import Background, Layout, Mask, Recipe, Row
from stabcheck.regimes import ALL, EMPTY, regimes
from stabcheck.strategies import Space, drawn

UNREACHABLE = {"GPU": set(), "interpreter": {"≥ 64 rows"}}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("where", UNREACHABLE)
def test_every_regime_is_drawn_within_a_run(where, dtype):
    space = Space("temperature_softmax", dtype, zero_temperature=True, **LIMITS[where == "GPU"])
    seen = set()

    @settings(
        max_examples=1500, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(drawn(space))
    def draw(recipe):
        seen.update(name for name, rows in regimes(recipe).items() if rows)

    draw()
    assert set(ALL) - seen <= UNREACHABLE[where]


def of(background=None, mask=None, edits=(), *, vocab=8, temperature=0.7, **more):
    row = Row(background or Background("constant", (2.0,)), mask or Mask(), edits, (("temperature", temperature),))
    return set(regimes(Recipe("temperature_softmax", "fp32", vocab, (row,), **more)))


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


def test_every_regime_has_such_a_recipe():
    (mark,) = (m for m in test_a_regime_is_recognised_by_what_makes_it.pytestmark if m.name == "parametrize")
    assert {regime for _, regime in mark.args[1]} | BASE | {EMPTY} == set(ALL)


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
