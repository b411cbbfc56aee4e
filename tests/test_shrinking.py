"""Planted faults shrink to exactly the rows that a person would have written down."""

import pytest
import torch
from planted import CPU, LAWS, kernel, logits_of, nan, recipe, recipe_of, right, trial
from planted import inf as infinity
from planted_losses import LOGPROB, LOSS, loss, right_loss, with_logprob

from stabcheck.findings import broken
from stabcheck.operations.base import SMALLEST
from stabcheck.recipe import Background, Layout, Mask, Recipe, Row
from stabcheck.shrinking import shrink
from stabcheck.trial import Trial


def row(background=None, mask=None, edits=(), temperature=1.0):
    return Row(background or Background("bell", (0.0, 5.0)), mask or Mask(), edits, (("temperature", temperature),))


def large(*rows, vocab=300, siblings=4, **more):
    """A recipe far from minimal."""
    return Recipe("temperature_softmax", "fp32", vocab, rows or (row(),) * 2, siblings, **more)


def wrong_where(condition, law="accuracy"):
    """A trial of a kernel that is 5 % too large in rows where condition(x [R, V], t [R, 1]) holds."""

    def planted(x, t):
        return torch.where(condition(x, t[:, None]), 1.05, 1.0) * right(x, t)

    return trial(planted, law)


def shrunk(examined, start):
    outcome = examined.examine(start)
    assert not outcome.ok, "the planted fault does not show at the start"
    return shrink(examined, examined.finding(start, outcome))


def minimal(examined, start):
    """(rows of logits, temperatures, layout) of the shrunk finding."""
    made = shrunk(examined, start).recipe
    return logits_of(made), [r.input("temperature", 1.0) for r in made.rows], made.layout


PLAIN = Layout()


def test_two_values_that_matter_are_all_that_is_left():
    examined = wrong_where(lambda x, t: (x <= -110).any(-1, keepdim=True) & (x == 0).any(-1, keepdim=True))
    start = large(row(Background("bell", (-20.0, 5.0)), edits=((7, -123.456), (100, 0.0)), temperature=0.7))
    rows, temperatures, layout = minimal(examined, start)
    assert (rows, temperatures, layout) == ([[-120.0, 0.0]], [1.0], PLAIN)


def test_a_threshold_of_the_vocabulary_is_met_exactly():
    rows, temperatures, _ = minimal(wrong_where(lambda x, t: torch.full_like(t, x.shape[1] > 128) > 0), large(row(temperature=0.5)))
    assert (rows, temperatures) == ([[0.0] * 129], [1.0])


def test_a_small_temperature_stays_as_plain_as_it_can():
    rows, temperatures, _ = minimal(wrong_where(lambda x, t: t < 1e-3), large(row(temperature=3.7e-20)))
    assert rows == [[0.0]]
    assert temperatures == [pytest.approx(1e-4)]


def test_a_masked_tile_shrinks_to_the_tile_and_one_column():
    examined = wrong_where(lambda x, t: (x[:, :64] == -infinity).all(-1, keepdim=True) & torch.full_like(t, x.shape[1] > 64).bool())
    rows, _, _ = minimal(examined, large(row(mask=Mask("prefix", 100))))
    assert rows == [[-infinity] * 64 + [0.0]] or rows == [[-infinity] * 65]


def test_a_nan_shrinks_to_a_nan():
    examined = trial(lambda x, t: right(x, t).nan_to_num(0.0))
    rows, _, _ = minimal(examined, large(row(edits=((150, nan),))))
    assert len(rows) == 1 and len(rows[0]) == 1 and rows[0][0] != rows[0][0]


def test_a_layout_that_matters_stays_and_the_rest_goes():
    examined = trial(lambda x, t: right(x, t) * (1.05 if x.stride(0) != x.shape[1] else 1.0))
    rows, temperatures, layout = minimal(examined, large(layout=Layout(7, 1, 5)))
    assert (rows, temperatures, layout) == ([[0.0]], [1.0], Layout(pad=1))


def test_a_layout_that_does_not_matter_goes():
    assert minimal(wrong_where(lambda x, t: t > 0), large(layout=Layout(5, 3, 7))) == ([[0.0]], [1.0], PLAIN)


def test_a_failing_row_is_found_among_right_ones():
    rows, _, _ = minimal(wrong_where(lambda x, t: (x == 3).any(-1, keepdim=True)), large(row(), row(edits=((9, 3.0),)), row()))
    assert rows == [[3.0]]


def test_two_neighbouring_rows_stay_two():
    def mixes_pairs(x, t):
        return right(x, t).masked_fill(x.roll(1, 0).isnan().any(-1, keepdim=True), nan)

    finding = shrunk(trial(mixes_pairs, "isolation"), large(row(), row(), siblings=4, seed=3))
    assert (finding.recipe.total_rows, finding.recipe.vocab) == (2, 1)


def test_a_row_that_fails_with_others_only_keeps_them():
    examined = trial(lambda x, t: right(x, t) * (1.05 if len(x) >= 3 else 1))
    rows, _, _ = minimal(examined, large(siblings=4))
    assert rows == [[0.0]] * 3


# ---- targets and options

START = Recipe(
    LOSS,
    "fp32",
    300,
    (Row(Background("bell", (0.0, 5.0)), Mask("suffix", 9), ((7, 20.0),), (("target", 40), ("upstream", -65536.0))),) * 2,
    siblings=4,
    options=(("label_smoothing", 0.5), ("softcap", 30.0)),
)


