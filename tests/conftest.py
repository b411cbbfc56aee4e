"""Shared by all tests: Triton's interpreter where torch sees no GPU, the planted kernels on the path, and pytest sessions to look at."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers fill the cores

import numpy.fft  # noqa: F401  # a nested session forgets what it imported first, and this cannot be imported twice
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
sys.path.append(str(Path(__file__).parent))  # for `planted`

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws does not depend on the run, nor on the tests before it."""
    for generator in (torch.default_generator, *torch.cuda.default_generators):
        generator.manual_seed(0)  # torch.manual_seed imports dynamo, which no process can import again after pytester forgot it


@pytest.fixture
def at_home(monkeypatch):
    """Leaves the environment and the randomness of this process as they were, whatever a nested session does."""
    import triton
    from hypothesis import configuration, core

    from stabcheck import items, mutants, summary

    assert triton and items and mutants and summary  # imported here, or nested sessions would import them anew and forget them
    monkeypatch.setattr(core, "global_force_seed", None)
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))
    yield
    configuration.set_hypothesis_home_dir(None)


@pytest.fixture
def project(at_home, pytester):
    """project(test_file, *options): run a user's test file in a pytest session of its own, in this process, on the CPU."""

    def run(test_file, *options, seed="--hypothesis-seed=0"):
        pytester.makepyfile(test_file)
        return pytester.runpytest_inprocess("-p", "no:xdist", "--stabcheck-device=cpu", *filter(None, [seed]), *options)

    return run
