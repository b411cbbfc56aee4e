"""The ledger of known failures: what is refused with which words, what a run says of its entries, and what it does to a session.

Sessions run kernels with planted faults; each test names an entry that is right, wrong in kind, or out of date.
"""

import json

import pytest
from planted import LAWS

from stabcheck.errors import UsageError
from stabcheck.ledger import FIELDS, Entry, Ledger, advice, load

GOOD = {
    "kernel": "temperature_softmax[online]",
    "property": "accuracy",
    "dtype": "bf16",
    "kind": "wrong",
    "issue": "https://example.com/12",
}


def toml(*entries):
    return "\n".join("[[known]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in entry.items()) for entry in entries)


def without(*names, **changed):
    return {name: value for name, value in (GOOD | changed).items() if name not in names}


@pytest.fixture
def ledger(tmp_path):
    def write(text):
        path = tmp_path / "ledger.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path)

    return write


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            toml(GOOD, without("issue")),
            'entry 2 (accuracy · temperature_softmax[online]) has no link to an issue; a known failure needs one: issue = "https',
        ),
        (toml(without(issue="")), "entry 1 (accuracy · temperature_softmax[online]) has no link to an issue"),
        (toml({}), "entry 1 has no link to an issue"),
        (toml(without(issue="#12")), "entry 1 gives issue = '#12', which is no link; write it out: https://…"),
        (toml(without(issue="see https://example.com/12")), "gives issue = 'see https://example.com/12', which is no link"),
        (toml(without(issue="https://example.com/12 and more")), "which is no link"),
        (toml(GOOD | {"reason": "slow"}), "entry 1 has 'reason'; an entry has kernel, property, dtype, kind, issue"),
        (toml(without(arch="hopper")), "entry 1 has arch = 'hopper'; use the one a run names behind its device, such as sm_90"),
        (toml(GOOD, without(arch="sm_90")), "two entries for accuracy · temperature_softmax[online] · bf16 · wrong · sm_90; keep one"),
        (toml(without(arch="sm_90"), GOOD), "two entries for accuracy"),
        (toml(without("kernel")), "entry 1 lacks 'kernel'; copy it from the finding's first line"),
        (toml(without("kind")), "entry 1 lacks 'kind'"),
        (toml(without(kind="inaccurate")), "entry 1 has kind = 'inaccurate'; use one of non-finite, wrong, unstable,"),
        (toml(without(dtype="float16")), "entry 1 has dtype = 'float16'; use one of fp32, bf16, fp16"),
        (toml(GOOD, without(kind="crash"), GOOD), "two entries for accuracy · temperature_softmax[online] · bf16 · wrong; keep one"),
        (toml(GOOD, without(issue="https://example.com/13")), "two entries for accuracy"),
        (toml(without(dtype=["bf16"])), "entry 1 is {'kernel'"),
        ("[known]\nkernel = 'k'\n", "has 'known'; it holds [[known]] entries and nothing else"),
        ("known = ['k']\n", "entry 1 is 'k'; give kernel, property, dtype, kind, issue, each a text"),
        (toml(GOOD) + "\n[[unknown]]\nkernel = 'k'\n", "has 'unknown'; it holds [[known]] entries and nothing else"),
        ("kernel: k\n", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
    ],
)
def test_a_wrong_entry_is_named_with_its_cure(ledger, text, told):
    with pytest.raises(UsageError, match=r"ledger\.toml") as raised:
        ledger(text)
    assert told in str(raised.value)


def test_no_file_and_an_empty_one_know_of_nothing(ledger, tmp_path):
    assert load(tmp_path / "nothing.toml").entries == ledger("").entries == ledger("# none\n").entries == ()


