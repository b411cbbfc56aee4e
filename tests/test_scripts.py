"""The standalone script fails on the kernel it is about and passes on a right one, without stabcheck where it can."""

import os
import subprocess
import sys
from pathlib import Path

import planted
import pytest
from planted import CPU, LAWS, recipe, recipe_of
from planted_losses import LOGPROB, LOSS

from stabcheck.recipe import Layout
from stabcheck.registry import make_kernel
from stabcheck.reproducers import save
from stabcheck.targets import load
from stabcheck.trial import Trial

KERNELS = """
import itertools, torch

def good(x, t):
    z = (x.float() - x.float().amax(-1, keepdim=True)) / t[:, None]
    return torch.softmax(z.double(), -1).to(x.dtype)

def good_in_place(x, t):
    return x.copy_(good(x, t))

def bad(x, t):
    return good(x, t) * 1.05

def bad_with_padding(x, t):
    return good(x, t) * (1.05 if x.stride(0) != x.shape[1] else 1)

def bad_in_place(x, t):
    return x.copy_(bad(x, t))

shake = itertools.cycle((1.0, 1.01))

def shaky(x, t):
    return good(x, t) * next(shake)

def scribbles(x, t):
    p = good(x, t)
    x.zero_()
    return p

def raises(x, t):
    raise RuntimeError("out of shared memory")

def loss(x, target, **options):
    return torch.nn.functional.cross_entropy(x.double(), target, **options).float()

def loss_with_a_wrong_gradient(x, target, **options):
    x = x.double()
    return loss(1.05 * x - (0.05 * x).detach(), target, **options)

def logprob(x, labels, t):
    p = torch.distributions.Categorical(logits=x.double() / t[:, None])
    return p.log_prob(labels).float(), p.entropy().float()

def wrong_entropy(x, labels, t):
    return logprob(x, labels, t)[0], logprob(x, labels, t)[1] * 1.05
"""
LOSS_ROWS = [0.0, 1.0, 88.7], [2.0, 0.0, 1.0], [5.0, 5.0, -3.0]


@pytest.fixture
def script(tmp_path, at_home, monkeypatch):
    """script(function, law, recipe): the path of the script of the finding."""
    (tmp_path / "own_kernels.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_kernels", raising=False)
    import own_kernels

    def write(function, law="accuracy", start=None, **functions):
        start = start or recipe([0.0, 1.0])
        declared = {name: getattr(own_kernels, value) for name, value in functions.items()}
        kernel = make_kernel(start.operation, getattr(own_kernels, function), **declared)
        trial = Trial(kernel, LAWS[law], start.dtype, CPU)
        return tmp_path / save(trial.finding(start, trial.examine(start)), kernel, tmp_path).files[1]

    return write


def start(path, *arguments, where=None, without_stabcheck=True):
    """Run a script as its reader would; a module `stabcheck` that cannot be imported stands in the way."""
    if without_stabcheck:
        (path.parent / "stabcheck.py").write_text("raise ImportError('stabcheck is not installed here')\n")
    environment = os.environ | {"PYTHONPATH": str(path.parent), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(path), *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=where or path.parent, timeout=120)


def run(path, *arguments, **how):
    done = start(path, *arguments, **how)
    return done.returncode, done.stdout + done.stderr


def test_it_fails_on_the_bad_kernel_and_passes_on_another(script):
    path = script("bad")
    status, shown = run(path)
    assert (status, "WRONG in 2 elements" in shown) == (1, True), shown
    status, shown = run(path, "own_kernels:good")
    assert (status, "right" in shown) == (0, True), shown


@pytest.mark.parametrize(
    ("function", "law", "start", "functions"),
    [
        ("bad_with_padding", "accuracy", recipe([0.0, 1.0], [2.0, 0.0], layout=Layout(3, 2, 5)), {}),
        ("good", "in_place", recipe([0.0, 1.0]), {"in_place": "bad_in_place"}),
        ("shaky", "determinism", recipe([0.0, 1.0]), {}),
        ("bad", "accuracy", recipe([0.0, planted.inf * -1, 88.7], [planted.nan, 0.0, 1.0], temperature=[0.1, 1e-39], dtype="bf16"), {}),
    ],
    ids=["padded", "in place", "determinism", "special values"],
)
def test_it_runs_the_kernel_as_the_law_did(script, function, law, start, functions):
    path = script(function, law, start, **functions)
    status, shown = run(path)
    assert status == 1, shown
    file = path.parent / "own_kernels.py"
    status, shown = run(path, f"{file}:{'good_in_place' if law == 'in_place' else 'good'}")
    assert status == 0, shown


