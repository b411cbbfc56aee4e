"""Kernels known to crash or to hang run in a process of their own, which may die without taking the session with it.

A kernel here really ends its process. Each process costs seconds, so one session serves several tests; what else a process may leave behind
is written by a stand-in.
"""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
from planted import LAWS

from stabcheck import apart
from stabcheck.apart import run_apart
from stabcheck.errors import UsageError

KERNELS = """
import os, torch, stabcheck

def right(x, t):
    z = (x.double() - x.double().amax(-1, keepdim=True)) / t[:, None].double()
    return torch.softmax(z, -1).to(x.dtype)

def exits(x, t):
    os._exit(3)

def raises(x, t):
    raise RuntimeError("boom")
"""
SUITE = 'stabcheck.suite("temperature_softmax", {0}, dtypes=["fp32"], properties=["normalisation"])'
THREE = f"""
import stabcheck
from kernels_apart import right, exits, raises
test_exits = {SUITE.format("exits")}
test_raises = {SUITE.format("raises")}

class TestMine:
    test_right = {SUITE.format("right")}
"""
SEEN = []  # of the session of all three


def ledger(*names, kind="crash"):
    entries = [
        f'[[known]]\nkernel = "temperature_softmax[{name}]"\nproperty = "normalisation"\ndtype = "fp32"\nkind = "{kind}"\n'
        f'issue = "https://example.com/{name}"\n'
        for name in names
    ]
    return "\n".join(entries)


@pytest.fixture
def session(project, pytester, monkeypatch):
    """session(test_file, known, *options): pytest's results and the items by the kernel's name."""
    pytester.makepyfile(kernels_apart=KERNELS)
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    assert LAWS  # imported here, or nested sessions would import scipy anew

    def run(tests, known, *options):
        (pytester.path / "stabcheck-ledger.toml").write_text(known)
        ran = project(tests, *options)
        items = json.loads((pytester.path / "reports/latest/results.json").read_text())["items"]
        return ran, {item["kernel"].partition("[")[2].rstrip("]"): item for item in items}

    return run


@pytest.fixture
def three(session, pytester):
    """pytest's results and the items of a session in which a kernel leaves, one raises and one is right, all known to crash."""
    pytester.makeini("[pytest]\naddopts = --ff\n")  # fails: the other process has no cache, and so does not know the option
    if not SEEN:
        SEEN.append(session(THREE, ledger("exits", "raises", "right")))
    return SEEN[0]


def test_a_kernel_that_ends_its_process_does_not_end_the_session(three):
    items = three[1]
    assert (len(items), items["exits"]["outcome"]) == (3, "known")
    (finding,) = items["exits"]["findings"]
    assert finding["text"].endswith("cause    its process ended with exit status 3 and no results")


def test_a_suite_in_a_class_is_found_there_too(three):
    # once: the node's id is made of the file and the name alone; pytest ends with 4, and that is taken for a crash
    assert three[1]["right"]["findings"] == []


def test_one_that_holds_there_is_an_unexpected_pass(three):
    # once: see above
    ran, items = three
    assert (ran.ret, items["right"]["outcome"]) == (1, "unexpected pass")
    assert items["right"]["tally"]["total"]["compared"] > 0  # of the other process


def test_what_is_told_of_it_names_no_folder_that_is_gone(three):
    # once: the lines `replay` and `script` of the text point into the other process's folder, another in each run
    raises = three[1]["raises"]
    (finding,) = raises["findings"]
    assert (raises["outcome"], finding["kind"], finding["files"]) == ("known", "crash", [])
    assert "cause    RuntimeError: boom" in finding["text"] and "/stabcheck-" not in finding["text"]


def test_the_other_process_is_set_up_as_the_session_is(session, pytester):
    # once: neither the ini file nor the options in it are handed on, and conftest.py is not read
    pytester.makeini("[pytest]\nstabcheck_kernels = kernels_of_mine\n")
    pytester.makeconftest("from hypothesis import settings\nsettings.register_profile('three', max_examples=3, database=None)\n")
    pytester.makepyfile(
        kernels_of_mine=KERNELS.replace("def right", '@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])\ndef right')
    )
    options = ["--pyargs", "stabcheck.properties", "--import-mode=importlib", "--hypothesis-profile=three", "-k", "normalisation"]
    _, items = session("", ledger("right"), *options)
    assert [finding["text"] for finding in items["right"]["findings"]] == []
    assert (items["right"]["outcome"], items["right"]["tally"]["examples"]) == ("unexpected pass", 3)