def test_a_folder_is_no_ledger(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory; name another ledger"):
        load(tmp_path)


def test_entries_are_found_by_their_trial(ledger):
    known = ledger(toml(GOOD, without(kind="crash"), without(dtype="fp32")))
    assert [entry.kind for entry in known.of((GOOD["kernel"], "accuracy", "bf16"), "sm_90")] == ["wrong", "crash"]
    assert known.of((GOOD["kernel"], "accuracy", "fp16"), "sm_90") == []


def test_an_entry_of_one_architecture_speaks_of_no_other(ledger):
    known = ledger(toml(without(arch="sm_90"), without(arch="interpreter", kind="crash"), without(kind="hang")))
    kinds = {arch: [entry.kind for entry in known.of(TRIAL, arch)] for arch in ("sm_90", "interpreter", "sm_80")}
    assert kinds == {"sm_90": ["wrong", "hang"], "interpreter": ["crash", "hang"], "sm_80": ["hang"]}


@pytest.mark.parametrize(("arch", "state"), [("", "unexpected pass"), ("sm_90", "unexpected pass"), ("interpreter", "not run")])
def test_a_pass_on_another_architecture_is_none_of_the_entrys(arch, state):
    (told,) = Ledger([Entry(**GOOD, arch=arch)]).states([run()], {TRIAL})
    assert told == GOOD | {"arch": arch, "state": state}


# ---- what a run says of an entry


def run(outcome="passed", kinds=(), **more):
    return (
        {name: GOOD[name] for name in FIELDS[:3]}
        | {"arch": "sm_90", "outcome": outcome, "findings": [{"kind": kind} for kind in kinds]}
        | more
    )


TRIAL = Entry(**GOOD).trial()


@pytest.mark.parametrize(
    ("items", "collected", "state"),
    [
        ([run("known", ["wrong"])], {TRIAL}, "known"),
        ([run("failed", ["crash", "wrong"])], {TRIAL}, "known"),
        ([run()], {TRIAL}, "unexpected pass"),
        ([run()], None, "unexpected pass"),
        ([run(dtype="fp32")], {TRIAL}, "not run"),
        ([run("skipped")], {TRIAL}, "not run"),
        ([], {TRIAL}, "not run"),
        ([], None, "not run"),
        ([run(property="memory", kinds=["wrong"])], None, "not run"),
        ([run("passed", corpus="aaaaaa")], {TRIAL}, "not run"),  # one input that is right now proves nothing of the others
        ([run("skipped"), run("known", ["wrong"])], {TRIAL}, "known"),
        ([], {(GOOD["kernel"], "accuracy", "fp32")}, "stale"),
        ([], set(), "stale"),
    ],
)
def test_the_state_of_an_entry(items, collected, state):
    assert Ledger([Entry(**GOOD)]).states(items, collected) == [GOOD | {"arch": "", "state": state}]


def test_only_what_no_longer_holds_asks_for_something():
    states = [GOOD | {"state": state} for state in ("known", "not run", "unexpected pass", "stale")]
    passed, stale = advice(states)
    name = "accuracy · temperature_softmax[online] · bf16 · wrong"
    assert passed == f"unexpected pass: {name} holds now; close https://example.com/12 and remove its entry from the ledger"
    assert stale == f"stale entry: no trial is {name}; mend or remove the entry of https://example.com/12 in the ledger"


# ---- sessions

KERNELS = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def right(x, t):
    z = (x.double() - x.double().amax(-1, keepdim=True)) / t[:, None].double()
    return torch.softmax(z, -1).to(x.dtype)

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def wrong(x, t):
    return right(x, t) * 1.05

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def leaves(x, t):
    p = right(x, t)
    if x.shape[1] > 4:
        raise SystemExit("no Exception, so no fault of the kernel's")
    return p
"""
OPTIONS = ["--pyargs", "--import-mode=importlib", "--stabcheck-kernels=kernels_known", "--hypothesis-profile=gate"]


@pytest.fixture
def session(project, pytester, monkeypatch):
    """session(entries, …): (pytest's results, results.json) under a ledger; an entry is (kernel, property, kind[, arch])."""
    pytester.makepyfile(kernels_known=KERNELS)
    monkeypatch.syspath_prepend(pytester.path)
    assert LAWS  # imported here, or nested sessions would import scipy anew

    def go(entries, selected="normalisation", suites="stabcheck.properties"):
        known = [
            {
                "kernel": f"temperature_softmax[{kernel}]",
                "property": name,
                "dtype": "fp32",
                "kind": kind,
                "issue": f"https://example.com/{n}",
                **({"arch": arch[0]} if arch else {}),
            }
            for n, (kernel, name, kind, *arch) in enumerate(entries)
        ]
        (pytester.path / "stabcheck-ledger.toml").write_text(toml(*known))
        ran = project("", suites, *OPTIONS, "-k", selected, seed="")
        written = pytester.path / "reports/latest/results.json"
        return ran, json.loads(written.read_text()) if written.is_file() else {}

    return go


def states(report):
    return [entry["state"] for entry in report["ledger"]]


def test_a_known_failure_runs_and_does_not_fail_the_session(session):
    ran, report = session([("wrong", "normalisation", "wrong")], selected="normalisation and (right or wrong)")
    ran.assert_outcomes(passed=1, xfailed=1, deselected=ran.parseoutcomes()["deselected"])
    assert (ran.ret, states(report)) == (0, ["known"])
    (known,) = [item for item in report["items"] if item["outcome"] == "known"]
    assert known["reason"] == "https://example.com/0" and known["findings"][0]["kind"] == "wrong" and known["tally"]["examples"]
    assert "held on" in ran.stdout.str() and "1 known to fail" in ran.stdout.str()


@pytest.mark.parametrize(("arch", "ended"), [("interpreter", (0, ["known"])), ("sm_90", (1, ["not run"]))])
def test_a_failure_known_on_a_gpu_is_not_known_through_the_interpreter(session, arch, ended):
    ran, report = session([("wrong", "normalisation", "wrong", arch)], selected="normalisation and wrong")
    assert (ran.ret, states(report)) == ended


def test_another_kind_of_failure_of_the_same_trial_still_fails(session):
    ran, report = session([("wrong", "normalisation", "non-finite")], selected="normalisation and wrong")
    assert ran.ret == 1 and [item["outcome"] for item in report["items"]] == ["failed"]
    ran.stdout.fnmatch_lines(["BROKEN  normalisation · temperature_softmax[[]wrong[]] · fp32*", "BROKEN on CPU (interpreter): 1 finding*"])


def test_an_unexpected_pass_fails_and_says_what_to_do(session):
    ran, report = session([("right", "normalisation", "wrong")], selected="normalisation and right")
    told = "unexpected pass: temperature_softmax[[]right[]] · normalisation · fp32 holds now; close https://example.com/0 and remove*"
    ran.stdout.fnmatch_lines([told, "STALE on CPU (interpreter): 1 entry of the ledger no longer holds"])
    assert (ran.ret, states(report), report["items"][0]["outcome"]) == (1, ["unexpected pass"], "unexpected pass")


def test_an_error_outside_the_kernel_is_no_unexpected_pass(session):
    # once: runtest asks the ledger in `finally`, though an exception is on its way, and a trial that failed is "holds now"
    ran, report = session([("leaves", "normalisation", "wrong")], selected="normalisation and leaves")
    assert "SystemExit" in ran.stdout.str() and report["items"][0]["tally"]["total"]["compared"] > 0
    assert (ran.ret, [item["outcome"] for item in report["items"]]) == (1, ["failed"])
    assert states(report) != ["unexpected pass"]


def test_an_entry_without_a_trial_is_stale_and_fails_a_session_that_holds(session):
    ran, report = session([("gone", "normalisation", "wrong")], selected="normalisation and right")
    assert (ran.ret, states(report)) == (1, ["stale"])
    ran.stdout.fnmatch_lines(["stale entry: no trial is normalisation · temperature_softmax[[]gone[]] · fp32 ·*"])


def test_a_selection_of_the_trials_calls_no_entry_of_the_others_stale(session):
    _, report = session([("wrong", "accuracy", "wrong"), ("right", "memory", "wrong")], selected="normalisation and right")
    assert states(report) == ["not run", "not run"]


def test_one_property_file_alone_calls_no_entry_stale(session):
    import stabcheck.properties.test_normalisation as one

    _, report = session([("wrong", "accuracy", "wrong"), ("gone", "accuracy", "wrong")], selected="right", suites=one.__file__)
    assert states(report) == ["not run", "not run"]


def test_a_wrong_ledger_is_told_in_one_line_before_anything_runs(session, pytester):
    ran, report = session([("wrong", "normalisation", "slow")])
    shown = ran.stdout.str() + ran.stderr.str()
    assert ran.ret in (2, 4) and not report
    assert "entry 1 has kind = 'slow'; use one of" in shown and "stabcheck/ledger.py" not in shown