@pytest.mark.parametrize(
    ("law", "function", "functions"),
    [("routes", "good", {}), ("masking", "bad", {}), ("layout", "bad_with_padding", {})],
    ids=["routes", "masking", "layout"],
)
def test_it_shows_the_failure_of_laws_that_vary_the_input(script, at_home, law, function, functions, monkeypatch):
    """These laws fail on another input, or another function, than the recipe's own: the script must show the same failure."""
    import own_kernels

    if law == "routes":
        monkeypatch.setattr(own_kernels, "routes", {"bad": own_kernels.bad}, raising=False)
        functions = {"routes": "routes"}
    path = script(function, law, recipe([0.0, 1.0, 2.0], [2.0, 0.0, 1.0]), **functions)
    assert run(path, without_stabcheck=False)[0] == 1


@pytest.mark.parametrize(
    ("bad", "good", "start", "shown_once"),
    [
        (
            "loss_with_a_wrong_gradient",
            "loss",
            recipe_of(
                LOSS,
                *LOSS_ROWS,
                inputs={"target": [0, 2, -1], "upstream": 0.5},
                options={"ignore_index": 2, "label_smoothing": 0.1, "reduction": "mean"},
                layout=Layout(3),
            ),
            "WRONG in 6 elements",  # of the gradient, two rows of three
        ),
        (
            "wrong_entropy",
            "logprob",
            recipe_of(LOGPROB, *LOSS_ROWS, inputs={"labels": [0, 2, 1], "temperature": 0.7}),
            "WRONG in 2 elements",
        ),
    ],
    ids=["a gradient, with options", "two outputs"],
)
def test_it_judges_every_output(script, bad, good, start, shown_once):
    path = script(bad, start=start)
    status, shown = run(path)
    assert (status, shown.count(shown_once)) == (1, 1), shown
    status, shown = run(path, f"own_kernels:{good}")
    assert status == 0, shown


def test_a_crash_crashes_or_fails(script):
    status, shown = run(script("raises"))
    assert status == 1, shown
    assert "out of shared memory" in shown


def test_a_memory_fault_is_judged_by_stabcheck_itself(script):
    path = script("scribbles", "memory")
    assert "from stabcheck" in path.read_text()
    status, shown = run(path, without_stabcheck=False)
    assert status == 1, shown
    status, shown = run(path, "own_kernels:good", without_stabcheck=False)
    assert status == 0, shown


def test_the_script_says_what_it_is_about(script):
    text = script("bad").read_text()
    assert text.startswith("# BROKEN  accuracy")
    assert "exit status: 0 right, 1 still wrong, 125 the kernel cannot be loaded (git bisect run then skips the commit)" in text


def test_an_unusual_text_does_not_break_the_script(script, monkeypatch):
    r"""A kernel's message may hold quotes and backslashes."""
    import own_kernels

    def raises(x, t):
        raise RuntimeError('path C:\\new """quoted""" \\N{dash}')

    raises.__module__, raises.__qualname__ = "own_kernels", "raises"
    monkeypatch.setattr(own_kernels, "raises", raises)
    compile(script("raises").read_text(), "script", "exec")


