"""The device that runs, and what is said of it."""

import fcntl
import os
from types import SimpleNamespace

import pytest
import torch

from stabcheck.devices import GPU, INTERPRETER, Device, alone, crowded, describe, give_back, out_of_memory, prepare, versions
from stabcheck.errors import UsageError
from stabcheck.profiles import EXAMPLES, settings_for


@pytest.fixture
def gpu(monkeypatch):
    """gpu(bool): whether torch sees one."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    return lambda there: monkeypatch.setattr("stabcheck.devices.gpu_available", lambda: there)


@pytest.mark.parametrize(
    ("there", "choice", "name", "interprets"),
    [
        (True, "auto", "cuda", "0"),
        (False, "auto", "cpu", "1"),
        (True, "cpu", "cpu", "1"),
        (True, "cuda:1", "cuda:1", "0"),
        (False, "cpu", "cpu", "1"),
    ],
)
def test_the_choice_is_resolved_and_the_interpreter_switched_on_for_the_cpu(gpu, there, choice, name, interprets):
    gpu(there)
    assert prepare(choice) == name
    assert os.environ["TRITON_INTERPRET"] == interprets


@pytest.mark.parametrize(
    ("there", "choice", "told"), [(True, "tpu", "unknown device 'tpu'"), (True, "", "unknown device"), (False, "cuda", "sees no GPU")]
)
def test_a_device_that_is_not_there_is_told(gpu, there, choice, told):
    gpu(there)
    with pytest.raises(UsageError, match=told):
        prepare(choice)


def test_the_cpu_says_interpreter():
    assert str(describe("cpu")) == "CPU (interpreter)"
    assert describe("cpu").profile is INTERPRETER
    assert not describe("cpu").is_gpu


def test_profiles_are_no_looser_than_their_sources():
    """A constant raised without a source would hide bugs. docs.nvidia.com/cuda/parallel-thread-execution: ex2.approx, div.full."""
    assert (GPU.exp, GPU.divide, GPU.log2e, GPU.bf16_store) == (4.0, 4.0, 2.0, 1.0)


def test_versions_name_what_a_result_depends_on():
    assert set(versions()) == {"python", "torch", "triton", "hypothesis", "numpy"}


@pytest.mark.parametrize(
    ("profile", "on_gpu", "examples"), [(None, False, "cpu"), (None, True, "gpu"), ("gate", False, "gate"), ("soak", True, "soak")]
)
def test_the_profile_is_the_one_asked_for_or_the_devices_own(profile, on_gpu, examples):
    settings = settings_for(profile, on_gpu, 1.0)
    assert settings.max_examples == EXAMPLES[examples]
    assert settings.deadline is None
    assert settings.derandomize == (profile == "gate")


@pytest.mark.parametrize(("weight", "examples"), [(2.0, 20), (0.25, 2), (0.001, 1)])
def test_a_laws_weight_multiplies_the_examples(weight, examples):
    assert settings_for("cpu", False, weight).max_examples == examples


@pytest.fixture
def one_gpu(monkeypatch, tmp_path):
    """A GPU of 80 bytes, of which one_gpu.free are free; what is called is listed."""
    state = SimpleNamespace(free=80, reserved=0, calls=[])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: SimpleNamespace(uuid="a1"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: state.calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda name: state.reserved)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (state.free, 80))
    state.device, state.locked = Device("cuda", "H", "sm_90", GPU), lambda: _locked(tmp_path)
    return state


def _locked(folder):
    (file,) = folder.glob("stabcheck-*-a1.lock")
    with open(file, "w") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_trial_that_needs_the_memory_keeps_others_out_and_leaves_nothing_in_the_cache(one_gpu):
    with pytest.raises(ZeroDivisionError), alone(one_gpu.device):
        assert one_gpu.locked() and one_gpu.calls == ["empty"]
        _ = 1 / 0
    assert not one_gpu.locked() and one_gpu.calls == ["empty"] * 2


def test_the_cpu_has_no_lock(one_gpu, tmp_path):
    with alone(describe("cpu")):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "own", "told"), [(39, 0, True), (40, 0, False), (80, 0, False), (20, 20, False), (20, 19, True)])
def test_a_gpu_is_crowded_when_others_hold_more_than_half(one_gpu, free, own, told):
    one_gpu.free, one_gpu.reserved = free, own
    assert crowded(one_gpu.device) is told


@pytest.mark.parametrize("where", ["beside a trial that needs the memory", "after any trial"])
def test_a_lost_context_does_not_take_the_finding_with_it(one_gpu, monkeypatch, where):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    one_gpu.reserved = 1 << 31
    with pytest.raises(ZeroDivisionError), alone(one_gpu.device):
        give_back(one_gpu.device)
        _ = 1 / 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CUDA out of memory. Tried to allocate 53.00 GiB", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: out of memory", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("out of resource: shared memory, Required: 300000", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_who_says_that_memory_ran_out(text, told):
    assert out_of_memory(RuntimeError(text)) is told


@pytest.mark.parametrize(("reserved", "called"), [(1 << 30, []), ((1 << 30) + 1, ["empty"])])
def test_a_large_cache_is_given_back_to_the_other_workers(one_gpu, reserved, called):
    one_gpu.reserved = reserved
    give_back(one_gpu.device)
    assert one_gpu.calls == called


def test_the_cpu_is_never_crowded():
    assert not crowded(describe("cpu"))
