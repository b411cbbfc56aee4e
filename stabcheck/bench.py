"""Speed: a kernel beside its peers, a copy of the same bytes and the floor, all in one run on one device.

Times are medians in µs on the device, its launches included, with the 20th and 80th percentile; `host` is what issuing the call costs the
CPU, which a CUDA graph saves. The floor is what reading each input byte once and writing each output byte once takes at the copy bandwidth
measured in the same run; no launch (about 4 µs) is in it, so only large inputs come near. Compare ratios: they hold from run to run.
Another operation is another `Benchmark`: data, no code here changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from stabcheck.devices import describe, gpu_available, versions
from stabcheck.errors import UsageError
from stabcheck.floats import by_name

Make = Callable[..., torch.Tensor]
WARM_UP, REPEATS = 10, 100


@dataclass(frozen=True)
class Point:
    """One line of the table."""

    dtype: str
    vocab: int
    rows: int


@dataclass(frozen=True)
class Benchmark:
    """What is timed for one operation.

    inputs: the operation's inputs at a point, on the GPU.
    ours: called with the inputs; returns what each peer returns.
    peers: name -> loader, called afresh at each point; returns the function to time, or raises ImportError where it is not installed.
    """

    name: str
    points: tuple[Point, ...]
    inputs: Callable[[Point], tuple[torch.Tensor, ...]]
    ours: Make
    peers: dict[str, Callable[[], Make]]


@dataclass(frozen=True)
class Timing:
    """Median and spread on the device, and the median on the host, in µs."""

    median: float
    p20: float
    p80: float
    host: float


@dataclass
class Line:
    """What was measured at one point; `copy` moves the same bytes. `missing` says why a peer has no time."""

    point: Point
    floor: float
    copy: Timing
    ours: Timing
    peers: dict[str, Timing] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float | None]:
        """Our time as a part of others'; below 1 is faster."""
        fastest = min((t.median for t in self.peers.values()), default=None)
        others = {"fastest peer": fastest, "floor": self.floor, "copy": self.copy.median}
        return {f"ours / {name}": us and round(self.ours.median / us, 3) for name, us in others.items()}


def _softmax_inputs(point: Point) -> tuple[torch.Tensor, ...]:
    logits = (torch.randn(point.rows, point.vocab, device="cuda") * 5).to(by_name(point.dtype).torch)
    return logits, torch.rand(point.rows, device="cuda") + 0.5


def _fused_softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    from stabcheck.kernels.softmax import softmax

    return softmax(logits, temperature)  # type: ignore[no-any-return]


def _torch_softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits / temperature.to(logits.dtype)[:, None], -1)


def _compiled_softmax() -> Make:
    torch._dynamo.reset()
    return torch.compile(_torch_softmax, dynamic=False)


def _flashinfer_softmax() -> Make:
    from flashinfer.sampling import softmax

    return softmax  # type: ignore[no-any-return]


def _liger_softmax() -> Make:
    from liger_kernel.ops.softmax import LigerSoftmaxFunction

    return lambda logits, temperature: LigerSoftmaxFunction.apply(logits / temperature.to(logits.dtype)[:, None])


SOFTMAX = Benchmark(
    name="softmax",
    points=tuple(Point(d, v, r) for d in ("bf16", "fp32") for v in (32000, 128256, 151936) for r in (1, 8, 32, 128, 512)),
    inputs=_softmax_inputs,
    ours=_fused_softmax,
    peers={
        "torch eager": lambda: _torch_softmax,
        "torch.compile": _compiled_softmax,
        "flashinfer": _flashinfer_softmax,
        "liger-kernel": _liger_softmax,
    },
)
BENCHMARKS = {"softmax": SOFTMAX, "temperature_softmax": SOFTMAX}