# ---- what a process leaves behind

ITEM = SimpleNamespace(
    path="test_it.py",
    name="test_it[normalisation-fp32]",
    nodeid="test_it.py::test_it[normalisation-fp32]",
    identity={"kernel": "k", "property": "normalisation", "dtype": "fp32"},
)
BEGAN = "stabcheck: CPU\nF"  # what pytest shows once it has collected
WRONG = {"id": "aaaaaa", "kind": "wrong", "files": ["/gone/aaaaaa.json"], "replay": "stabcheck replay /gone/aaaaaa.json", "text": "BROKEN"}


@pytest.fixture
def left(monkeypatch, pytestconfig):
    """left(returncode, stdout, item): what run_apart makes of a process that ended so, with the results of one item if given."""

    def run(returncode, item=None, stdout=BEGAN, kind="crash"):
        def ended(command, **more):
            folder = next(word.partition("=")[2] for word in command if word.startswith("--stabcheck-report-dir="))
            if item is not None:
                with open(f"{folder}/results.json", "w") as file:
                    json.dump({"items": [item]}, file)
            return subprocess.CompletedProcess(command, returncode, stdout, "")

        monkeypatch.setattr(apart.subprocess, "run", ended)
        return run_apart(SimpleNamespace(config=pytestconfig, **vars(ITEM)), kind)

    return run


def test_findings_of_the_other_process_are_handed_over_without_their_files(left):
    findings, tally = left(1, {"outcome": "failed", "findings": [WRONG], "tally": {"examples": 3}})
    assert (findings, tally) == ([WRONG | {"files": [], "replay": ""}], {"examples": 3})


@pytest.mark.parametrize("kind", ["crash", "hang"])
def test_a_process_without_results_is_a_finding_of_the_kind_known(left, kind):
    (finding,), tally = left(-9, kind=kind)
    assert (finding["kind"], finding["kernel"], tally) == (kind, "k", None)
    assert finding["text"].endswith("cause    its process ended with signal 9 and no results")


def test_one_that_passed_there_has_no_findings(left):
    assert left(0, {"outcome": "passed", "findings": [], "tally": {"examples": 3}}) == ([], {"examples": 3})


def test_a_trial_that_could_not_run_there_either_is_no_pass(left):
    # fails: a reproducer whose kernel is not under test, or whose law needs a GPU, passes, since its findings are none
    with pytest.raises(pytest.skip.Exception, match="needs a GPU"):
        left(0, {"outcome": "skipped", "reason": "needs a GPU", "findings": [], "tally": {"examples": 0}})


def test_the_other_process_has_no_workers_of_its_own(monkeypatch, pytestconfig):
    # fails: with addopts = -n 2 a worker dies there, and what is left says nothing of the trial
    if not pytestconfig.pluginmanager.hasplugin("xdist"):
        pytest.skip("xdist is not loaded")
    seen = []
    monkeypatch.setattr(
        apart.subprocess, "run", lambda command, **more: seen.append(command) or subprocess.CompletedProcess(command, 1, BEGAN, "")
    )
    run_apart(SimpleNamespace(config=pytestconfig, **vars(ITEM)), "crash")
    assert {"-n0", "-n=0", "--numprocesses=0"} & set(seen[0])


@pytest.mark.parametrize("status", [2, 4, 5])
def test_a_process_that_never_began_is_not_taken_for_a_crash(left, status):
    # once: whatever ends without results is a finding of the kind known, so that such an entry never goes out of date
    with pytest.raises(UsageError, match=r"not found: test_it\.py"):
        left(status, stdout="ERROR: not found: test_it.py::test_it\n")


def test_an_error_outside_the_kernel_is_not_taken_for_a_crash(left):
    # once: a trial that failed without a finding there is told as a process without results
    with pytest.raises(UsageError, match="could not be run in a process of its own"):
        left(1, {"outcome": "failed", "findings": [], "tally": {"examples": 1}})


def test_a_process_that_hangs_is_ended(monkeypatch, pytestconfig):
    # once: the process is waited for without a limit
    seen = {}
    monkeypatch.setattr(
        apart.subprocess, "run", lambda command, **more: seen.update(more) or subprocess.CompletedProcess(command, 1, BEGAN, "")
    )
    run_apart(SimpleNamespace(config=pytestconfig, **vars(ITEM)), "hang")
    assert seen.get("timeout")
