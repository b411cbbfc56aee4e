"""The end of a session: what is written, what its exit status is, when baselines are compared and recorded, and the self-test of a gate.

A kernel that gets twice as bad within its bounds, one that is right and a session that tests nothing are planted; each status has its case.
"""

import json
import shutil
from pathlib import Path

import pytest
from planted import LAWS
from report_data import INTERPRETER, finding, item

from stabcheck import mutants
from stabcheck.conclusions import conclude, write_all
from stabcheck.ledger import Entry, Ledger
from stabcheck.mutants import SHORT, self_test
from stabcheck.operations import all_operations

HELD = item(host=INTERPRETER) | {"seconds": 1.5}
BROKEN = item(property="memory", outcome="failed", findings=[finding()], host=INTERPRETER) | {"seconds": 0.25}
ENTRY = Entry("temperature_softmax[gone]", "accuracy", "bf16", "wrong", "https://example.com/1")
GATE = {"profile": "gate", "seed": None}


# ---- the report


def test_without_a_ledger_and_out_of_the_gate_nothing_is_said_of_either(tmp_path):
    report = conclude([HELD], Ledger(), tmp_path, set(), {"profile": "cpu", "seed": "7"}, "")
    assert not {"ledger", "baselines"} & report.keys() and (report["profile"], report["seed"]) == ("cpu", "7")


def test_a_gate_says_where_it_looked_for_baselines(tmp_path):
    report = conclude([HELD], Ledger(), tmp_path / "b", set(), GATE, "")
    about = report["baselines"]
    assert (about["arch"], about["directory"], about["state"]) == ("interpreter", str(tmp_path / "b"), "absent")


@pytest.mark.parametrize(("trials", "state"), [(None, "not run"), (set(), "stale")])
def test_only_a_session_that_collected_everything_knows_what_is_gone(tmp_path, trials, state):
    (tmp_path / "interpreter").mkdir()
    (tmp_path / "interpreter/op-gone.json").write_text("{}")
    report = conclude([HELD], Ledger([ENTRY]), tmp_path, trials, GATE, "")
    assert [entry["state"] for entry in report["ledger"]] == [state]
    assert bool([name for name in report["baselines"]["stale"] if "op-gone" in name]) == (state == "stale")


def test_results_durations_and_the_summary_are_written(tmp_path):
    report = conclude([HELD, BROKEN], Ledger(), tmp_path, None, {"profile": "cpu", "seed": None}, "")
    shown = write_all(report, [HELD, BROKEN], tmp_path / "out")
    assert shown[0].startswith("stabcheck: CPU (interpreter): logic only") and shown[-1] == f"results  {tmp_path / 'out/results.json'}"
    assert json.loads((tmp_path / "out/durations.json").read_text()) == {HELD["test"]: 1.5, BROKEN["test"]: 0.25}
    told = (tmp_path / "out/summary.md").read_text()
    assert finding()["text"] in told and all(line in told for line in shown[:-1])


def test_a_folder_that_cannot_be_written_costs_the_files_and_not_the_verdict(tmp_path):
    (tmp_path / "file").write_text("")
    report = conclude([BROKEN], Ledger(), tmp_path, None, {"profile": "cpu", "seed": None}, "")
    *shown, last = write_all(report, [BROKEN], tmp_path / "file/out")
    assert any(line.startswith("BROKEN on") for line in shown)
    assert last == f"results could not be written to {tmp_path / 'file/out'}: Not a directory; choose --stabcheck-report-dir"


# ---- sessions

KERNELS = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def fused(x, t):
    z = (x.double() - x.double().amax(-1, keepdim=True)) / t[:, None].double()
    return (torch.softmax(z, -1) * (1 + {error})).to(x.dtype)
