"""The pytest plugin as a project meets it: options, header, summary, selection, xdist, and no weight where it is not used."""

import json
import re
import sys
from xml.etree import ElementTree

import pytest
from planted import LAWS, kernel
from planted import right as a_softmax

KERNELS = """
import torch, stabcheck

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def right(x, t):
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    return torch.softmax(z.double(), -1).to(x.dtype)

@stabcheck.kernel("temperature_softmax", dtypes=["fp32"])
def wrong(x, t):
    return right(x, t) * 1.05

def unregistered(x, t):
    return right(x, t)
"""
APPLY = {dtype: sum(dtype in law.dtypes and law.applies(kernel(a_softmax)) for law in LAWS.values()) for dtype in ("fp32", "bf16")}
BOTH, EACH = sum(APPLY.values()), APPLY["fp32"]  # laws put to a kernel in fp32 and bf16, and in fp32 alone
SUITES = """
import stabcheck
from kernels_here import right, wrong

test_right = stabcheck.suite("temperature_softmax", right, dtypes=["fp32", "bf16"])
test_wrong = stabcheck.suite("temperature_softmax", wrong, dtypes=["fp32"], properties=["accuracy", "monotone"])
"""


@pytest.fixture
def here(project, pytester, monkeypatch):
    """here(*options): a session in a project with a module of kernels and, unless told otherwise, no test file."""
    pytester.makepyfile(kernels_here=KERNELS)
    monkeypatch.syspath_prepend(pytester.path)

    def run(*options, tests=""):
        return project(tests, *options)

    return run


PROPERTIES = ["--pyargs", "stabcheck.properties", "--import-mode=importlib", "--stabcheck-kernels=kernels_here"]


def results(pytester, where="reports/latest"):
    return json.loads((pytester.path / where / "results.json").read_text())


# ---- collection


def test_a_suite_is_collected_under_its_name_by_property_and_dtype(here):
    shown = here("--collect-only", "-q", tests=SUITES).stdout.str()
    assert "::test_right[accuracy-fp32]" in shown
    assert "::test_right[accuracy-bf16]" in shown
    assert len(re.findall(r"::test_right\[", shown)) == BOTH
    assert re.findall(r"::test_wrong\[(.*)\]", shown) == ["accuracy-fp32", "monotone-fp32"]


def test_a_suite_without_the_name_of_a_test_is_not_collected(here):
    here(tests=SUITES.replace("test_right", "right_suite").replace("test_wrong", "wrong_suite")).assert_outcomes()


def test_the_properties_run_without_any_test_file(here):
    ran = here(*PROPERTIES, "-k", "right and (accuracy or monotone)")
    ran.assert_outcomes(passed=2, deselected=2 * EACH - 2)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [("accuracy", 3), ("bf16", APPLY["bf16"]), ("test_wrong", 2), ("accuracy and fp32", 2), ("not test_right", 2)],
)
def test_k_selects_by_each_part_of_the_name(here, expression, selected):
    shown = here("--collect-only", "-q", "-k", expression, tests=SUITES).stdout.str()
    assert len(re.findall(r"::test_\w+\[", shown)) == selected


def test_other_tests_of_the_project_run_as_ever(here):
    here(tests="def test_it():\n    assert True\n").assert_outcomes(passed=1)


# ---- options and their ini twins


@pytest.mark.parametrize("by", ["option", "ini"])
def test_kernels_and_report_directory_are_set(here, pytester, by):
    options = ["--pyargs", "stabcheck.properties", "--import-mode=importlib", "-k", "monotone and right"]
    if by == "ini":
        pytester.makeini("[pytest]\nstabcheck_kernels = kernels_here\nstabcheck_report_dir = elsewhere\n")
    else:
        options += ["--stabcheck-kernels=kernels_here", "--stabcheck-report-dir=elsewhere"]
    here(*options).assert_outcomes(passed=1, deselected=2 * EACH - 1)
    assert results(pytester, "elsewhere")["items"]


def test_an_option_beats_its_ini_twin(here, pytester):
    pytester.makeini("[pytest]\nstabcheck_report_dir = from_ini\n")
    here("--stabcheck-report-dir=from_option", "-k", "monotone and wrong", tests=SUITES)
    assert (pytester.path / "from_option/results.json").is_file()
    assert not (pytester.path / "from_ini").exists()


def test_an_unregistered_function_is_tested_as_the_operation_given(here):
    ran = here(
        *PROPERTIES[:-1], "--stabcheck-kernels=kernels_here:unregistered", "--stabcheck-operation=temperature_softmax", "-k", "monotone"
    )
    ran.assert_outcomes(passed=3, deselected=BOTH + APPLY["bf16"] - 3)


