"""Findings on what is kept, drawn and accepted fail again from their files, with the noise and the pools of the kernel they are about."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from planted import CPU, LAWS, kernel
from planted_sampling import SAMPLE, VERIFY, probs_of, rows_of

from stabcheck.errors import UsageError
from stabcheck.reproducers import kernel_of, read, replay, save
from stabcheck.targets import function_of, load
from stabcheck.trial import Trial

KERNELS = """
import stabcheck, torch
import planted_sampling as planted

def own_noise(seed, position, vocab, role=0):
    return planted.noise(seed, position, vocab, role)

def by_slot(*args):
    return planted.pooled_by_slot(*args)

def by_index(*args):
    return planted.pooled(*args)

def bare(*args):
    return planted.sampler(of_ids=planted.second_best)(*args)

NOISE = {"noise": own_noise, "noise_error": 2.0**-22}

@stabcheck.kernel("filtered_probs")
def keeps_one_more(x, t, k, p, m):
    return planted.right_filter(x, t, torch.where(k > 0, k + 1, k), p, m)

@stabcheck.kernel("filtered_probs")
def keeps(*args):
    return planted.right_filter(*args)

@stabcheck.kernel("sample", **NOISE)
def draws_the_second(*args):
    return bare(*args)

@stabcheck.kernel("sample", pooled=by_slot, **NOISE)
def reads_by_slot(*args):
    return planted.right_sampler(*args)

@stabcheck.kernel("sample", pooled=by_index, **NOISE)
def draws(*args):
    return planted.right_sampler(*args)

@stabcheck.kernel("verify_speculative")
def accepts_nothing_for_nothing(*args):
    return planted.verifier(lambda coin, p, q: coin * q <= p)(*args)

@stabcheck.kernel("verify_speculative")
def verifies(*args):
    return planted.right_verifier(*args)
"""
SEVERAL = rows_of(SAMPLE, *[[0.0] * 5] * 4, seed=[1, 2, 3, 4])
REPLAYED = [
    ("keep_set", probs_of([2.0, 1.0, 0.0], top_k=1), "keeps_one_more", "keeps"),
    ("exact_noise", SEVERAL, "draws_the_second", "draws"),
    ("isolation", SEVERAL, "reads_by_slot", "draws"),
    ("masked_never_drawn", rows_of(VERIFY, [0.0, 1.0, 2.0], draft=1, drafts=2), "accepts_nothing_for_nothing", "verifies"),
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file of kernels of its own name, at home in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(KERNELS)
    return "own.py"


def saved(made, law, start, directory):
    """The file of a finding."""
    examined = Trial(made, LAWS[law], "fp32", CPU)
    outcome = examined.examine(start)
    assert not outcome.ok
    return directory / f"{save(examined.finding(start, outcome), made, directory).id}.json"


def loaded(place, name):
    return next(k for k in load([place]) if k.name == name)


@pytest.mark.parametrize(("law", "start", "faulty", "good"), REPLAYED)
def test_a_finding_fails_again_and_a_right_kernel_is_told_fixed(tmp_path, own, law, start, faulty, good):
    again = read(saved(loaded(own, faulty), law, start, tmp_path))
    assert replay(again, kernel_of(again, [own]), CPU).id == again.id
    assert replay(again, kernel_of(again, [f"{own}:{good}"]), CPU) is None


def test_the_functions_and_the_noise_of_a_kernel_that_is_not_registered_come_back(tmp_path, own):
    functions = {name: function_of(f"{own}:{target}") for name, target in (("noise", "own_noise"), ("pooled", "by_index"))}
    made = kernel(function_of(f"{own}:bare"), SAMPLE, noise_error=2.0**-22, **functions)
    file = saved(made, "exact_noise", SEVERAL, tmp_path)
    assert json.loads(file.read_text())["functions"] == {"noise": f"{own}:own_noise", "pooled": f"{own}:by_index"}
    back = kernel_of(read(file), [own])
    assert (back.noise, back.pooled, back.noise_error) == (made.noise, made.pooled, made.noise_error)
    assert replay(read(file), back, CPU).id == file.stem


def test_a_kernel_without_noise_cannot_stand_in_where_the_law_needs_it(tmp_path, own):
    file = saved(loaded(own, "draws_the_second"), "exact_noise", SEVERAL, tmp_path)
    with pytest.raises(UsageError, match="declares no noise"):
        replay(read(file), kernel_of(read(file), [f"{own}:bare"]), CPU)


def test_its_script_says_1_for_the_kernel_it_is_about_and_0_for_a_right_one(tmp_path, own):
    file = saved(loaded(own, "draws_the_second"), "exact_noise", SEVERAL, tmp_path)
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})
    script = str(file.with_name(f"repro_{file.stem}.py"))
    codes = [run([sys.executable, script, *more]).returncode for more in ([], [f"{own}:draws"])]
    assert codes == [1, 0]


def test_a_registered_kernel_whose_noise_is_from_another_module_fails_again_too(tmp_path, own):
    with open(own, "a") as file:
        file.write('\nstabcheck.kernel("sample", name="borrows", noise=planted.noise, noise_error=2.0**-22)(draws_the_second)\n')
    again = read(saved(loaded(own, "borrows"), "exact_noise", SEVERAL, tmp_path))
    assert replay(again, kernel_of(again, [own]), CPU).id == again.id
