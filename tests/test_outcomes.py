"""What becomes of a trial: held, broken, known, an unexpected pass, an error, not run; and that JUnit, JSON and the terminal agree on it.

One project has a kernel for each outcome; it is run in one process and in two.
"""

import json
import os
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from planted import CPU, LAWS, five_percent_too_much, recipe, right, trial

from stabcheck.findings import Broken
from stabcheck.ledger import Entry, Ledger
from stabcheck.outcomes import Outcomes, Session, for_junit
from stabcheck.results import counts, judgement, read
from stabcheck.trial import Tally

KERNELS = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def held(x, t):
    z = (x.double() - x.double().amax(-1, keepdim=True)) / t[:, None].double()
    return torch.softmax(z, -1).to(x.dtype)

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def broken(x, t):
    return held(x, t) * 1.05

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def known(x, t):
    return held(x, t) * 1.05

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def unexpected(x, t):
    return held(x, t)

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def leaves(x, t):
    raise SystemExit("no Exception, so no fault of the kernel's")
"""
LEDGER = """
[[known]]
kernel = "temperature_softmax[{0}]"
property = "normalisation"
dtype = "fp32"
kind = "wrong"
issue = "https://example.com/{0}"
"""
OPTIONS = ["--pyargs", "stabcheck.properties", "--import-mode=importlib", "--stabcheck-kernels=kernels_judged", "--hypothesis-profile=gate"]
OPTIONS += ["--stabcheck-device=cpu", "--junitxml=junit.xml", "-k", "normalisation or graph_replay"]


@pytest.fixture
def run(at_home, pytester, monkeypatch):
    """run(*options): the bytes of results.json, JUnit's suite, and what was shown."""
    pytester.makepyfile(kernels_judged=KERNELS)
    (pytester.path / "stabcheck-ledger.toml").write_text("".join(map(LEDGER.format, ("known", "unexpected", "gone"))))
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(pytester.path)
    assert LAWS  # imported here, or nested sessions would import scipy anew

    def go(*options):
        start = pytester.runpytest_subprocess if "-n" in options else pytester.runpytest_inprocess
        ran = start(*OPTIONS, *options)
        suite = ElementTree.parse(pytester.path / "junit.xml").getroot()[0]
        return (pytester.path / "reports/latest/results.json").read_bytes(), suite, ran

    return go


def assert_they_agree(raw, suite, ran):
    """JSON, JUnit and the terminal tell the same of each trial."""
    report = json.loads(raw)
    n = counts(report)
    assert n == {"trials": 10, "held": 1, "broken": 1, "errors": 1, "known": 1, "unexpected": 1, "not_run": 5, "findings": 1}
    told = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert told == {"tests": 10, "failures": n["broken"] + n["errors"] + n["unexpected"], "errors": 0, "skipped": n["not_run"] + n["known"]}
    assert judgement(report)[1] in ran.stdout.str()
    shown = ran.parseoutcomes()
    assert [shown[name] for name in ("passed", "failed", "skipped", "xfailed")] == [1, 3, 5, 1]
    cases = {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in suite.iter("testcase")}
    for item in report["items"]:
        of = cases[item["test"].rpartition("::")[2]]
        total, ids = item["tally"]["total"], " ".join(finding["id"] for finding in item["findings"])
        expected = {"kernel": item["kernel"], "property": item["property"], "dtype": "fp32", "arch": "interpreter", "findings": ids}
        expected |= {name: str(item["tally"][name]) for name in ("examples", "rows")}
        expected |= {name: str(total[name]) for name in ("compared", "ill", "utilisation", "ulp")}
        assert of.items() >= {f"stabcheck.{name}": value for name, value in expected.items()}.items()


def test_junit_json_and_the_terminal_agree_on_every_count(run):
    assert_they_agree(*run("-p", "no:xdist"))


def test_in_two_processes_everything_is_the_same(run):
    """Bytes of the results, states of the ledger's entries and counts."""
    pytest.importorskip("xdist")
    alone, two = run("-p", "no:xdist"), run("-n", "2")
    assert_they_agree(*two)
    assert two[0] == alone[0]
    states = {entry["kernel"]: entry["state"] for entry in json.loads(two[0])["ledger"]}
    assert [states[f"temperature_softmax[{name}]"] for name in ("known", "unexpected", "gone")] == ["known", "unexpected pass", "stale"]
    assert "stale entry: no trial is normalisation · temperature_softmax[gone]" in re.sub(r"\s+", " ", two[2].stdout.str())


# ---- one item


IDENTITY = {"kernel": "temperature_softmax[k]", "property": "accuracy", "dtype": "fp32"}


class Item(Outcomes):
    """An item without pytest around it."""

    def __init__(self, found=(), known=(), tally=None, corpus="", why_not=None):
        self.findings, self.tallied, self.corpus, self.why_not = found, tally, corpus, why_not
        entries = [Entry("temperature_softmax[k]", "accuracy", "fp32", kind, f"https://example.com/{kind}") for kind in known]
        self.session_state, self.user_properties = Session(CPU, None, Ledger(entries, "ledger.toml")), []

    @property
    def identity(self):
        return IDENTITY

    target = "kernels.py:k"

    def examine(self):
        self.found = list(self.findings)

    def tally(self):
        return self.tallied or Tally().data()

    def outcome(self):
        """("passed", ""), or how it ended and with which words; and what its results say."""
        ended = "passed", ""
        try:
            self.runtest()
        except (Broken, pytest.fail.Exception, pytest.skip.Exception, pytest.xfail.Exception) as raised:
            ended = type(raised).__name__.lower(), str(raised)
        return ended, json.loads(dict(self.user_properties)["stabcheck"])


