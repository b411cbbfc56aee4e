"""Devices: where kernels run, what is known of the arithmetic there, and whether Triton interprets or compiles.

A profile holds the error constants of the elementary functions a kernel may use, in units of u = 2^-24 (fp32's unit roundoff; an error of
n ulp is at most 2n·u relative). NVIDIA's are those of the PTX ISA manual: ex2.approx.f32 and div.full.f32 have a maximum error of 2 ulp;
lg2.approx.f32 is off by 2^-22 = 4u at most, absolutely for arguments in [0.5, 2] and relatively beyond, and ln 2 and the product with it
add 2u. Triton's `tl.exp(z)` is ex2.approx(z·log2 e); its `/` is div.full; its `tl.log` is at least as good as lg2.approx.
A tanh made of one exponential, 1 − 2/(exp(2|x|) + 1) beyond |x| = 0.625 and a polynomial below, is worst at the seam: there the quotient is
0.8 of the result and e^(2|x|) 0.78 of its denominator, so (0.78·(exp + 1.25·(1 + log2e)) + divide + 1)·0.8 + 1 ≈ 10u.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stabcheck.errors import UsageError

U = 2.0**-24  # unit roundoff of fp32, in which kernels compute
FLUSH = 2.0**-126  # below this magnitude fp32 hardware may return zero


@dataclass(frozen=True)
class Profile:
    """Error constants of one kind of device, in units of u except `bf16_store`."""

    name: str
    exp: float  # relative error of one exponential, its argument exact
    divide: float  # relative error of one division
    log2e: float = 2.0  # the constant log2 e rounded, and the product with it
    log: float = 6.0  # relative error of a logarithm with its constant, for results beyond ln 2
    log_near_one: float = 2.8  # absolute error of a logarithm near 1: 4u·ln 2
    tanh: float = 10.0  # relative error of a hyperbolic tangent
    bf16_store: float = 1.0  # error of storing bf16 in its unit roundoffs: 1 rounds to nearest, 2 truncates
    sums_in_any_order: bool = False  # a row may be added one term after another, whatever the kernel declares


GPU = Profile("NVIDIA, PTX ISA manual", exp=4.0, divide=4.0)
# numpy's SIMD expf states 2.52 ulp and its logf 3.83; IEEE division; the interpreter truncates fp32 to bf16 when it stores.
INTERPRETER = Profile("CPU, Triton interpreter", exp=5.04, divide=1.0, log=7.66, log_near_one=0.0, bf16_store=2.0, sums_in_any_order=True)


@dataclass(frozen=True)
class Device:
    """One device as verdicts and reports name it."""

    name: str  # what torch calls it: "cuda", "cuda:1", "cpu"
    model: str  # "NVIDIA H200"
    arch: str  # "sm_90", or "interpreter"
    profile: Profile

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"

    def __str__(self) -> str:
        return f"{self.model} ({self.arch})"


def seconds(device: Device) -> float:
    """A clock for budgets: on the CPU this thread's own time, so that a busy machine shrinks as far as an idle one."""
    return time.monotonic() if device.is_gpu else time.thread_time()


def gpu_available() -> bool:
    """Whether torch sees a CUDA device. Imports torch."""
    import torch

    return bool(torch.cuda.is_available())


def prepare(choice: str) -> str:
    """Resolve "auto" | "cpu" | "cuda[:n]" and switch Triton's interpreter on for the CPU; call it before any kernel module is imported."""
    name = choice
    if choice == "auto":
        name = "cuda" if gpu_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"unknown device {choice!r}; use auto, cpu, cuda or cuda:N")
    if name != "cpu" and not gpu_available():
        raise UsageError(f"device {choice!r} asked for, but torch sees no GPU; use cpu to run through Triton's interpreter")
    if name == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return name


@contextmanager
def alone(device: Device) -> Iterator[None]:
    """On a GPU, one process of this user at a time: for trials that need much of its memory. Torch's cache is empty before and after."""
    import torch

    if not device.is_gpu:
        yield
        return
    name = f"stabcheck-{os.getuid()}-{torch.cuda.get_device_properties(device.name).uuid}.lock"
    with open(Path(tempfile.gettempdir(), name), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a process that dies gives it back
        _empty_cache()
        try:
            yield
        finally:
            _empty_cache()
            fcntl.flock(file, fcntl.LOCK_UN)


def give_back(device: Device) -> None:
    """What torch's cache holds beyond a GiB goes back to the GPU, which other workers may share."""
    import torch

    if device.is_gpu and torch.cuda.memory_reserved(device.name) > 1 << 30:
        _empty_cache()


def _empty_cache() -> None:
    import torch

    with suppress(RuntimeError):  # the context is lost after a crash, which must be told
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether torch, Triton, the driver or a library says that device memory ran out; shared memory is another matter."""
    return "out of memory" in str(error) or "ALLOC_FAILED" in str(error)


def crowded(device: Device) -> bool:
    """Whether others hold more than half of a GPU's memory: that an allocation fails then says nothing about a kernel."""
    import torch

    if not device.is_gpu:
        return False
    free, total = torch.cuda.mem_get_info(device.name)
    return total - free - torch.cuda.memory_reserved(device.name) > total / 2


@lru_cache(maxsize=8)
def describe(name: str) -> Device:
    """The device behind a name `prepare` returned."""
    if name == "cpu":
        return Device("cpu", "CPU", "interpreter", INTERPRETER)
    import torch

    properties = torch.cuda.get_device_properties(name)
    return Device(name, properties.name, f"sm_{properties.major}{properties.minor}", GPU)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import importlib.metadata as metadata
    import platform

    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("torch", "triton", "hypothesis", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found
