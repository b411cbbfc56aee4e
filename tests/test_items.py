"""What an author sees when pytest runs the laws on a kernel: one line for a pass, a finding for a failure, never our traceback."""

import json
import re

from hypothesis import settings
from hypothesis.database import InMemoryExampleDatabase

KERNELS = """
import torch, stabcheck

def right(x, t):
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    return torch.softmax(z.double(), -1).to(x.dtype)

"""


def suite(function, more=""):
    """A test file with one suite, and its kernel."""
    return f'{KERNELS}{function}\n\ntest_it = stabcheck.suite("temperature_softmax", kernel, dtypes=["fp32"]{more})\n'


def results(pytester):
    """results.json by property."""
    items = json.loads((pytester.path / "reports/latest/results.json").read_text())["items"]
    return {item["property"]: item for item in items}


def findings(pytester, prop="accuracy"):
    return results(pytester)[prop]["findings"]


NAIVE = """
def kernel(x, t):
    e = torch.exp(x / t[:, None])
    return e / e.sum(-1, keepdim=True)
"""


def test_a_naive_softmax_yields_an_overflow_with_at_most_two_columns(project, pytester):
    ran = project(suite(NAIVE, ', properties=["finiteness"]'))
    ran.assert_outcomes(failed=1)
    (finding,) = findings(pytester, "finiteness")
    assert finding["kind"] == "non-finite"
    assert (finding["rows"], finding["vocab"]) <= (1, 2)


def test_the_failure_text_has_the_lines_of_the_design(project, pytester):
    ran = project(suite(NAIVE, ', properties=["finiteness"]'), "-q")
    (finding,) = findings(pytester, "finiteness")
    shown = ran.stdout.str()
    assert finding["text"] in shown
    shape = [
        r"BROKEN  finiteness · temperature_softmax\[kernel\] · fp32 · interpreter +id [0-9a-f]{6}",
        r"  law      the output is finite wherever the exact result is, and NaN only where",
        r"           the policy says so",
        r"  input    V = [12], T = \S+, logits = \[.+\]",
        r"  got      nan at \(0, \d\) +expected \S+ +any finite value",
        r"  rows     1 of 1 non-finite +shrunk from \d+ × \d+ in \d+ steps",
        r"  replay   stabcheck replay reports/latest/[0-9a-f]{6}\.json --kernels \S+",
        r"  script   reports/latest/repro_[0-9a-f]{6}.py",
    ]
    lines = finding["text"].splitlines()
    assert len(lines) == len(shape)
    for line, pattern in zip(lines, shape, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_failure_shows_no_traceback_through_the_engine(project):
    shown = project(suite(NAIVE, ', properties=["finiteness"]')).stdout.str()
    assert "Traceback" not in shown
    assert "stabcheck/trial.py" not in shown
    assert "Falsifying example" not in shown


def test_a_right_kernel_passes_every_property_that_applies(project):
    ran = project(suite("kernel = right"))
    ran.assert_outcomes(passed=12, skipped=4)
    ran.stdout.fnmatch_lines(["held on CPU (interpreter): 12 of 12 trials, no finding"])


def test_what_did_not_run_is_told_with_the_reason(project):
    ran = project(suite("kernel = right", ', properties=["accuracy", "in_place", "graph_replay"]'))
    ran.assert_outcomes(passed=1, skipped=2)
    ran.stdout.fnmatch_lines(["did not run, needs a GPU: graph_replay × 1*", "did not run, *declares no in_place: in_place × 1"])


def test_a_kernel_that_raises_is_a_finding(project, pytester):
    ran = project(suite("def kernel(x, t):\n    raise RuntimeError('out of shared memory')", ', properties=["accuracy"]'))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["BROKEN  accuracy*", "*cause    RuntimeError: out of shared memory"])
    assert findings(pytester)[0]["kind"] == "crash"


def test_a_kernel_that_returns_another_shape_is_told_both_shapes(project):
    ran = project(suite("def kernel(x, t):\n    return x[:, :1].expand(-1, 3)", ', properties=["accuracy"]'))
    ran.assert_outcomes(failed=1)
    ran.stdout.re_match_lines([r".*cause    returned shape \[\d+, 3\] for logits of shape \[\d+, \d+\]"])


def test_a_kernel_that_returns_another_dtype_is_told_how_to_declare_it(project):
    ran = project(suite("def kernel(x, t):\n    return right(x, t).double()", ', properties=["accuracy"]'))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        ["*cause    returned torch.float64, declared torch.float32; declare output='fp32'", "*or output='input' if that is meant"]
    )


