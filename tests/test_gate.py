"""The gate as a repository of kernels meets it: pull requests that break, loosen or mend a kernel, what it says of each and returns."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

GOOD = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def fused(logits, temperature):
    x = logits.double()
    return torch.softmax((x - x.amax(-1, keepdim=True)) / temperature[:, None].double(), -1).to(logits.dtype)
"""
BROKEN = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def fused(logits, temperature):
    e = torch.exp(logits / temperature[:, None])
    return e / e.sum(-1, keepdim=True)
"""
LOOSENED = GOOD.replace(".to(logits.dtype)", ".mul(1 + 2e-7).to(logits.dtype)")  # 2e-7 of at least 7e-7 allowed
OTHER = """
import torch, stabcheck

@stabcheck.kernel("logsumexp", dtypes=["fp32"])
def other(logits):
    return torch.logsumexp(logits.double(), -1).float()
"""
KNOWN = """
[[known]]
kernel = "temperature_softmax[fused]"
property = "accuracy"
dtype = "fp32"
kind = "{kind}"
{issue}
"""
LAWS = ["-k", "accuracy or range"]
TARGETS = ["kernels/fused.py", "kernels/other.py"]


class Repository:
    """A repository of two kernels, and the gate in it, run as CI runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, files):
        for name, text in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return self

    def git(self, *arguments):
        name = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *name, *arguments], cwd=self.path, check=True, capture_output=True, text=True).stdout

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "-qm", "a change", "--allow-empty")
        return self

    def gate(self, *options, laws=LAWS, targets=TARGETS, **environment):
        """(exit code, output)"""
        command = [sys.executable, "-m", "stabcheck", "gate", *targets, "--device", "cpu", "--no-mutants", *options, *laws]
        ended = subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
        )
        return ended.returncode, ended.stdout + ended.stderr

    @property
    def results(self):
        return json.loads((self.path / "reports/latest/results.json").read_text())

    @property
    def markdown(self):
        return (self.path / "reports/latest/gate.md").read_text()


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The repository with its baselines, committed on main."""
    repository = Repository(tmp_path_factory.mktemp("demo"))
    repository.git("init", "-qb", "main")
    repository.write({"kernels/fused.py": GOOD, "kernels/other.py": OTHER, "README.md": "kernels", ".gitignore": "reports/latest/\n"})
    code, shown = repository.gate("--update")
    assert code == 0, shown
    return repository.commit()


@pytest.fixture
def repository(committed, tmp_path):
    return Repository(Path(shutil.copytree(committed.path, tmp_path / "pr")))


def test_an_unchanged_repository_passes_with_the_same_bytes_however_often_and_on_however_many_workers(repository):
    seen = set()
    for options in ([], [], ["-n", "2"]):
        code, shown = repository.gate(*options)
        assert code == 0, shown
        seen.add((repository.path / "reports/latest/results.json").read_bytes())
    assert len(seen) == 1
    assert repository.results["baselines"]["state"] == "compared"


def test_kernels_named_by_module_or_by_file_draw_the_same(repository):
    seen = set()
    for targets in (TARGETS, ["kernels.fused", "kernels.other"]):
        code, shown = repository.gate(targets=targets)
        assert code == 0, shown
        seen.add(str([(item["kernel"], item["property"], item["tally"]) for item in repository.results["items"]]))
    assert len(seen) == 1


def test_a_damaged_baseline_is_told_before_anything_runs(repository):
    (file, *_) = (repository.path / "reports/baselines").rglob("*.json")
    file.write_text("{")
    code, shown = repository.gate()
    assert (code, "cannot read the baseline" in shown, "stabcheck ===" in shown) == (2, True, False), shown


def test_a_gate_that_selects_nothing_says_so(repository):
    code, shown = repository.gate(laws=["-k", "nothing"])
    assert (code, "gate: nothing was tested: no trial matches the selection" in shown) == (3, True), shown


def test_numbers_written_in_a_kernels_module_do_not_change_what_is_drawn(repository):
    """Hypothesis mixes literals of the modules under test into what it draws, but for byte strings; baselines would move with them."""
    assert repository.gate()[0] == 0
    before = repository.results
    numbers = ", ".join(map(str, [*range(100, 300, 3), 4095, 0.3, 1e30]))
    repository.write({"kernels/fused.py": f"{GOOD}\nNUMBERS = [{numbers}]\n"})
    assert (repository.gate()[0], repository.results) == (0, before)


def test_a_pull_request_that_breaks_a_kernel_fails_with_the_finding_in_the_markdown(repository):
    code, shown = repository.write({"kernels/fused.py": BROKEN}).commit().gate()
    assert code == 1
    id = min(f["id"] for item in repository.results["items"] for f in item["findings"] if f["property"] == "accuracy")
    assert f"BROKEN  accuracy · temperature_softmax[fused] · fp32 · interpreter       id {id}" in repository.markdown
    assert f"stabcheck replay reports/latest/{id}.json --kernels kernels/fused.py" in repository.markdown
    assert re.search(r"^gate: BROKEN on CPU \(interpreter\): ", shown, re.M)


def test_a_fix_turns_the_reproducer_into_a_passing_test_that_fails_if_the_bug_returns(repository):
    repository.write({"kernels/fused.py": BROKEN}).gate()
    id = min(f["id"] for item in repository.results["items"] for f in item["findings"] if f["property"] == "accuracy")
    (repository.path / "reports/corpus").mkdir()
    shutil.copy(repository.path / f"reports/latest/{id}.json", repository.path / "reports/corpus")  # committed as CI found it
    nothing_else = ["-k", id]
    assert repository.gate(laws=nothing_else)[0] == 1
    code, _ = repository.write({"kernels/fused.py": GOOD}).gate(laws=nothing_else)
    assert (code, [(item["corpus"], item["outcome"]) for item in repository.results["items"]]) == (0, [(id, "passed")])


def test_a_pull_request_that_loosens_accuracy_within_the_bounds_fails_the_ratchet(repository):
    code, shown = repository.write({"kernels/fused.py": LOOSENED}).gate()
    assert code == 1
    assert not repository.results["items"][0]["findings"]
    (first, *_) = repository.results["baselines"]["loosened"]
    assert first["now"] > 2 * first["was"]
    assert f"loosened: {first['kernel']} {first['metric']} {first['was']:g} → {first['now']:g}" in " ".join(shown.split())
    assert first["metric"] in repository.markdown


def test_worse_baselines_are_recorded_only_if_asked_and_each_is_told(repository):
    repository.write({"kernels/fused.py": LOOSENED})
    assert repository.gate("--update")[0] == 1
    code, shown = repository.gate("--update-all")
    assert (code, "accepted: temperature_softmax[fused] accuracy.fp32.ulp" in " ".join(shown.split())) == (0, True)
    assert repository.gate()[0] == 0


def test_missing_and_left_over_baselines_have_messages_of_their_own(repository):
    home = repository.path / "reports/baselines/interpreter"
    (home / "temperature_softmax-fused.json").rename(home / "temperature_softmax-gone.json")
    code, shown = repository.gate()
    shown = " ".join(shown.split())
    assert code == 4
    assert "missing: " in shown and "of temperature_softmax[fused] have no baseline" in shown
    assert "left over: no trial measures reports/baselines/interpreter/temperature_softmax-gone.json any more" in shown


def test_an_architecture_without_baselines_weakens_a_pass_but_is_none_to_fail(repository):
    shutil.rmtree(repository.path / "reports/baselines")
    code, shown = repository.gate()
    assert (code, "no accuracy baselines for interpreter in reports/baselines" in " ".join(shown.split())) == (0, True)


@pytest.mark.parametrize(
    ("kernel", "entry", "code", "message"),
    [
        (GOOD, KNOWN.format(kind="wrong", issue=""), 2, "has no link to an issue; a known failure needs one"),
        (GOOD, KNOWN.format(kind="wrong", issue='issue = "https://example.com/1"'), 4, "unexpected pass: accuracy · "),
        (
            GOOD,
            KNOWN.format(kind="wrong", issue='issue = "https://example.com/1"').replace("[fused]", "[gone]"),
            4,
            "stale entry: no trial is ",
        ),
        (BROKEN, KNOWN.format(kind="non-finite", issue='issue = "https://example.com/1"'), 0, "known to fail (1): accuracy · "),
    ],
    ids=["no link", "unexpected pass", "stale", "known"],
)
def test_each_state_of_a_ledger_has_its_message_and_its_exit_code(repository, kernel, entry, code, message):
    repository.write({"kernels/fused.py": kernel})
    (repository.path / "stabcheck-ledger.toml").write_text(entry)
    got, shown = repository.gate(laws=["-k", "accuracy"])
    assert (got, message in " ".join(shown.split())) == (code, True), shown


def test_only_kernels_whose_source_changed_are_tested_and_the_others_are_named(repository):
    repository.git("switch", "-qc", "pr")
    code, _ = repository.write({"kernels/other.py": OTHER + "# a comment\n"}).commit().gate("--changed-since", "main")
    report = repository.results
    assert (code, {item["kernel"] for item in report["items"]}) == (0, {"logsumexp[other]"})
    assert report["scope"] == {"since": "main", "left_out": ["temperature_softmax[fused]"]}
    assert "temperature_softmax" in repository.markdown[repository.markdown.index("left out") :]


def test_a_pull_request_that_touches_no_kernel_passes_at_once(repository):
    repository.git("switch", "-qc", "pr")
    code, shown = repository.write({"README.md": "more words"}).commit().gate("--changed-since", "main")
    assert (code, "gate: nothing to test: no kernel changed since main" in shown) == (0, True)


def test_what_could_not_run_is_no_pass(repository):
    assert repository.gate(laws=["-k", "offsets64"])[0] == 3
    if not torch.cuda.is_available():
        assert repository.gate("--device", "cuda")[0] == 3


@pytest.mark.parametrize("workers", ["0", "2"])
def test_junit_json_and_markdown_agree_on_every_count(repository, workers):
    summary = repository.path / "step.md"
    (repository.path / "stabcheck-ledger.toml").write_text(KNOWN.format(kind="non-finite", issue='issue = "https://example.com/1"'))
    repository.write({"kernels/fused.py": BROKEN}).gate(
        "-n", workers, laws=["-k", "accuracy or normalisation or offsets64"], GITHUB_STEP_SUMMARY=str(summary)
    )
    from stabcheck.results import counts

    n = counts(repository.results)
    (suite,) = ElementTree.parse(repository.path / "reports/latest/junit.xml").getroot().iter("testsuite")
    assert int(suite.get("tests")) == n["trials"] > 4
    assert int(suite.get("failures")) == n["broken"] + n["errors"] + n["unexpected"] > 0
    assert int(suite.get("skipped")) == n["not_run"] + n["known"] > 1
    head, _, values = (
        row.strip("| ").split(" | ") for row in repository.markdown[repository.markdown.index("| trials ") :].splitlines()[:3]
    )
    assert dict(zip(head, map(int, values), strict=True)) == {name.replace("_", " "): count for name, count in n.items()}
    assert summary.read_text()[:200] == repository.markdown[:200]


def test_a_kernel_that_takes_a_worker_with_it_is_no_pass_in_any_report(repository):
    dying = GOOD.replace("    x = logits", "    import os; os._exit(1)\n    x = logits")
    code, shown = repository.write({"kernels/fused.py": dying}).gate("-n", "2", laws=["-k", "accuracy"])
    assert (code, "never reported" in shown) == (1, True), shown
    assert "FAIL" in repository.markdown.splitlines()[0]


def test_a_ledger_entry_hides_no_other_kind_of_failure_of_its_trial(repository):
    both = BROKEN.replace("return e / e.sum(-1, keepdim=True)", "return e / e.sum(-1, keepdim=True) * 1.001")
    (repository.path / "stabcheck-ledger.toml").write_text(KNOWN.format(kind="non-finite", issue='issue = "https://example.com/1"'))
    code, _ = repository.write({"kernels/fused.py": both}).gate(laws=["-k", "accuracy and fused"])
    kinds = {finding["kind"] for item in repository.results["items"] for finding in item["findings"]}
    assert (code, kinds) == (1, {"non-finite", "wrong"})


def test_a_kernel_that_now_refuses_every_input_leaves_its_baselines_behind(repository):
    refusing = GOOD.replace("    x = logits", "    raise stabcheck.UnsupportedInput('no')\n    x = logits")
    code, shown = repository.write({"kernels/fused.py": refusing}).gate()
    assert (code, "left over: no trial measures temperature_softmax[fused] accuracy.fp32.ulp" in " ".join(shown.split())) == (4, True), (
        shown
    )


def test_baselines_of_kernels_that_were_not_asked_for_are_left_alone(repository):
    assert repository.gate("--update", targets=TARGETS[:1])[0] == 0
    assert (repository.path / "reports/baselines/interpreter/logsumexp-other.json").is_file()


def test_an_earlier_report_does_not_outlive_a_gate_that_could_not_run(repository):
    repository.gate(laws=["-k", "accuracy"])
    (repository.path / "reports/corpus").mkdir()
    (repository.path / "reports/corpus/bad.json").write_text("{")
    assert repository.gate(laws=["-k", "accuracy"])[0] == 2
    assert not (repository.path / "reports/latest/gate.md").exists()


@pytest.mark.parametrize(
    "options", [["--corpus", "reports/corpsu"], ["--ledger", "leger.toml"], ["--baselines", "basline"], ["--hypothesis-profile=cpu"]]
)
def test_a_path_that_is_not_there_or_another_profile_is_wrong_use(repository, options):
    assert repository.gate(*options, laws=["-k", "accuracy"])[0] == 2


def test_neither_a_summary_that_cannot_be_written_nor_a_plain_locale_changes_the_verdict(repository):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, shown = repository.gate(laws=["-k", "accuracy"], GITHUB_STEP_SUMMARY="/nowhere/step.md", **plain)
    assert (code, "could not be written" in shown, "gate: held" in shown) == (0, True, True), shown


def test_a_place_for_reports_that_cannot_be_written_is_told_before_anything_runs(repository):
    code, shown = repository.gate("--report-dir", "README.md/latest")
    assert (code, "cannot write to README.md/latest: Not a directory; choose another" in " ".join(shown.split())) == (2, True), shown