def bench(
    operation: str,
    *,
    out_dir: Path | None,
    points: Sequence[Point] | None = None,
    peers: tuple[str, ...] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure an operation; print the table; write `<operation>-<device>.json` and `.md` to `out_dir`.

    Raises
    ------
    UsageError: no GPU, or an operation or peer it does not know.
    """
    if operation not in BENCHMARKS:
        raise UsageError(f"no benchmark of {operation!r}; there is one of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[operation]
    for name in peers or ():
        if name not in benchmark.peers:
            raise UsageError(f"unknown peer {name!r}; {benchmark.name} knows {', '.join(benchmark.peers)}")
    if not gpu_available():
        raise UsageError("bench times kernels on a GPU and torch sees none here; run it on a machine with one")
    console = console or Console(highlight=False)
    chosen = {name: load for name, load in benchmark.peers.items() if peers is None or name in peers}
    bandwidth = _copy_bandwidth()
    lines = []
    for point in points or benchmark.points:
        lines.append(_measure(benchmark, point, chosen, bandwidth))
        console.print(f"{point.dtype} {point.rows} × {point.vocab}: ours {lines[-1].ours.median:.1f} µs", style="dim")
    cells = [_cells(line, list(chosen)) for line in lines]
    table = Table(*cells[0], box=SIMPLE, padding=0)
    for row in cells:
        table.add_row(*row.values())
    console.print(table)
    if out_dir:
        device = describe("cuda")
        about = {"operation": benchmark.name, "device": device.model, "arch": device.arch, "copy_tb_per_s": round(bandwidth / 1e12, 3)}
        about |= {"command": f"stabcheck bench {benchmark.name} --out reports/bench", **versions()}
        _write(out_dir, about, lines, cells)
    return [asdict(line) | line.ratios for line in lines]


def _measure(benchmark: Benchmark, point: Point, peers: dict[str, Callable[[], Make]], bandwidth: float) -> Line:
    inputs = benchmark.inputs(point)
    output = benchmark.ours(*inputs)
    moved = sum(t.nbytes for t in (*inputs, output))
    source, target = torch.empty((2, moved // 2), dtype=torch.uint8, device="cuda")
    line = Line(point, moved / bandwidth * 1e6, _time(lambda: target.copy_(source)), _time(lambda: benchmark.ours(*inputs)))
    for name, load in peers.items():
        try:
            peer = load()
            line.peers[name] = _time(lambda peer=peer: peer(*inputs))  # type: ignore[misc]
        except Exception as error:  # not installed, or not for this shape: neither must end the run
            line.missing[name] = f"{'absent' if isinstance(error, ImportError) else 'failed'}: {str(error).partition(chr(10))[0]}"
    return line


def _time(run: Callable[[], Any]) -> Timing:
    """Time a call that finds the L2 cache cleared, as `triton.testing.do_bench` does."""
    cache = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    device, host = [], []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(WARM_UP + REPEATS):
        cache.zero_()  # 0.25 ms, where do_bench takes 0.06: a slow host, issuing two launches, would else be timed in place of the device
        start.record()
        begin = time.perf_counter()
        run()
        host.append((time.perf_counter() - begin) * 1e6)
        end.record()
        end.synchronize()
        device.append(start.elapsed_time(end) * 1e3)
    p20, _, _, p80 = quantiles(device[WARM_UP:], n=5)
    return Timing(*(round(us, 2) for us in (median(device[WARM_UP:]), p20, p80, median(host[WARM_UP:]))))


def _copy_bandwidth() -> float:
    """Bytes read and written per second by a copy that is large beside every cache."""
    source, target = torch.empty((2, 1 << 30), dtype=torch.uint8, device="cuda")
    return 2 * (1 << 30) / _time(lambda: target.copy_(source)).median * 1e6


def _cells(line: Line, peers: list[str]) -> dict[str, str]:
    """The line as its table shows it: column -> text."""
    times = {name: f"{line.peers[name].median:.1f}" if name in line.peers else line.missing[name].partition(":")[0] for name in peers}
    return {
        "dtype": line.point.dtype,
        "V": str(line.point.vocab),
        "rows": str(line.point.rows),
        "ours (20–80 %)": f"{line.ours.median:.1f} ({line.ours.p20:.1f}–{line.ours.p80:.1f})",
        **times,
        "copy": f"{line.copy.median:.1f}",
        "floor": f"{line.floor:.1f}",
        **{name: f"{ratio:.2f}" if ratio else "" for name, ratio in line.ratios.items()},
        "our host": f"{line.ours.host:.0f}",
    }


def _write(out_dir: Path, about: dict[str, Any], lines: list[Line], cells: list[dict[str, str]]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    stem = out_dir / f"{about['operation']}-{about['device'].lower().removeprefix('nvidia ').replace(' ', '-')}"
    stem.with_suffix(".json").write_text(json.dumps({**about, "points": [asdict(line) | line.ratios for line in lines]}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(_markdown(about, lines, cells))


def _markdown(about: dict[str, Any], lines: list[Line], cells: list[dict[str, str]]) -> str:
    rows = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    missing = sorted({f"{name}: {why}" for line in lines for name, why in line.missing.items()})
    return f"""# {about["operation"]} on {about["device"]} ({about["arch"]})

µs, medians on the device, launches included, the L2 cache cleared before each call; torch {about["torch"]}, triton {about["triton"]}.
`floor` is each input byte read once and each output byte written once at {about["copy_tb_per_s"]} TB/s (a copy of 1 GiB, read + write),
without a launch; `copy` is a copy of the same bytes, with one; `our host` is what issuing our call costs the CPU.
Again: `{about["command"]}`

{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

{chr(10).join(f"- {line}" for line in missing)}
"""
