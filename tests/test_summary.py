"""The summary says what ran, how close to its bounds, and what makes a pass weaker than it looks."""

import pytest
from planted import CPU

from stabcheck.regimes import names
from stabcheck.summary import header, lines

TALLY = {
    "examples": 10,
    "rows": 20000,
    "elements": 3_000_000,
    "vacuous": 0,
    "unsupported": 0,
    "short": 0,
    "killed_at": 0,
    "total": {"failed": 0, "compared": 100, "free": 0, "ill": 25, "utilisation": 0.5, "draws": 0, "chances": 0},
    "regimes": {"ties": 12345},
}


def item(outcome="passed", prop="accuracy", findings=(), reason="", utilisation=0.5, kernel="temperature_softmax[mine]", **tally):
    total = TALLY["total"] | {"utilisation": utilisation}
    return {
        "kernel": kernel,
        "property": prop,
        "dtype": "fp32",
        "device": "CPU (interpreter)",
        "arch": "interpreter",
        "corpus": "",
        "tally": TALLY | {"total": total} | tally,
        "findings": list(findings),
        "outcome": outcome,
        "reason": reason,
    }


def text(*items):
    return "\n".join(lines({"items": list(items)}))


def test_the_worst_use_of_a_bound_is_told_with_its_law():
    shown = text(item(utilisation=0.5), item(prop="masking", utilisation=0.754321))
    assert "temperature_softmax\nmine   fp32  0.754 masking" in shown


def test_what_was_left_to_chance_is_told_with_how_likely_it_is_to_mislead():
    by_chance = item(total=TALLY["total"] | {"draws": 2_000_000, "chances": 3})
    assert "random draws: 4.0M in 6 assertions; all together\n  they fail by chance with probability " in text(by_chance, item(), by_chance)
    assert "random draws" not in text(item())


def test_sizes_add_up_and_are_short():
    row = next(line for line in text(item(), item()).splitlines() if line.startswith("mine"))
    assert row.split()[-5:] == ["20", "40.0k", "6.0M", "25%", "0"]


def test_regimes_are_told_and_those_never_drawn_too():
    shown = text(item())
    assert "rows by regime: ties 12.3k" in shown
    assert "never drawn, temperature_softmax: huge magnitudes, exp's cliffs" in shown


def test_each_operation_has_its_kernels_and_its_own_regimes_never_drawn():
    shown = text(item(), item(kernel="logsumexp[mine]"))
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["temperature_softmax", "mine", "logsumexp", "mine"]
    assert "rows by regime: ties 24.7k" in shown
    missing = shown[shown.index("never drawn, logsumexp: ") :]
    assert "huge magnitudes" in missing and "mixed T" not in missing


def test_rows_held_against_the_reference_are_told_by_operation_and_dtype():
    shown = text(item(), item(), item(prop="masking"), item(kernel="logsumexp[mine]", rows=7))
    assert "rows through the accuracy law: temperature_softmax fp32 40.0k, logsumexp fp32 7" in shown


@pytest.mark.parametrize(
    ("items", "last"),
    [
        ([item()], "held on CPU (interpreter): 1 of 1 trials, no finding"),
        (
            [item(), item("skipped", reason="needs a GPU")],
            "held on CPU (interpreter): 1 of 1 trials, no finding",
        ),
        ([item("skipped", reason="needs a GPU")], "nothing was tested on CPU (interpreter)"),
        ([item("failed")], "ERROR on CPU (interpreter): 1 of 1 trials raised outside the kernel"),
        ([item("failed", findings=[{"id": "abc123", "replay": "stabcheck replay x.json"}])], "next: stabcheck replay x.json"),
    ],
    ids=["held", "held with a skip", "nothing", "error", "finding"],
)
def test_the_verdict(items, last):
    assert text(*items).splitlines()[-1] == last


def test_one_bug_in_two_trials_is_one_finding():
    found = [{"id": "abc123", "replay": "stabcheck replay x.json"}]
    assert "BROKEN on CPU (interpreter): 1 finding in 2 trials: abc123" in text(
        item("failed", findings=found), item("failed", findings=found)
    )


def test_what_did_not_run_is_told_by_reason():
    shown = text(item(), item("skipped", "in_place", reason="declares no in_place"), item("skipped", "offsets64", reason="needs a GPU"))
    assert "did not run, declares no in_place: in_place × 1\ndid not run, needs a GPU: offsets64 × 1" in shown


def test_refused_and_empty_examples_weaken_a_pass():
    shown = text(item(unsupported=3), item(prop="masking", vacuous=2))
    assert "3 examples refused as unsupported (accuracy)" in shown
    assert "2 examples compared nothing (masking)" in shown


def test_the_header_says_interpreter():
    shown = header(str(CPU), None)
    assert shown[0] == "stabcheck: CPU (interpreter): logic only, not the GPU's arithmetic · profile cpu"
    assert shown[1].startswith("  torch ") and max(map(len, shown)) <= 80


def test_no_line_is_longer_than_a_terminal():
    for operation in ("temperature_softmax", "cross_entropy"):
        shown = text(item(kernel=f"{operation}[mine]", regimes=dict.fromkeys(names(operation), 10**7)))
        assert all(len(line) <= 100 for line in shown.splitlines())
