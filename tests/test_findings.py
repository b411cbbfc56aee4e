"""A finding's identity is stable, and its text says everything in the same few lines everywhere."""

import json
from dataclasses import replace

import pytest
from planted import inf, nan, recipe, recipe_of
from planted_losses import LOGPROB, LOSS, LSE

from stabcheck.findings import Broken, Finding, broken, describe
from stabcheck.operations.base import IGNORED, LARGEST, SMALLEST
from stabcheck.recipe import Background, Layout, Mask, Row
from stabcheck.verdicts import ANY_FINITE, KINDS, Witness

WITNESS = Witness("non-finite", 0, 1024, nan, 1.0, 3.9e-3, 1, 1, "")
MASKED = recipe([0.0]).with_(dtype="bf16", vocab=1025, rows=(Row(Background("literal", (-inf, 0.0), (1024, 1))),))


def finding(**changes):
    fields = {
        "kernel": "temperature_softmax[online]",
        "target": "stabcheck.kernels.softmax:online",
        "property_name": "accuracy",
        "law": "every probability is within its derived bound of the fp64 reference",
        "dtype": "bf16",
        "arch": "sm_90",
        "recipe": MASKED,
        "witness": WITNESS,
    }
    return Finding(**fields | changes)


def test_the_text_is_that_of_the_design():
    start = MASKED.with_(vocab=4097, siblings=64)
    made = finding(steps=41, shrunk_from=start, files=("reports/latest/7f3a2c.json", "reports/latest/repro_7f3a2c.py"))
    assert (
        made.text()
        == f"""\
BROKEN  accuracy · temperature_softmax[online] · bf16 · sm_90            id {made.id}
  law      every probability is within its derived bound of the fp64 reference
  input    V = 1025, T = 1, logits = [-inf × 1024, 0]
  got      nan at (0, 1024)           expected 1              bound 0.0039
  rows     1 of 1 non-finite          shrunk from 64 × 4097 in 41 steps
  replay   stabcheck replay reports/latest/7f3a2c.json
  script   reports/latest/repro_7f3a2c.py"""
    )


def test_a_crash_has_a_cause_and_no_numbers():
    crash = Witness("crash", 0, 0, nan, nan, nan, 1, 1, "")
    lines = finding(witness=crash, detail="RuntimeError: out of shared memory").text().splitlines()
    assert "  cause    RuntimeError: out of shared memory" in lines
    assert not any(line.startswith("  got") for line in lines)


def test_a_long_cause_keeps_its_names_whole():
    crash, name = Witness("crash", 0, 0, nan, nan, nan, 1, 1, ""), "/opt/some-place/" + "a" * 90 + "-b.py"
    lines = finding(witness=crash, detail=f"{'a compiler that says much ' * 4}in {name}").text().splitlines()
    told = lines[lines.index("           " + name) - 2 :]
    assert told[0].startswith("  cause    a compiler that says much a compiler") and len(told[0]) <= 80


def test_long_figures_keep_apart():
    text = finding(witness=Witness("wrong", 0, 20000, 0.000130269589, -1.00000002e30, 5.4e23, 1, 1, "")).text()
    assert "  got      0.000130269589 at (0, 20000)  expected -1.00000002e+30  bound 5.4e+23" in text


def test_an_infinity_expected_is_not_any_finite_value():
    assert "any finite" not in finding(witness=Witness("non-finite", 0, 0, nan, inf, ANY_FINITE, 1, 1, "")).text()


def test_what_was_compared_is_told():
    assert "  compared run 2 with run 1" in finding(witness=Witness("wrong", 0, 0, 1.0, 2.0, 0.0, 1, 1, "run 2 with run 1")).text()


def test_an_unstable_kernel_is_told_what_to_do():
    unstable = replace(WITNESS.as_kind("unstable"), model="scale_first")
    text = " ".join(finding(witness=unstable).text().split())
    assert "within the scale_first bound, and right once the maximum is subtracted beforehand" in text
    assert 'Subtract the maximum before dividing by T, or declare error_model="scale_first"' in text


LOGPROB_WITNESS = Witness("wrong", 3, None, -1.0, -2.0, 1e-6, 1, 4, "logprob")


def test_an_output_of_rows_has_a_row_and_no_column():
    made = finding(witness=LOGPROB_WITNESS, recipe=recipe_of(LOGPROB, [0.0], inputs={"labels": 0}))
    assert "got -1 at row 3 expected -2 bound 1e-06 rows 1 of 4 wrong" in " ".join(made.text().split())


