"""The standalone script fails on the kernel it is about and passes on a right one, without stabcheck where it can."""

import os
import subprocess
import sys

import planted
import pytest
from planted import CPU, LAWS, recipe, recipe_of
from planted_losses import LOGPROB, LOSS

from stabcheck.recipe import Layout
from stabcheck.registry import make_kernel
from stabcheck.reproducers import save
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


def run(path, *arguments, without_stabcheck=True):
    """Run a script as its reader would; a module `stabcheck` that cannot be imported stands in the way."""
    if without_stabcheck:
        (path.parent / "stabcheck.py").write_text("raise ImportError('stabcheck is not installed here')\n")
    environment = os.environ | {"PYTHONPATH": str(path.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, env=environment, cwd=path.parent, timeout=120
    )
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
    assert "exit status: 0 right, 1 still wrong" in text


def test_an_unusual_text_does_not_break_the_script(script, monkeypatch):
    r"""A kernel's message may hold quotes and backslashes."""
    import own_kernels

    def raises(x, t):
        raise RuntimeError('path C:\\new """quoted""" \\N{dash}')

    raises.__module__, raises.__qualname__ = "own_kernels", "raises"
    monkeypatch.setattr(own_kernels, "raises", raises)
    compile(script("raises").read_text(), "script", "exec")