def test_a_kernel_that_refuses_everything_is_no_pass(project):
    ran = project(suite("def kernel(x, t):\n    raise stabcheck.UnsupportedInput('not today')", ', properties=["accuracy"]'))
    ran.assert_outcomes(skipped=1)
    ran.stdout.fnmatch_lines(["* refused as unsupported*", "*compared nothing: every input was refused, at first*", "*today: accuracy*"])
    ran.stdout.fnmatch_lines(["nothing was tested on*"])


def test_a_kernel_that_refuses_some_inputs_passes_and_the_refusals_are_counted(project, pytester):
    some = "def kernel(x, t):\n    if x.shape[1] % 2:\n        raise stabcheck.UnsupportedInput('odd')\n    return right(x, t)"
    ran = project(suite(some, ', properties=["accuracy"]'))
    ran.assert_outcomes(passed=1)
    assert results(pytester)["accuracy"]["tally"]["unsupported"] > 0


def test_a_kernel_that_is_wrong_at_its_first_call_only_is_not_deterministic(project, pytester):
    """Not `Flaky`, which Hypothesis would say, and which sends people looking for a fault in their test."""
    first = "calls = []\ndef kernel(x, t):\n    calls.append(1)\n    return right(x, t) * (1.5 if len(calls) == 1 else 1)"
    ran = project(suite(first, ', properties=["normalisation"]'))
    ran.assert_outcomes(failed=1)
    shown = ran.stdout.str()
    assert "lak" not in shown.replace("flake", "")
    (finding,) = findings(pytester, "normalisation")
    assert finding["kind"] == "not deterministic"
    assert "right in 3 of 3 runs of the same input" in finding["text"]


def test_two_distinct_bugs_are_two_findings(project, pytester):
    two = """
def kernel(x, t):
    if x.shape[1] > 100:
        raise RuntimeError("too wide")
    return right(x, t) * (1.05 if x.shape[1] < 4 else 1)
"""
    project(suite(two, ', properties=["accuracy"]')).assert_outcomes(failed=1)
    assert sorted(f["kind"] for f in findings(pytester)) == ["crash", "wrong"]


def test_every_finding_has_its_files(project, pytester):
    project(suite(NAIVE))
    found = [f for item in results(pytester).values() for f in item["findings"]]
    assert len(found) >= 3
    assert all((pytester.path / file).is_file() for f in found for file in f["files"])
    assert len({f["files"][0] for f in found}) == len(found)


def test_a_fault_of_the_engine_is_an_error_with_a_traceback_and_no_finding(project, monkeypatch):
    monkeypatch.setattr("stabcheck.trial.summarise", lambda comparisons: 1 / 0)
    ran = project(suite("kernel = right", ', properties=["accuracy"]'))
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["*ZeroDivisionError*", "ERROR on CPU (interpreter): 1 of 1 trials raised outside the kernel*"])


def test_trials_keep_their_hypothesis_examples_apart(project):
    """With one key for all, a failure of one kernel is replayed on all others, and forgotten as soon as one of them passes."""
    kept = InMemoryExampleDatabase()
    settings.register_profile("kept", database=kept, max_examples=10)
    project(suite(NAIVE, ', properties=["finiteness", "normalisation"]'), "--hypothesis-profile=kept", seed=None).assert_outcomes(failed=2)
    keys = [key for key, examples in kept.data.items() if examples and not key.endswith((b".secondary", b".pareto", b"metakeys"))]
    assert len(keys) == 2


def test_a_finding_survives_a_shrinker_that_breaks(project, pytester, monkeypatch):
    monkeypatch.setattr("stabcheck.items.shrink", lambda trial, finding: 1 / 0)
    project(suite("def kernel(x, t):\n    return right(x, t) * 0.5", ', properties=["accuracy"]')).assert_outcomes(failed=1)
    (found,) = findings(pytester)
    assert "not shrunk: ZeroDivisionError" in found["text"]


def test_a_sum_in_any_order_is_no_finding_on_a_cpu(project):
    """One term after another, in fp32: what torch does for some layouts."""
    one_by_one = """
def kernel(x, t):
    e = torch.exp((x - x.amax(-1, keepdim=True)) / t[:, None])
    return e / e.cumsum(-1)[:, -1:]
"""
    project(suite(one_by_one, ', properties=["accuracy", "normalisation"]')).assert_outcomes(passed=2)


def test_each_trial_gives_its_memory_back(project, monkeypatch):
    devices = []
    monkeypatch.setattr("stabcheck.items.give_back", devices.append)
    project(suite("kernel = right", ', properties=["accuracy", "finiteness"]')).assert_outcomes(passed=2)
    assert [device.name for device in devices] == ["cpu", "cpu"]
