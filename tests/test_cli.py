"""The command line: exit codes, and one line for wrong use."""

import json
from pathlib import Path

import pytest

from stabcheck.cli import main

KERNELS = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def good(x, t):
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    return torch.softmax(z.double(), -1).to(x.dtype)

def bad(x, t):
    return good(x, t) * 1.05

def naive(x, t):
    e = torch.exp(x / t[:, None])
    return e / e.sum(-1, keepdim=True)
"""
OPERATION = "--operation=temperature_softmax"


@pytest.fixture
def cli(tmp_path, at_home, capsys, monkeypatch):
    """cli(*words): (exit code, standard output, standard error), in a directory with kernels.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.py").write_text(KERNELS)

    def run(*words):
        capsys.readouterr()
        code = main([*words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def latest_findings():
    items = json.loads(Path("reports/latest/results.json").read_text())["items"]
    return [finding for item in items for finding in item["findings"]]


def only_line(text):
    (line,) = text.strip().splitlines()
    return line


# ---- run


def test_run_ends_0_on_a_kernel_that_holds(cli):
    code, out, _ = cli("run", "kernels.py", "--device=cpu", "-k", "accuracy or memory")
    assert code == 0
    assert "held on CPU (interpreter): 2 of 2 trials" in out


def test_run_ends_1_on_a_finding_and_says_how_to_replay_it(cli):
    code, out, _ = cli("run", "kernels.py:bad", OPERATION, "--device=cpu", "-k", "accuracy and fp32")
    assert code == 1
    assert "BROKEN  accuracy · temperature_softmax[bad] · fp32" in out
    assert "replay   stabcheck replay reports/latest/" in out


def test_run_finds_the_overflow_of_a_naive_softmax_in_at_most_two_columns(cli):
    code, _, _ = cli("run", "kernels.py:naive", OPERATION, "--device=cpu", "-k", "finiteness and fp32")
    assert (code, [f["vocab"] <= 2 for f in latest_findings()]) == (1, [True])


def test_run_passes_options_on_to_pytest(cli):
    code, out, _ = cli("run", "kernels.py", "--device=cpu", "--collect-only", "-k", "monotone")
    assert code == 0
    assert "test_monotone[temperature_softmax-good-fp32]" in out


def test_run_writes_where_it_is_told(cli, tmp_path):
    cli("run", "kernels.py", "--device=cpu", "--report-dir=elsewhere", "-k", "monotone")
    assert (tmp_path / "elsewhere/results.json").is_file()
    assert not (tmp_path / "reports").exists()


def test_run_that_selects_nothing_ends_3(cli):
    code, _, err = cli("run", "kernels.py", "--device=cpu", "-k", "nothing_of_this_name")
    assert (code, "nothing was tested: no trial matches the selection" in err) == (3, True)


def test_run_tells_beforehand_of_a_place_for_reports_that_cannot_be_written(cli):
    code, _, err = cli("run", "kernels.py", "--device=cpu", "--report-dir=kernels.py/latest")
    assert (code, "cannot write to kernels.py/latest" in only_line(err)) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("kernels.py:godo",), "kernels.py has no function 'godo'; it has good"),
        (("kernels.py:bad",), "say what it computes"),
        (("kernels.py:bad", "--operation=softmx"), "unknown operation 'softmx'"),
        (("no_file.py",), "no file no_file.py; check the path"),
        (("no_such_module",), "cannot import no_such_module"),
        (("kernels.py", "--device=tpu"), "unknown device 'tpu'"),
    ],
)
def test_wrong_use_of_run_ends_2_with_one_line(cli, tmp_path, words, told):
    words = words if any(w.startswith("--device") for w in words) else (*words, "--device=cpu")
    code, _, err = cli("run", *words)
    assert code == 2
    assert told in only_line(err)
    assert not (tmp_path / "reports").exists()


def test_an_unknown_profile_ends_2_with_one_line_that_names_those_there_are(cli):
    code, out, err = cli("run", "kernels.py", "--device=cpu", "--profile=fast", "-k", "monotone")
    assert code == 2
    assert "fast" in out + err
    assert "Traceback" not in out + err


# ---- replay


@pytest.fixture
def found(cli):
    """The id of a finding on kernels.py:bad, in reports/latest."""
    cli("run", "kernels.py:bad", OPERATION, "--device=cpu", "-k", "accuracy and fp32")
    (finding,) = latest_findings()
    return finding["id"]


def replay(cli, *words, kernels="kernels.py"):
    return cli("replay", *words, "--device=cpu", *([f"--kernels={kernels}"] if kernels else []))