@pytest.mark.parametrize("profile", ["cpu", "gate"])
def test_a_profile_sets_the_number_of_examples(here, pytester, profile):
    here(f"--hypothesis-profile={profile}", "-k", "monotone and right and fp32", tests=SUITES).assert_outcomes(
        passed=1, deselected=BOTH + 1
    )
    assert results(pytester)["items"][0]["tally"]["examples"] == {"cpu": 10, "gate": 8}[profile]


def test_a_profile_of_the_projects_own_is_used(here, pytester):
    pytester.makeconftest("from hypothesis import settings\nsettings.register_profile('three', max_examples=3)\n")
    here("--hypothesis-profile=three", "-k", "monotone and right and fp32", tests=SUITES).assert_outcomes(passed=1, deselected=BOTH + 1)
    assert results(pytester)["items"][0]["tally"]["examples"] == 3


def test_the_gate_draws_the_same_examples_in_every_run(here, pytester):
    tallies = []
    for _ in range(2):
        here("--hypothesis-profile=gate", "-k", "monotone and right and fp32", tests=SUITES)
        tallies.append(results(pytester)["items"][0]["tally"])
    assert tallies[0] == tallies[1]


# ---- what is shown


def test_the_header_names_device_profile_and_versions(here):
    ran = here("-k", "monotone and right and fp32", tests=SUITES)
    ran.stdout.fnmatch_lines(["stabcheck: CPU (interpreter): logic only, not the GPU's arithmetic · profile cpu", "  torch * · triton *"])


def test_the_summary_tells_use_of_bounds_regimes_and_findings(here):
    ran = here(tests=SUITES)
    ran.stdout.fnmatch_lines(
        [
            "*= stabcheck =*",
            "kernel*dtype worst use of bound *examples *rows *elements *ill found",
            "temperature_softmax",
            "right  fp32 *",
            "wrong  fp32 *1",
            "rows by regime: *",
            "never drawn, temperature_softmax: *",
            f"BROKEN on CPU (interpreter): 1 finding in {BOTH - 8 + 2} trials: *",  # 4 per dtype do not run here
            "next: stabcheck replay reports/latest/??????.json --kernels kernels_here",
            "results  *results.json",
        ]
    )


def test_a_session_without_stabcheck_tests_shows_nothing_of_it(here):
    shown = here(tests="def test_it():\n    pass\n").stdout.str()
    assert "stabcheck:" not in shown
    assert "= stabcheck =" not in shown


def test_junit_carries_the_text_of_the_finding(here, pytester):
    here("--junitxml=junit.xml", "-k", "wrong and accuracy", tests=SUITES)
    (failure,) = ElementTree.parse(pytester.path / "junit.xml").iter("failure")
    (item,) = results(pytester)["items"]
    assert item["findings"][0]["text"] in failure.text


def test_results_json_is_strict_json_with_versions_and_profile(here, pytester):
    here("-k", "wrong", tests=SUITES)
    written = results(pytester)
    assert written["schema"] == "stabcheck-report/1"
    assert {"torch", "triton", "hypothesis", "python"} <= set(written["versions"])
    assert {item["outcome"] for item in written["items"]} == {"passed", "failed"}


# ---- wrong use


@pytest.mark.parametrize(
    ("options", "tests", "told"),
    [
        (
            (),
            'test_it = stabcheck.suite("temperature_softmax", right, properties=["acuracy"])',
            "unknown property 'acuracy' in suite test_it",
        ),
        ((), 'test_it = stabcheck.suite("softmx", right)', "unknown operation 'softmx'"),
        ((), 'test_it = stabcheck.suite("temperature_softmax", right, dtypes=["fp64"])', "unknown dtype 'fp64'"),
        (("--stabcheck-device=tpu",), 'test_it = stabcheck.suite("temperature_softmax", right)', "unknown device 'tpu'"),
        ((*PROPERTIES[:-1], "--stabcheck-kernels=no_such_module"), "", "cannot import no_such_module"),
        ((*PROPERTIES[:-1], "--stabcheck-kernels=kernels_here:nothing"), "", "kernels_here has no function 'nothing'; it has right, wrong"),
        ((*PROPERTIES[:-1], "--stabcheck-kernels=kernels_here:unregistered"), "", "say what it computes, e.g. --operation"),
    ],
    ids=["property", "operation", "dtype", "device", "module", "function", "unregistered"],
)
def test_wrong_use_is_told_in_one_line_and_exits_2_or_4(here, options, tests, told):
    ran = here(*options, tests=f"import stabcheck\nfrom kernels_here import right\n{tests}\n" if tests else "")
    shown = ran.stdout.str() + ran.stderr.str()
    assert ran.ret in (2, 4)
    assert told in shown
    assert "INTERNALERROR" not in shown
    assert "stabcheck/plugin.py" not in shown


# ---- a loss that everybody has

