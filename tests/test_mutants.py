"""`stabcheck mutants` proves that the properties can fail, and fails itself when one of them cannot."""

import json
from dataclasses import replace

import pytest
from planted import right
from rich.console import Console

from stabcheck import mutants
from stabcheck.cli import main
from stabcheck.mutants import MUTANTS, run_mutants
from stabcheck.registry import Mutant, make_kernel
from stabcheck.targets import load


@pytest.fixture
def prove(at_home, tmp_path, monkeypatch, capsys):
    """prove(*ids): (exit code, what was shown, mutants.json)."""
    monkeypatch.chdir(tmp_path)

    def run(*ids):
        code = run_mutants(ids, "auto", tmp_path / "out", Console(width=160))
        return code, capsys.readouterr().out, json.loads((tmp_path / "out/mutants.json").read_text())

    return run


def test_fast_mutants_are_killed_and_shrunk_as_their_table_says(prove, tmp_path):
    code, shown, data = prove("SM15", "SM13")
    assert code == 0
    assert "2 of 2 mutants killed" in shown
    assert {k["mutant"] for k in data["kills"] if k["outcome"] == "failed" and k["small"]} == {"SM15", "SM13"}
    assert all(name in shown for name in ("SM15", "SM13", "masking", "memory"))
    assert "SURVIVED" not in shown
    assert "| SM15 | memory |" in (tmp_path / "out/mutants.md").read_text()


@pytest.mark.parametrize("id", ["SM7", "CE5"])  # of any operation
def test_a_single_mutant_can_be_named(prove, id):
    code, shown, data = prove(id)
    assert code == 0
    assert "1 of 1 mutants killed" in shown
    assert {k["mutant"] for k in data["kills"]} == {id}


def stand_in(monkeypatch, **changes):
    """Puts a right kernel where the mutant V1 was: in memory, for the table and for the session that it starts."""
    (v1,) = [k for k in load([MUTANTS]) if k.mutant.id == "V1"]
    mutant = Mutant("V1", "none at all", ("accuracy",), "this test", **changes)
    survivor = make_kernel("temperature_softmax", right, name=v1.name, dtypes=["fp32"], mutant=mutant)
    for loader in ("stabcheck.mutants.load", "stabcheck.targets.load"):
        monkeypatch.setattr(loader, lambda *targets, **more: [survivor])


def test_a_run_cut_short_says_which_mutants_it_did_not_reach_and_proves_nothing(prove, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr("stabcheck.mutants.collect_reports", lambda *arguments: "interrupted")
    code, shown, _ = prove()
    assert (code, "NOT REACHED, the run was cut short: V1" in shown) == (3, True)


def test_a_mutant_that_is_in_fact_right_survives_and_ends_1(prove, monkeypatch):
    stand_in(monkeypatch)
    code, shown, _ = prove()
    assert code == 1
    assert "SURVIVED: V1" in shown
    assert "not noticed" in shown


def test_a_kill_that_does_not_shrink_as_far_as_allowed_is_no_kill(prove, monkeypatch):
    original = mutants._kill
    monkeypatch.setattr(mutants, "_kill", lambda report, kernels: replace(original(report, kernels), vocab=9, small=False))
    code, shown, _ = prove("SM7", "SM15")
    assert code == 1
    assert "too large" in shown


@pytest.mark.parametrize("ids", [["SM99"], ["V1", "nonsense"]])
def test_an_unknown_mutant_ends_2_with_one_line_that_names_those_there_are(at_home, capsys, ids):
    assert main(["mutants", *ids]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unknown mutant" in line and "SM1, " in line


def test_ids_are_taken_in_any_case(at_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stabcheck.mutants.run_mutants", lambda only, *rest: 0 if only == ["SM4"] else 1)
    assert main(["mutants", "sm4"]) == 0