def finding(kind):
    examined = trial(five_percent_too_much)
    start = recipe([0.0, 1.0])
    made = examined.finding(start, examined.examine(start))
    return made.with_(witness=made.witness.as_kind(kind))


def tally(function=right, rows=([0.0, 1.0],)):
    examined = trial(function)
    examined(recipe(*rows))
    return examined.tally.data()


def test_all_kinds_known_is_known_and_names_each_issue():
    (how, told), results = Item([finding("wrong"), finding("non-finite")], ["wrong", "non-finite"]).outcome()
    assert (how, results["outcome"]) == ("xfailed", "known") and len(results["findings"]) == 2
    assert told == "known: " + results["reason"] == "known: https://example.com/wrong, https://example.com/non-finite"


def test_of_two_kinds_only_the_unknown_one_is_raised():
    (how, told), results = Item([finding("wrong"), finding("non-finite")], ["wrong"]).outcome()
    assert how == "nonfinite" and "outcome" not in results
    assert told.count("BROKEN") == 1 and "1 of 1 non-finite" in told


def test_two_unknown_kinds_are_told_together():
    (_, told), _ = Item([finding("wrong"), finding("non-finite")]).outcome()
    assert told.count("BROKEN") == 2


def test_a_finding_of_another_process_is_told_in_its_words(monkeypatch):
    def of(kind):
        text = {"id": "aaaaaa", "kind": kind, "text": "BROKEN  accuracy · k"}
        monkeypatch.setattr("stabcheck.outcomes.run_apart", lambda item, fatal: ([text], None))
        return Item(known=["crash"]).outcome()

    assert of("wrong")[0] == ("failed", "BROKEN  accuracy · k")
    assert of("crash")[1]["outcome"] == "known"


@pytest.mark.parametrize(
    ("more", "ended", "outcome"),
    [
        ({}, "failed", "unexpected pass"),
        ({"why_not": "needs a GPU"}, "skipped", None),
        ({"corpus": "aaaaaa"}, "passed", None),
        ({"tally": Tally(examples=3).data()}, "skipped", None),
        ({"tally": Tally(examples=3, unsupported=3).data()}, "skipped", None),
        ({"tally": tally() | {"short": 1}}, "passed", None),
        ({"corpus": "aaaaaa", "tally": tally() | {"short": 1, "refusal": "no memory"}}, "skipped", None),
    ],
    ids=["held", "not run", "a reproducer", "compared nothing", "refused", "short of memory", "a reproducer short of memory"],
)
def test_only_a_trial_that_ran_and_compared_something_passes_unexpectedly(more, ended, outcome):
    (how, _), results = Item(known=["wrong"], **{"tally": tally()} | more).outcome()
    assert (how, results.get("outcome")) == (ended, outcome)


@pytest.mark.parametrize(
    ("unsupported", "why"), [(0, "no element could be compared"), (3, "every input was refused, at first with: vocab 7")]
)
def test_comparing_nothing_is_no_pass(unsupported, why):
    tally = Tally(examples=3, unsupported=unsupported, refusal="vocab 7" if unsupported else "").data()
    assert Item(tally=tally).outcome()[0] == ("skipped", f"compared nothing: {why}")


def test_a_finding_is_shown_without_a_traceback():
    one = finding("wrong")
    assert Item().repr_failure(SimpleNamespace(value=Broken(one))) == one.text()


def test_a_case_of_junit_names_every_finding():
    findings = [{"id": "aaaaaa"}, {"id": "bbbbbb"}]
    told = dict(for_junit(IDENTITY | {"arch": "sm_90", "tally": tally(), "findings": findings}))
    assert told["stabcheck.findings"] == "aaaaaa bbbbbb" and told["stabcheck.examples"] == 1 and told["stabcheck.compared"] == 2


# ---- what a pytest report carries


def phase(when, outcome, longrepr=None, carried=()):
    properties = [("else", 1), ("stabcheck", json.dumps(dict(carried)))]
    return SimpleNamespace(when=when, outcome=outcome, longrepr=longrepr, user_properties=properties, nodeid="t::x", duration=0.5,
                           skipped=outcome == "skipped")  # fmt: skip


def test_an_item_is_read_once_of_the_phases_pytest_reports():
    phases = [phase("setup", "passed"), phase("call", "failed", carried={"kernel": "k"}), phase("teardown", "failed")]
    (found,) = [found for each in phases if (found := read(each)) is not None]
    assert found == {"outcome": "failed", "reason": "", "kernel": "k", "test": "t::x", "seconds": 0.5}


def test_the_reason_of_a_skip_and_the_ledgers_word_are_kept():
    assert read(phase("call", "skipped", ("file", 1, "Skipped: needs a GPU")))["reason"] == "needs a GPU"
    known = {"outcome": "known", "reason": "https://example.com/1"}
    assert known.items() <= read(phase("call", "skipped", "an xfail", known)).items()


def test_reports_of_other_tests_are_left_alone():
    assert read(SimpleNamespace(user_properties=[("record", 1)], when="call", outcome="passed")) is None
