"""`stabcheck doctor`: what can run here, tried rather than assumed, and the next command."""

from __future__ import annotations

import importlib.util

from rich.console import Console

from stabcheck.devices import describe, gpu_available, prepare, versions

PEERS = ("flashinfer", "liger_kernel", "fla")
HELPERS = ("xdist", "mpmath")


def examine(console: Console) -> int:
    """Print one line per fact; 0 if a kernel runs here, 3 if none does."""
    for name, version in versions().items():
        console.print(f"{name:<11} {version}", markup=False)
    name = prepare("auto")
    console.print(
        f"device      {describe(name)}"
        + ("" if gpu_available() else ": kernels run through Triton's interpreter, which shows logic, not GPU arithmetic")
    )
    for package in (*PEERS, *HELPERS):
        console.print(f"{package:<11} {'installed' if importlib.util.find_spec(package) else 'absent'}", markup=False)
    problem = _try_kernel(name)
    if problem:
        console.print(f"a kernel    does not run: {problem}", markup=False)
        return 3
    console.print("a kernel    ran and gave the right answer")
    console.print("next        stabcheck run", markup=False)
    return 0


def _try_kernel(device: str) -> str:
    """Run our softmax on two elements; what went wrong, or an empty text."""
    import torch

    try:
        from stabcheck.kernels.softmax import softmax

        got = softmax(torch.zeros(1, 2, device=device), torch.ones(1, device=device))
    except Exception as error:  # anything may be wrong with an installation; say what
        return f"{type(error).__name__}: {error}"
    return "" if got.tolist() == [[0.5, 0.5]] else f"softmax([0, 0]) gave {got.tolist()}"