# ---- from elsewhere, and where the kernel does not load


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.fixture
def in_a_file(tmp_path, at_home, monkeypatch):
    """in_a_file(law, function): the script, in reports/latest, of a finding on a kernel of kernels/naive.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/naive.py").write_text(KERNELS)

    def write(law="accuracy", function="bad"):
        (kernel,) = load([f"kernels/naive.py:{function}"], "temperature_softmax")
        trial, about = Trial(kernel, LAWS[law], "fp32", CPU), recipe([0.0, 1.0])
        return tmp_path / save(trial.finding(about, trial.examine(about)), kernel, Path("reports/latest")).files[1]

    return write


BY_ITSELF, THROUGH_STABCHECK = ("accuracy", "bad"), ("memory", "scribbles")


@pytest.mark.parametrize("about", [BY_ITSELF, THROUGH_STABCHECK], ids=["by itself", "through stabcheck"])
def test_it_finds_the_kernel_from_any_directory(in_a_file, elsewhere, about):
    path = in_a_file(*about)
    assert ("from stabcheck" in path.read_text()) == (about is THROUGH_STABCHECK)
    status, shown = run(path, where=elsewhere, without_stabcheck=about is BY_ITSELF)
    assert status == 1, shown
    assert f"the kernel is of {elsewhere.parent / 'kernels/naive.py'}" in shown


def test_the_kernel_may_import_what_lies_beside_it(in_a_file, elsewhere):
    path, kernels = in_a_file(), elsewhere.parent / "kernels"
    (kernels / "beside_it.py").write_text((kernels / "naive.py").read_text())
    (kernels / "naive.py").write_text("from beside_it import bad, good\n")
    assert run(path, where=elsewhere)[0] == 1
    status, shown = run(path, "kernels/naive.py:good", where=elsewhere.parent)
    assert status == 0, shown


def test_a_file_of_that_path_right_here_goes_first(in_a_file, elsewhere):
    path = in_a_file()
    (elsewhere / "kernels").mkdir()
    (elsewhere / "kernels/naive.py").write_text(KERNELS.replace("1.05", "1"))
    status, shown = run(path, where=elsewhere)
    assert status == 0, shown


def test_a_module_right_here_is_found(in_a_file, elsewhere):
    (elsewhere / "mended.py").write_text(KERNELS)
    status, shown = run(in_a_file(), "mended:good", where=elsewhere)
    assert status == 0, shown


MISSING = {
    "no.such:thing": "No module named 'no'",
    "nofile.py:thing": "No such file or directory: ",
    "own_kernels:nope": "has no attribute 'nope'",
    "own_kernels": "has no attribute ''",
    "own_kernels:KERNELS": "has no attribute 'KERNELS'",
    "own_kernels:shake": "TypeError: shake is no function",
    "broken.py:good": "ValueError: no such device",
    "leaves.py:good": "SystemExit: 0",
}


@pytest.mark.parametrize("target", MISSING)
def test_a_kernel_that_cannot_be_loaded_is_told_in_one_line_and_125(script, target):
    path = script("bad")
    (path.parent / "broken.py").write_text("raise ValueError('no such\\ndevice')\n")
    (path.parent / "leaves.py").write_text("raise SystemExit(0)\n")
    done = start(path, target)
    assert (done.returncode, done.stdout) == (125, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot load {target}: ") and MISSING[target] in line
    assert line.endswith(f"; name one that loads: python {path} FILE.py:FUNCTION or MODULE:FUNCTION")


def test_its_own_kernel_gone_is_125_too(in_a_file, elsewhere):
    path = in_a_file()
    (elsewhere.parent / "kernels/naive.py").unlink()
    done = start(path, where=elsewhere)
    assert (done.returncode, done.stdout) == (125, ""), done
    assert "cannot load kernels/naive.py:bad: FileNotFoundError: " in done.stderr


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no.such:thing", "cannot import no.such:thing: ModuleNotFoundError: No module named 'no'"),
        ("nofile.py:thing", "there is no file nofile.py; check the path"),
        ("nofile.py", "there is no file nofile.py; check the path"),
        ("own_kernels:nope", "own_kernels has no function 'nope'"),
    ],
)
def test_stabcheck_cannot_load_it_either(script, target, told):
    done = start(script("scribbles", "memory"), target, without_stabcheck=False)
    assert (done.returncode, done.stdout) == (125, ""), done
    (line,) = done.stderr.splitlines()
    assert told in line


def test_without_stabcheck_where_it_is_needed_nothing_is_judged(script):
    done = start(script("scribbles", "memory"))
    assert (done.returncode, done.stdout) == (125, ""), done
    assert done.stderr == ("cannot load stabcheck: ImportError: stabcheck is not installed here; install it where this script runs\n")


def test_without_torch_nothing_is_judged(script):
    path = script("bad")
    (path.parent / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = start(path)
    assert (done.returncode, done.stderr) == (125, "cannot load torch: ImportError: no torch here; install it where this script runs\n")
