"""What makes a pass weaker than it looks: each thing is told, in its own words, and nothing is told of a pass that is as good as it looks.

Each case plants one weakness in a report without any; leaving its line out fails it, and so does a line too many.
"""

from pathlib import Path

import pytest
from report_data import INTERPRETER, finding, item, report

from stabcheck.regimes import names
from stabcheck.results import load
from stabcheck.weakness import weak

REACHED = dict.fromkeys(names("temperature_softmax"), 3)
CONDITIONED = {"failed": 0, "compared": 4000, "free": 0, "ill": 0, "utilisation": 0.5, "ulp": 1.0, "draws": 0, "chances": 0}
STRONG = item(regimes=REACHED, total=CONDITIONED)
ENTRY = {"kernel": "k", "property": "memory", "dtype": "bf16", "kind": "wrong", "issue": "https://example.com/1", "state": "known"}
NO_RUN = {"outcome": "skipped", "regimes": {}, "total": CONDITIONED | {"compared": 0}}


def test_a_strong_pass_has_no_weakness():
    everything = {
        "ledger": [],
        "baselines": {"state": "compared"},
        "scope": {"since": "", "left_out": []},
        "mutants": {"killed": ["SM1"], "survived": []},
    }
    assert weak(report(STRONG)) == weak(report(STRONG, **everything)) == []


SKIPPED = [item(property=name, dtype=dtype, reason="needs a GPU", **NO_RUN) for name in ("memory", "graphs") for dtype in ("fp32", "bf16")]
FIRST, *OTHERS = names("logsumexp")
VACUOUS = [item(vacuous=7, total=CONDITIONED), item("k", "memory", vacuous=1, examples=0, total=CONDITIONED)]
ILL = item(total=CONDITIONED | {"ill": 80})
ABSENT = {"state": "absent", "arch": "sm_90", "directory": "reports/baselines"}


@pytest.mark.parametrize(
    ("extra", "more", "line"),
    [
        ([item(host=INTERPRETER, total=CONDITIONED)], {}, "1 of 2 trials ran through the interpreter: logic only, not a GPU's arithmetic"),
        (VACUOUS, {}, "8 examples compared nothing (accuracy, memory)"),
        ([item(unsupported=5, total=CONDITIONED)], {}, "5 examples refused as unsupported (accuracy)"),
        (SKIPPED, {}, "did not run, needs a GPU: graphs × 2, memory × 2"),
        (
            [item(total=CONDITIONED | {"ill": 80})],
            {},
            "1.0% of the elements compared are ill-conditioned: their bound exceeds their magnitude",
        ),
        ([item("logsumexp[auto]", total=CONDITIONED, regimes=dict.fromkeys(OTHERS, 1))], {}, f"never drawn, logsumexp: {FIRST}"),
        ([], {"baselines": ABSENT}, "no accuracy baselines for sm_90 in reports/baselines: stabcheck gate --update records them"),
        ([], {"ledger": [ENTRY, ENTRY | {"state": "not run"}]}, "known to fail (1): memory · k · bf16, https://example.com/1"),
        ([], {"scope": {"since": "main", "left_out": ["a", "b"]}}, "left out, unchanged since main: a, b"),
        ([], {"mutants": {"killed": [], "survived": []}}, "no mutant could run here to prove that the laws notice something"),
    ],
    ids=["interpreter", "vacuous", "unsupported", "not run", "ill", "never drawn", "no baselines", "known", "left out", "no mutants"],
)
def test_each_weakness_is_told_in_one_line(extra, more, line):
    assert weak(report(STRONG, *extra, **more)) == [line]


def test_a_skipped_trial_is_none_of_the_interpreters():
    assert weak(report(STRONG, item(host=INTERPRETER, reason="r", **NO_RUN))) == ["did not run, r: accuracy × 1"]


def test_reasons_are_told_apart():
    skipped = [item(property=name, reason=reason, **NO_RUN) for name, reason in (("b", "needs a GPU"), ("a", "declares no in_place"))]
    assert weak(report(STRONG, *skipped)) == ["did not run, declares no in_place: a × 1", "did not run, needs a GPU: b × 1"]


def test_long_lists_are_cut_short_and_counted():
    (line,) = weak(report(STRONG, scope={"since": "main", "left_out": [f"k{n}" for n in range(30)]}))
    assert line.endswith(", k11 and 18 more")


def test_mutants_that_survived_did_run():
    # once: "no mutant could run here" is told of any self-test in which none was killed
    assert weak(report(STRONG, mutants={"killed": [], "survived": ["SM1"]})) == []


def test_the_gravest_comes_first():
    """Logic only, before examples that compared nothing, before what did not run, before the conditioning, before the draw."""
    ran, skipped = item(host=INTERPRETER, vacuous=1, regimes={"ties": 1}, total=CONDITIONED | {"ill": 40}), item(reason="r", **NO_RUN)
    lines = weak(report(ran, skipped, baselines=ABSENT))
    starts = ["1 of 1 trials ran", "1 example compared nothing", "did not run", "1.0% of", "never drawn", "no accuracy"]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_findings_are_no_weakness():
    broken = STRONG | {"outcome": "failed", "findings": [finding()]}
    assert weak(report(broken)) == []


def test_results_of_version_0_1_are_judged_too():
    lines = weak(load([Path(__file__).parent.parent / "reports/h200/soak/results.json"]))
    assert lines and not any("interpreter" in line for line in lines)