def told(condition, start=START):
    """The input that is left where a loss is 5 % too large in rows where condition(q) holds."""
    examined = trial(loss(of_loss=lambda values, q: values * torch.where(condition(q), 1.05, 1.0)), operation=LOSS)
    (line,) = (line for line in shrunk(examined, start).text().splitlines() if line.startswith("  input"))
    return line.removeprefix("  input    ")


def of_target(q):
    return q.logits.gather(1, q.target[:, None])[:, 0]


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        (lambda q: torch.tensor(q.eps > 0), "V = 2, label_smoothing = 0.5, target = 0, logits = [0 × 2]"),
        (lambda q: torch.tensor(q.logits.shape[1] > 65), "V = 66, target = 0, logits = [0 × 66]"),
        (lambda q: of_target(q) < q.logits.amax(-1) - 2, "V = 2, target = 0, logits = [-20, 0]"),
        (lambda q: q.target > 30, "V = 32, target = 31, logits = [0 × 32]"),
    ],
    ids=["an option", "the vocabulary", "the target's logit", "the target"],
)
def test_targets_and_options_shrink_to_what_the_fault_needs(condition, left):
    assert told(condition) == left


def test_an_upstream_gradient_that_matters_stays_and_the_options_go():
    examined = trial(loss(of_grad=lambda grad, q: grad * torch.where(q.upstream[:, None] < 0, 1.05, 1.0)), operation=LOSS)
    assert "input    V = 2, target = 0, upstream = -1, logits = [0 × 2]" in shrunk(examined, START).text()


def test_labels_and_a_temperature_shrink_together():
    wrong = with_logprob(lambda values, x, labels, t: values * torch.where((t < 0.5) & (labels > 2), 1.05, 1.0))
    row_inputs = (("labels", SMALLEST), ("temperature", 1e-3))
    start = Recipe(LOGPROB, "fp32", 200, (Row(Background("ramp", (0.0, -1e-4)), inputs=row_inputs),), siblings=2)
    assert "input    V = 4, labels = 3, T = 0.1, logits = [0 × 4]" in shrunk(trial(wrong, operation=LOGPROB), start).text()


def test_a_crash_on_an_ignored_row_does_not_become_one_on_a_target_out_of_range():
    def crashes(logits, target, ignore_index=-100, **options):
        if bool((target == ignore_index).any()):
            raise RuntimeError("an ignored row")
        return right_loss(logits, target, ignore_index=ignore_index, **options)

    finding = shrunk(trial(crashes, operation=LOSS), recipe_of(LOSS, [0.0, 1.0, 2.0, 5.0], inputs={"target": -100}))
    assert "input    V = 1, target = ignored, logits = [0]" in finding.text()
    assert "an ignored row" in finding.detail


# ---- what is kept


def test_the_kind_is_kept():
    """[0] is wrong, wide rows crash: a crash must not turn into the smaller, other bug."""

    def two_bugs(x, t):
        if x.shape[1] > 5:
            raise RuntimeError("too wide")
        return right(x, t) * 1.05

    finding = shrunk(trial(two_bugs), large())
    assert (finding.kind, finding.recipe.vocab) == ("crash", 6)


def test_steps_and_origin_are_told():
    start = large()
    finding = shrunk(wrong_where(lambda x, t: t > 0), start)
    assert finding.shrunk_from == start
    assert finding.steps > 0
    assert "shrunk from 8 × 300" in finding.text()


def test_files_that_exist_of_the_same_finding_keep_their_id():
    examined = wrong_where(lambda x, t: t > 0)
    start = large()
    before = examined.finding(start, examined.examine(start))
    assert shrink(examined, before).id == before.id


def test_what_does_not_fail_any_more_is_left_as_it_was():
    examined = wrong_where(lambda x, t: t > 0)
    start = large()
    finding = examined.finding(start, examined.examine(start))
    right_now = Trial(kernel(right), LAWS["accuracy"], "fp32", CPU)
    assert shrink(right_now, finding) is finding


def test_a_row_too_varied_to_write_down_keeps_its_recipe():
    """Every column matters: 5000 literal values are no reproducer."""

    def needs_all(x, t):
        return right(x, t) * (1.05 if x.shape[1] >= 5000 and len(x.unique()) > 4500 else 1)

    start = large(row(), vocab=5000, siblings=1)
    assert shrunk(trial(needs_all), start).recipe == start


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_values_stay_in_the_dtype(dtype):
    examined = trial(lambda x, t: right(x, t) * torch.where((x > 70).any(-1, keepdim=True), 1.05, 1.0).to(x.dtype), dtype=dtype)
    start = large(row(edits=((9, 77.0),))).with_(dtype=dtype)
    made = shrunk(examined, start).recipe
    assert (made.dtype, made.vocab) == (dtype, 1)
    assert logits_of(made)[0][0] > 70


# ---- time


def test_time_that_is_up_ends_it_with_what_was_found_so_far(monkeypatch):
    clock = iter(range(10**9))
    monkeypatch.setattr("stabcheck.shrinking.seconds", lambda device: float(next(clock)))  # each look at the clock takes a second
    examined = wrong_where(lambda x, t: (x <= -110).any(-1, keepdim=True))
    start = large(row(edits=((7, -123.456),)), vocab=4097)
    finding = shrunk(examined, start)
    assert finding.recipe.vocab < 4097
    assert next(clock) < 100


def test_a_shrunk_finding_can_be_raised():
    finding = shrunk(wrong_where(lambda x, t: t > 0), large())
    assert "input    V = 1, T = 1, logits = [0]" in str(broken(finding))


def test_an_already_minimal_recipe_takes_no_step():
    assert shrunk(wrong_where(lambda x, t: t > 0), recipe([0.0])).steps == 0