TORCHS = """
import stabcheck, torch

test_loss = stabcheck.suite(
    "cross_entropy", torch.nn.functional.cross_entropy, dtypes=["fp32"],
    policies={"masked_smoothing": "inf"}, options={"lse_square_scale": (0.0,), "softcap": (0.0,)},
)
"""


def test_torchs_own_cross_entropy_breaks_laws_by_what_it_makes_non_finite_only(project, pytester):
    """Its backward multiplies exp(NaN) with 0: an ignored row of NaN has a gradient of NaN; smoothed losses overflow in their sum."""
    ran = project(TORCHS)
    failed = [item for item in results(pytester)["items"] if item["outcome"] == "failed"]
    item = next(item for item in failed if item["property"] == "ignored_rows")
    assert {finding["kind"] for each in failed for finding in each["findings"]} == {"non-finite"}
    shown = ran.stdout.str()
    assert "  compared grad: ignored rows, every other of them NaN" in shown
    assert "  input    V = 1, target = 0, logits = [0]" in shown
    assert "next: stabcheck replay" in shown and "--kernels torch.nn.functional" in shown
    assert not item["tally"]["regimes"].keys() & {"softcap = 1.0", "softcap = 30.0", "lse_square_scale = 0.01"}


def test_a_seed_gives_each_law_examples_of_its_own(project, pytester):
    drawn = []
    for _ in range(2):
        project(TORCHS, "-k", "finiteness or range or determinism or isolation")
        drawn.append([item["tally"]["rows"] for item in results(pytester)["items"]])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4


def test_its_finding_replays_by_the_name_that_is_told(project, pytester, capsys):
    from stabcheck.cli import main

    project(TORCHS, "-k", "ignored_rows")
    (finding,) = results(pytester)["items"][0]["findings"]
    assert main(finding["replay"].split()[1:]) == 1
    assert f"FAILED  {finding['id']}" in capsys.readouterr().out


# ---- in processes of their own


THREE = """
from hypothesis import settings
settings.register_profile("three", max_examples=3, derandomize=True, database=None)
"""


@pytest.fixture
def outcome_of(here, pytester, monkeypatch):
    """outcome_of(*options): what a session in a process of its own counted, found and said."""
    pytest.importorskip("xdist")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    pytester.makeconftest(THREE)
    pytester.makepyfile(test_suites=SUITES)

    def run(*options):
        chosen = ["-k", "(right or wrong) and fp32 and (accuracy or monotone)"]
        ran = pytester.runpytest_subprocess("--stabcheck-device=cpu", "--hypothesis-profile=three", *chosen, *options)
        items = {item["test"].rpartition("::")[2]: item for item in results(pytester)["items"]}
        return {
            "ret": ran.ret,
            "outcomes": {k: n for k, n in ran.parseoutcomes().items() if k != "deselected"},  # the workers do not say
            "examples": {name: item["tally"]["examples"] for name, item in items.items() if item["outcome"] == "passed"},
            "findings": sorted(f["id"] for item in items.values() for f in item["findings"]),
            "verdict": [line.rpartition(":")[0] for line in ran.outlines if line.startswith("BROKEN on")],
            "header": [line for line in ran.outlines if line.startswith("stabcheck: CPU (interpreter): logic only")],
        }

    return run


def test_xdist_gives_the_same_counts_findings_and_header(outcome_of):
    none, two = outcome_of("-n", "0"), outcome_of("-n", "2")
    assert (len(none["examples"]), len(none["findings"]), len(none["header"])) == (3, 1, 1)
    assert two == none


def test_a_project_that_does_not_use_it_pays_nothing(pytester):
    pytester.makepyfile("import sys\n\ndef test_it():\n    assert not {'torch', 'triton', 'hypothesis', 'numpy'} & set(sys.modules)\n")
    assert "stabcheck" in sys.modules
    pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:xdist").assert_outcomes(passed=1)


TRITON_SUITE = """
import stabcheck, torch, triton
import triton.language as tl

@triton.jit
def softmax_row(x, t, out, V, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    row = tl.load(x + tl.program_id(0) * V + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
    e = tl.exp((row - tl.max(row, 0)) / tl.load(t + tl.program_id(0)))
    tl.store(out + tl.program_id(0) * V + cols, e / tl.sum(e, 0), mask=cols < V)

def fused(x, t):
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.shape[0]:
        softmax_row[(x.shape[0],)](x, t, out, x.shape[1], triton.next_power_of_2(x.shape[1]))
    return out

test_fused = stabcheck.suite("temperature_softmax", fused, dtypes=["fp32"], properties=["normalisation"])
"""


def test_three_lines_are_enough_for_a_triton_kernel_without_a_gpu(pytester, monkeypatch):
    """The test module imports the kernel, and so decorates it, before any law is collected."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pytester.makepyfile(TRITON_SUITE)
    ran = pytester.runpytest_subprocess()
    ran.assert_outcomes(passed=1)
