"""The corpus: what a run found is committed as it is, and is a test from then on: it fails as it did, or passes once the kernel is mended.

Each session replays what an earlier one saved, of a kernel that is still wrong, or mended, or gone, or not under test.
"""

import json
import os
import re
import shutil
import sys

import pytest
from planted import LAWS

from stabcheck import registry
from stabcheck.cli import main

RIGHT = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def fused(x, t):
    z = (x.double() - x.double().amax(-1, keepdim=True)) / t[:, None].double()
    p = torch.softmax(z, -1).to(x.dtype)
    return p
"""
WRONG = RIGHT.replace("return p", "return p * 1.05")
RAISING = RIGHT.replace("return p", 'raise RuntimeError("boom")')
LEAVING = RIGHT.replace("return p", "import os; os.environ['LEFT'] = 'in process'; raise RuntimeError('boom')")
OPTIONS = ["--pyargs", "--import-mode=importlib", "--hypothesis-profile=gate", "-k", "normalisation or reports"]
ENTRY = """
[[known]]
kernel = "temperature_softmax[fused]"
property = "normalisation"
dtype = "fp32"
kind = "{kind}"
issue = "https://example.com/1"
"""

FOUND = {}  # what a run found in a kernel: the finding and the text of its files


@pytest.fixture
def session(project, pytester, monkeypatch):
    """session(kernel, *options): pytest's results and the report's items of the corpus, then of the suites."""
    monkeypatch.syspath_prepend(pytester.path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # the kernel changes within a second
    assert LAWS  # imported here, or nested sessions would import scipy anew

    def run(kernel, *options, places=("reports/corpus", "stabcheck.properties"), kernels="kernels_found"):
        if kernel:
            pytester.makepyfile(kernels_found=kernel)
        others = {key: made for key, made in registry._REGISTERED.items() if not key.startswith("kernels_found:")}
        monkeypatch.setattr(registry, "_REGISTERED", others)  # each session is a process of its own, as far as it can see
        shutil.rmtree(pytester.path / "reports/latest", ignore_errors=True)
        options = [*OPTIONS, f"--stabcheck-kernels={kernels}", *options]
        ran = project("", *(place for place in places if "/" not in place or (pytester.path / place).exists()), *options, seed="")
        written = pytester.path / "reports/latest/results.json"
        items = json.loads(written.read_text())["items"] if written.is_file() else []
        return ran, [item for item in items if item["corpus"]], [item for item in items if not item["corpus"]]

    yield run
    sys.modules.pop("kernels_found", None)  # `main` imports it in this process


@pytest.fixture
def corpus(session, pytester):
    """corpus(kernel): its reproducer, as a run found it, committed; the file and the finding."""

    def commit(kernel=WRONG):
        if kernel not in FOUND:
            _, _, (item,) = session(kernel, places=["stabcheck.properties"])
            (finding,) = item["findings"]
            FOUND[kernel] = finding, [(pytester.path / file).read_text() for file in finding["files"]]
        pytester.makepyfile(kernels_found=kernel)
        finding, texts = FOUND[kernel]
        folder = pytester.path / "reports/corpus"
        folder.mkdir(parents=True)
        for name, text in zip((f"{finding['id']}.json", f"repro_{finding['id']}.py"), texts, strict=True):
            (folder / name).write_text(text)
        return folder / f"{finding['id']}.json", finding

    return commit


# ---- found, committed, replayed


def test_a_reproducer_is_a_test_named_by_its_id(session, corpus):
    _, finding = corpus()
    shown = session(WRONG, "--collect-only", "-q")[0].stdout.str()
    assert re.findall(r"\S*::\w{6}$", shown, re.M) == [f"reports/corpus/{finding['id']}.json::{finding['id']}"]


def test_it_fails_with_the_words_and_the_id_of_the_suites_finding(session, corpus):
    file, finding = corpus()
    ran, (item,), (suite,) = session(WRONG)
    (told,) = item["findings"]
    assert (ran.ret, item["outcome"], item["corpus"], told["id"]) == (1, "failed", finding["id"], suite["findings"][0]["id"])
    same = [line for line in finding["text"].splitlines() if not line.startswith(("  replay", "  script", "  rows"))]
    assert same == told["text"].splitlines()[: len(same)] and len(same) == 5  # head, law, input, compared, got
    assert f"stabcheck replay reports/corpus/{file.name} --kernels kernels_found" in ran.stdout.str()
    heads = [line for line in ran.stdout.str().splitlines() if line.startswith("BROKEN ") and f"id {finding['id']}" in line]
    assert len(heads) == 2 and ": 1 finding in 2 trials" in ran.stdout.str()


def test_a_mended_kernel_passes_its_reproducer(session, corpus):
    corpus()
    ran, (item,), _ = session(RIGHT)
    assert (ran.ret, item["outcome"], item["findings"]) == (0, "passed", []) and item["tally"]["examples"] == 1


@pytest.mark.parametrize("places", [("reports/corpus", "stabcheck.properties"), ("stabcheck.properties", "reports/corpus")])
def test_reproducers_are_replayed_before_the_suites(session, corpus, places):
    # once where the corpus is named last, or sorts behind the tests: nothing orders the items
    _, finding = corpus()
    shown = session(RIGHT, "-v", places=places)[0].stdout.str()
    assert re.findall(r"::(\w+)\S* PASSED", shown) == [finding["id"], "test_normalisation"]


# ---- files


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[:-9], "is truncated or no JSON"),
        (lambda text: text[: len(text) // 4], "is truncated or no JSON"),
        (lambda text: "<<<<<<< HEAD\n" + text, "is truncated or no JSON"),
        (lambda text: text.replace("reproducer/1", "reproducer/9"), "has schema 'stabcheck-reproducer/9'"),
        (lambda text: text.replace('"target"', '"targets"'), "lacks 'target'"),
        (lambda text: text.replace("0x0.0p+0", "zero"), "recipe is damaged"),
    ],
    ids=["end", "start", "merge conflict", "newer", "lacking", "a number"],
)
def test_a_damaged_file_is_an_error_that_names_it(session, corpus, damage, told):
    # once for what is cut off before its schema, which stands near the end: taken for another file
    file, _ = corpus()
    file.write_text(damage(file.read_text()))
    shown = (ran := session(RIGHT)[0]).stdout.str()
    assert ran.ret == pytest.ExitCode.INTERRUPTED and told in shown
    assert f"ERROR collecting reports/corpus/{file.name}" in shown and "stabcheck/corpus.py" not in shown


def test_other_json_is_left_alone(session, corpus, pytester):
    file, _ = corpus()
    (file.parent / "config.json").write_text('{"schema": "another/1"}')
    (file.parent / "list.json").write_text("[1, 2]")
    (file.parent / "results.json").write_text('{"schema": "stabcheck-report/1", "items": []}')
    shutil.copytree(file.parent, pytester.path / "elsewhere/corpus")
    _, items, _ = session(RIGHT, places=["reports/corpus", "elsewhere/corpus", "stabcheck.properties"])
    assert len(items) == 1


def test_a_corpus_may_be_a_link_to_a_shared_folder(session, corpus, pytester):
    # once: the option is resolved and the file is not, so that nothing is collected
    file, _ = corpus()
    file.parent.rename(pytester.path / "shared")
    (pytester.path / "reports/corpus").symlink_to(pytester.path / "shared")
    assert len(session(RIGHT)[1]) == 1


@pytest.mark.parametrize(
    ("option", "told"), [("--stabcheck-device=tpu", "unknown device 'tpu'"), ("--stabcheck-ledger=bad.toml", "bad.toml has 'x'")]
)
def test_wrong_use_is_told_in_one_line_where_there_is_a_corpus_too(session, corpus, pytester, option, told):
    # once: a traceback through the engine, since collecting a file does not catch it
    corpus()
    (pytester.path / "bad.toml").write_text("x = 1\n")
    shown = session(RIGHT, option)[0].stdout.str()
    assert told in shown and "stabcheck/plugin.py" not in shown


# ---- kernels that are not under test, laws that cannot run


def test_a_kernel_not_under_test_is_not_even_imported(session, corpus, pytester):
    corpus()
    pytester.makepyfile(kernels_found="open('imported', 'w').close()")
    _, (item,), _ = session("", kernels="stabcheck.kernels.logsumexp")
    assert (item["outcome"], item["reason"]) == (
        "skipped",
        "the reproducer's kernel is not under test: kernels_found is not among the targets",
    )
    assert not (pytester.path / "imported").exists()


def test_a_law_that_needs_a_gpu_is_not_put_to_it_without_one(session, corpus):
    file, _ = corpus()
    file.write_text(file.read_text().replace('"property": "normalisation"', '"property": "graph_replay"'))
    _, (item,), _ = session(RIGHT)
    assert (item["outcome"], item["reason"]) == ("skipped", "needs a GPU")


def test_a_kernel_that_is_gone_fails_and_says_so(session, corpus):
    corpus()
    ran, (item,), _ = session(RIGHT.replace("def fused", "def renamed"))
    assert (ran.ret, item["outcome"]) == (1, "failed")
    assert "has no function 'fused'; it has" in ran.stdout.str() and "stabcheck/corpus.py" not in ran.stdout.str()


def test_a_kernel_that_refuses_the_input_now_has_not_passed(session, corpus):
    corpus()
    refusing = RIGHT.replace("return p", 'raise stabcheck.UnsupportedInput("no")')
    (item,) = session(refusing)[1]
    assert item["outcome"] == "skipped" and "every input was refused" in item["reason"]


def test_the_kernel_of_a_suite_in_a_test_file_is_under_test(session, corpus, pytester):
    # once: only the targets of --stabcheck-kernels count, so that who adopted stabcheck.suite has a corpus that never runs
    corpus()
    suite = 'stabcheck.suite("temperature_softmax", fused, dtypes=["fp32"], properties=["normalisation"])'
    pytester.makepyfile(test_mine=f"import stabcheck\nfrom kernels_found import fused\ntest_mine = {suite}\n")
    _, (item,), _ = session("", places=["reports/corpus", "./test_mine.py"], kernels="stabcheck.kernels")
    assert item["outcome"] == "failed"


# ---- the ledger


def test_a_known_failure_does_not_fail_its_reproducer(session, corpus, pytester):
    corpus()
    (pytester.path / "stabcheck-ledger.toml").write_text(ENTRY.format(kind="wrong"))
    ran, (item,), (suite,) = session(WRONG)
    assert (ran.ret, item["outcome"], item["reason"], suite["outcome"]) == (0, "known", "https://example.com/1", "known")


def test_a_reproducer_that_passes_alone_is_no_unexpected_pass(session, corpus, pytester):
    corpus()
    (pytester.path / "stabcheck-ledger.toml").write_text(ENTRY.format(kind="wrong"))
    ran, (item,), _ = session(RIGHT, places=["reports/corpus"])
    assert (ran.ret, item["outcome"]) == (0, "passed")


def test_a_known_crash_is_not_launched_in_the_sessions_process(session, corpus, pytester, monkeypatch):
    # once: only the items of laws look for entries of kind crash or hang
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    monkeypatch.setenv("LEFT", "")
    corpus(RAISING)
    (pytester.path / "stabcheck-ledger.toml").write_text(ENTRY.format(kind="crash"))
    _, (item,), _ = session(LEAVING, places=["reports/corpus"])
    assert item["outcome"] == "known"
    assert os.environ["LEFT"] == ""


# ---- stabcheck replay --prune


@pytest.mark.parametrize(("kernel", "options", "code", "left"), [(RIGHT, [], 0, 2), (RIGHT, ["--prune"], 0, 0), (WRONG, ["--prune"], 1, 2)])
def test_replay_keeps_what_is_fixed_unless_asked_to_prune_and_what_is_not(corpus, pytester, capsys, kernel, options, code, left):
    file, _ = corpus()
    pytester.makepyfile(kernels_found=kernel)
    assert main(["replay", "reports/corpus", "--kernels", "kernels_found", "--device", "cpu", *options]) == code
    assert ("FIXED", "FAILED")[code] in capsys.readouterr().out and len(list(file.parent.iterdir())) == left