"""


@pytest.fixture
def gate(project, pytester, monkeypatch):
    """gate(*options, error): pytest's results and the report's section on baselines, of a kernel off by a relative error."""
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # the kernel changes within a second
    assert LAWS  # imported here, or nested sessions would import scipy anew

    def run(*options, error=0.0, profile="gate", selected="accuracy or determinism", tests=""):
        pytester.makepyfile(kernels_ratcheted=KERNELS.format(error=error))
        select = ["--import-mode=importlib", "--stabcheck-kernels=kernels_ratcheted", f"--hypothesis-profile={profile}", "-k", selected]
        ran = project(tests, "--pyargs", "stabcheck.properties", *select, *options, seed="")
        written = pytester.path / "reports/latest/results.json"
        return ran, json.loads(written.read_text()).get("baselines") if written.is_file() else None

    return run


def test_a_loss_of_accuracy_within_the_bounds_fails_until_it_is_accepted(gate, pytester):
    ran, told = gate()
    assert (ran.ret, told["state"]) == (0, "absent") and "no accuracy baselines for interpreter" in ran.stdout.str()
    assert (gate("--stabcheck-update")[1]["state"], gate()[0].ret) == ("updated", 0)
    ran, told = gate(error=2e-7)
    assert ran.ret == 1 and {c["metric"] for c in told["loosened"]} == {"accuracy.fp32.ulp", "accuracy.fp32.utilisation"}
    ran.stdout.fnmatch_lines(
        ["loosened: temperature_softmax[[]fused[]] accuracy.fp32.ulp * → *", "LOOSENED on CPU (interpreter): 2 accuracy*"]
    )
    assert gate("--stabcheck-update", error=2e-7)[0].ret == 1
    ran, told = gate("--stabcheck-update=all", error=2e-7)
    assert ran.ret == 0 and len(told["accepted"]) == 2 and "accepted: temperature_softmax[fused] accuracy.fp32.ulp" in ran.stdout.str()
    ran, told = gate()
    assert ran.ret == 0 and len(told["tighter"]) == 2 and "can be tightened: 2 baselines" in ran.stdout.str()


def test_a_missing_and_a_left_over_baseline_fail_a_gate_that_holds(gate, pytester):
    (pytester.path / "reports/baselines/interpreter").mkdir(parents=True)
    ran, told = gate()
    assert ran.ret == 1 and len(told["missing"]) == 3 and "STALE on CPU (interpreter): 3 baselines missing or left over" in ran.stdout.str()
    gate("--stabcheck-update")
    (pytester.path / "reports/baselines/interpreter/logsumexp-gone.json").write_text("{}")
    ran, told = gate()
    assert ran.ret == 1 and told["stale"] == ["reports/baselines/interpreter/logsumexp-gone.json"]


def test_only_the_gate_compares_baselines(gate, pytester):
    gate("--stabcheck-update")
    ran, told = gate(error=2e-7, profile="cpu")
    assert (ran.ret, told) == (0, None) and "loosened" not in ran.stdout.str()


def test_an_update_that_another_profile_would_not_make_is_refused(gate):
    # once: nothing is recorded, and nobody is told
    assert gate("--stabcheck-update", profile="cpu")[0].ret not in (0, 1)


def test_a_damaged_baseline_is_told_in_one_line(gate, pytester):
    gate("--stabcheck-update")
    (pytester.path / "reports/baselines/interpreter/temperature_softmax-fused.json").write_text("{")
    ran, _ = gate()
    assert ran.ret == pytest.ExitCode.USAGE_ERROR and "ERROR: cannot read the baseline" in ran.stdout.str()


def test_an_update_says_which_files_it_removes(gate, pytester):
    # once: a file of a kernel that this run does not know, such as one of another target, is deleted without a word
    gate("--stabcheck-update")
    other = pytester.path / "reports/baselines/interpreter/logsumexp-other.json"
    other.write_text('{"accuracy.fp32.ulp": 1.0}')
    ran, _ = gate("--stabcheck-update")
    assert other.exists() or other.name in ran.stdout.str()


def test_the_same_session_writes_the_same_bytes_twice(gate, pytester):
    path = pytester.path / "reports/latest/results.json"
    first = gate() and path.read_bytes()
    shutil.rmtree(path.parent)
    assert (gate() and path.read_bytes()) == first


@pytest.mark.parametrize(
    ("selected", "tests", "status"),
    [
        ("graph_replay", "", pytest.ExitCode.NO_TESTS_COLLECTED),
        ("graph_replay or theirs", "def test_theirs():\n    pass\n", pytest.ExitCode.OK),
        ("determinism", "", pytest.ExitCode.OK),
    ],
    ids=["nothing ran", "others ran", "held"],
)
def test_a_session_that_tested_nothing_is_no_pass(gate, pytester, selected, tests, status):
    places = [str(pytester.path)] if tests else []
    assert gate(*places, selected=selected, tests=tests)[0].ret == status


# ---- the self-test of a gate


def test_every_operation_has_a_mutant_of_its_own_in_the_short_form():
    known = mutants._all()
    assert {operation: known[id].operation for operation, id in SHORT.items()} == {name: name for name in all_operations()}


def test_the_self_test_kills_the_mutant_of_the_operations_asked_for(at_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert self_test({"temperature_softmax"}, "cpu", tmp_path / "out") == {"killed": ["SM11"], "survived": []}


def listening(monkeypatch, outcome):
    """A self-test in which every mutant asked for ends so, or, for None, nothing is reported."""

    def collect(targets, device, report_dir, more, listener):
        assert more[1:] != [""], "an empty selection is every mutant there is"
        for id, kernel in mutants._all().items() if outcome else ():
            if f"{kernel.operation}-{kernel.name}-" in more[1]:
                about = {
                    "kernel": kernel.id,
                    "property": "p",
                    "outcome": outcome,
                    "tally": {"killed_at": 0},
                    "seconds": 0.0,
                    "findings": [],
                }
                listener.reports.append(about | {"id": id})

    monkeypatch.setattr(mutants, "collect_reports", collect)


@pytest.mark.parametrize(
    ("outcome", "survived"),
    [("passed", ["LS4"]), ("failed", ["LS4"]), ("skipped", []), (None, ["LS4"])],
    ids=["unseen", "error", "skipped", "none"],
)
def test_only_a_mutant_that_cannot_run_here_may_be_alive(monkeypatch, outcome, survived):
    # once where nothing was reported, as when collecting broke: no mutant counts as alive, and the gate goes on
    listening(monkeypatch, outcome)
    assert self_test({"logsumexp"}, "cpu", Path("out")) == {"killed": [], "survived": survived}


def test_a_self_test_of_no_operation_runs_no_mutant(monkeypatch):
    # once: -k "" selects them all
    listening(monkeypatch, "passed")
    assert self_test(set(), "cpu", Path("out")) == {"killed": [], "survived": []}
