"""Workers of xdist: each starts on neighbouring trials, which are of one kernel, so that few of them compile and load it."""

from types import SimpleNamespace

import pytest

from stabcheck.gate import Gate, _arguments
from stabcheck.plugin import Plugin
from stabcheck.sessions import run_suites, spread


def trial(prop, kernel, corpus=""):
    return SimpleNamespace(nodeid=f"{prop} {kernel}", corpus=corpus, identity={"kernel": kernel, "property": prop, "dtype": "fp32"})


def ordered(items, **worker):
    config = SimpleNamespace(getoption=lambda name, default: "", getini=lambda name: "", **worker)
    Plugin(config).pytest_collection_modifyitems(config, items)
    return [item.nodeid for item in items]


COLLECTED = [trial("accuracy", "b"), trial("accuracy", "a"), trial("memory", "b"), trial("memory", "a"), trial("memory", "b", "4f0a11")]


def test_a_worker_goes_through_one_kernel_after_the_other_and_the_corpus_first():
    assert ordered([*COLLECTED], workerinput={}) == ["memory b", "accuracy a", "memory a", "accuracy b", "memory b"]


def test_without_workers_the_order_of_the_properties_stays():
    assert ordered([*COLLECTED]) == ["memory b", "accuracy b", "accuracy a", "memory b", "memory a"]


def test_the_tests_of_others_stay_before_the_trials():
    others = [SimpleNamespace(nodeid="one"), SimpleNamespace(nodeid="two")]
    assert ordered([trial("accuracy", "a"), *others], workerinput={}) == ["one", "two", "accuracy a"]


@pytest.mark.parametrize("asked", [["-n", "2"], ["-n2"], ["-nauto"], ["--numprocesses=2"], ["-k", "accuracy", "-n", "4"]], ids=" ".join)
def test_workers_take_neighbouring_trials(asked):
    assert spread(asked) == ["--dist=worksteal"]


@pytest.mark.parametrize("asked", [[], ["-k", "accuracy"], ["--no-header"], ["-x"]], ids=" ".join)
def test_without_workers_nothing_is_asked_of_xdist_which_may_be_missing(asked):
    assert spread(asked) == []


def test_run_and_gate_ask_for_it_and_another_choice_comes_behind(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(pytest, "main", lambda arguments: asked.append(arguments) or 0)
    run_suites([], "", "cpu", "", tmp_path, ["-n", "2", "--dist=load"])
    asked.append(_arguments(Gate(), "cpu", [], ["-n", "2", "--dist=load"]))
    assert [arguments[-4:] for arguments in asked] == [["--dist=worksteal", "-n", "2", "--dist=load"]] * 2