@pytest.mark.parametrize(
    ("operation", "advice"),
    [
        (LOGPROB, "the log-probability is formed as lse − x/T, which rounds relative to the logits. Form (x − m)/T − log d"),
        (LOSS, "the loss is formed as lse − x_t, which rounds relative to the logits' common offset. Form log d − (x_t − m)"),
    ],
)
def test_an_unshifted_kernel_is_told_what_to_form_instead(operation, advice):
    unstable = replace(LOGPROB_WITNESS.as_kind("unstable"), model="unshifted")
    text = finding(witness=unstable, recipe=recipe_of(operation, [0.0])).text()
    note = text[text.index("  note ") : text.index("  rows ")]
    known = "within the unshifted bound, and right once the maximum is subtracted beforehand: "
    assert " ".join(note.split()) == f'note {known}{advice}, or declare error_model="unshifted"'
    assert all(len(line) <= 80 for line in note.splitlines())


def test_any_finite_value_is_called_that():
    assert "any finite value" in finding(witness=Witness("non-finite", 0, 0, nan, 1.0, ANY_FINITE, 1, 1, "")).text()


def test_other_findings_of_the_trial_follow():
    other = finding(witness=WITNESS.as_kind("crash"))
    text = finding(others=(other,)).text()
    assert text.count("BROKEN") == 2
    assert other.id in text


def test_no_line_has_trailing_spaces():
    assert all(line == line.rstrip() for line in finding().text().splitlines())


# ---- identity


@pytest.mark.parametrize(
    "change", [{"recipe": recipe([1.0])}, {"arch": "interpreter"}, {"steps": 9}, {"detail": "x"}, {"files": ("a",)}], ids=str
)
def test_the_same_bug_keeps_its_id(change):
    assert finding(**change).id == finding().id


@pytest.mark.parametrize(
    "change",
    [{"kernel": "k"}, {"target": "t"}, {"property_name": "masking"}, {"dtype": "fp32"}, {"witness": WITNESS.as_kind("wrong")}],
    ids=lambda change: next(iter(change)),
)
def test_another_bug_has_another_id(change):
    assert finding(**change).id != finding().id


def test_the_data_is_strict_json():
    assert json.loads(json.dumps(finding().data(), allow_nan=False))["kind"] == "non-finite"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_raised_as_a_type_of_its_own(kind):
    raised = broken(finding(witness=WITNESS.as_kind(kind)))
    assert isinstance(raised, Broken)
    assert type(raised).__name__.lower() == kind.replace(" ", "").replace("-", "")
    assert str(raised) == raised.finding.text()


# ---- the input in one line


def loss_of(target, upstream=1.0, **more):
    return recipe_of(LOSS, [0.0], inputs={"target": target, "upstream": upstream}, **more)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (recipe([0.0, -110.0]), "V = 2, T = 1, logits = [0, -110]"),
        (recipe([0.1], temperature=1e-4, dtype="bf16"), "V = 1, T = 0.0001, logits = [0.1]"),
        (recipe([0.0], [1.0]), "2 rows, V = 1, T = 1, logits = [0] | T = 1, logits = [1]"),
        (recipe([0.0], layout=Layout(3)), "V = 1, T = 1, logits = [0], Layout(pad=3, step=1, offset=0)"),
        (recipe([0.0], [0.0], [0.0], [0.0], [0.0]), "5 rows, V = 1, " + " | ".join(["T = 1, logits = [0]"] * 3) + " | … 2 more"),
        (recipe(list(range(10))), "V = 10, T = 1, logits = [0, 1, 2, 3, 4, 5, 6, 7, …]"),
        (recipe_of(LSE, [0.0, 1.0]), "V = 2, logits = [0, 1]"),
        (loss_of(0), "V = 1, target = 0, logits = [0]"),
        (loss_of(LARGEST, upstream=-1e30), "V = 1, target = at the maximum, upstream = -1e+30, logits = [0]"),
        (loss_of(SMALLEST), "V = 1, target = at the minimum, logits = [0]"),
        (loss_of(IGNORED), "V = 1, target = ignored, logits = [0]"),
        (
            recipe_of(LOGPROB, [0.0], inputs={"labels": LARGEST, "temperature": 0.5}),
            "V = 1, labels = at the maximum, T = 0.5, logits = [0]",
        ),
        (recipe_of(LOGPROB, [0.0], inputs={"labels": 0, "temperature": 1.0}), "V = 1, labels = 0, logits = [0]"),
        (
            loss_of(0, options={"ignore_index": 2, "label_smoothing": 0.1, "reduction": "mean"}),
            "V = 1, ignore_index = 2, label_smoothing = 0.1, reduction = mean, target = 0, logits = [0]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_input_is_described_in_one_line(made, text):
    assert describe(made) == text


def test_a_drawn_row_is_described_by_its_parts():
    row = Row(Background("bell", (0.0, 5.0)), Mask("prefix", 2), ((7, nan), (1, 88.7)))
    assert (
        describe(recipe([0.0]).with_(vocab=9, rows=(row,)))
        == "V = 9, T = 1, logits = bell(0, 5), -inf prefix(2, 0), x[7] = nan, x[1] = 88.7"
    )