def test_replay_says_failed_and_ends_1(cli, found):
    code, out, _ = replay(cli, found)
    assert code == 1
    assert out.startswith(f"FAILED  {found}\nBROKEN  accuracy")


@pytest.mark.parametrize("name", ["reports/latest", "reports/latest/{}.json", "{}"])
def test_replay_takes_a_directory_a_file_or_an_id(cli, found, name):
    code, out, _ = replay(cli, name.format(found))
    assert (code, out.count("FAILED")) == (1, 1)


def test_replay_without_a_name_takes_the_latest_findings(cli, found):
    assert replay(cli)[0] == 1


def test_replay_says_fixed_and_ends_0_for_a_kernel_that_holds(cli, found):
    code, out, _ = replay(cli, found, kernels="kernels.py:good")
    assert code == 0
    assert out.startswith(f"FIXED   {found}  accuracy · temperature_softmax[good] · fp32 on CPU (interpreter)")


def test_replay_says_error_and_ends_2_for_a_module_that_nobody_named(cli, found):
    code, out, _ = replay(cli, found, kernels=None)
    assert code == 2
    assert out.startswith("ERROR   ")
    assert "allow it with --kernels kernels.py" in only_line(out)


def test_one_error_among_several_ends_2_and_the_others_are_replayed(cli, found, tmp_path):
    (tmp_path / "reports/latest/000000.json").write_text("{")
    code, out, _ = replay(cli, "reports/latest")
    assert code == 2
    assert out.count("ERROR") == 1 and out.count("FAILED") == 1


@pytest.mark.parametrize(("name", "told"), [("abcdef", "no reproducer 'abcdef'"), ("missing.json", "cannot read missing.json")])
def test_replay_of_what_is_not_there_ends_2_with_one_line(cli, name, told):
    code, out, err = replay(cli, name, kernels=None)
    assert code == 2
    assert told in only_line(out + err)


def test_replay_of_a_directory_that_is_not_there_ends_2(cli):
    code, out, err = cli("replay", "--device=cpu")
    assert code == 2
    assert "reports/latest" in only_line(out + err)


# ---- the rest


def test_list_shows_operations_kernels_and_properties(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert "temperature_softmax" in out
    assert "accuracy" in out and "offsets64" in out
    assert "empty_row: nan | zeros" in out and "shift_first | unshifted" in out
    assert "draft_ids [R, K]" in out  # of verify_speculative: what a kernel takes, not what the laws make it from


def test_doctor_tries_a_kernel_and_names_the_next_command(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli("doctor")
    assert code == 0
    assert "ran and gave the right answer" in out
    assert "next        stabcheck run" in out


def test_doctor_ends_3_where_no_kernel_runs(cli, monkeypatch):
    monkeypatch.setattr("stabcheck.doctor._try_kernel", lambda device: "OSError: no compiler")
    code, out, _ = cli("doctor")
    assert code == 3
    assert "does not run: OSError: no compiler" in out


def test_bench_without_a_gpu_ends_3_and_says_so(cli, monkeypatch):
    monkeypatch.setattr("stabcheck.devices.gpu_available", lambda: False)
    code, _, err = cli("bench")
    assert code == 3
    assert "torch sees none here" in only_line(err)


@pytest.mark.parametrize("words", [("runn",), ("run", "--device"), ("replay", "--no-such-option"), ("bench", "--no-such-option")])
def test_a_wrong_command_or_option_ends_2(cli, words):
    code, out, err = cli(*words)
    assert code == 2
    assert "Traceback" not in out + err


def test_help_ends_0_and_names_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(command in out for command in ("run", "replay", "list", "doctor", "mutants", "bench"))


def test_a_gpu_that_is_not_there_is_told(cli, monkeypatch):
    monkeypatch.setattr("stabcheck.devices.gpu_available", lambda: False)
    code, _, err = cli("run", "kernels.py", "--device=cuda")
    assert code == 2
    assert "torch sees no GPU" in only_line(err)


def test_a_target_behind_an_option_is_told_and_nothing_else_is_tested(cli):
    code, _, err = cli("run", "-k", "accuracy", "kernels.py")
    assert code == 2
    assert "target kernels.py stands behind an option; put targets first" in only_line(err)


def test_a_run_that_tested_nothing_ends_3(cli):
    with open("kernels.py", "a") as file:
        file.write("\n\ndef refuses(x, t):\n    raise stabcheck.UnsupportedInput('no')\n")
    code, out, _ = cli("run", "kernels.py:refuses", OPERATION, "--device=cpu", "-k", "accuracy")
    assert code == 3
    assert "nothing was tested on CPU (interpreter)" in out
