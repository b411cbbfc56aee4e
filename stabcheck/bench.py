"""Speed: a kernel beside its peers, a copy of the same bytes and the floor, all in one run on one device.

Times are `triton.testing.do_bench` medians in µs, launch included, with the 20th and 80th percentile. The floor is what reading each input
byte once and writing each output byte once takes at the copy bandwidth measured in the same run; the launch (about 4 µs) is not in it, so
it can be approached by large inputs only. Compare ratios, not times: they hold from run to run.

Another operation is another `Benchmark`: data, no code here changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from stabcheck.devices import describe, gpu_available, versions
from stabcheck.errors import UsageError
from stabcheck.floats import by_name

Run = Callable[[], Any]
Make = Callable[..., torch.Tensor]


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
    """Median and spread in µs."""

    median: float
    p20: float
    p80: float


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
    def fastest(self) -> str:
        """Name of the fastest peer; empty if none ran."""
        return min(self.peers, key=lambda name: self.peers[name].median, default="")

    @property
    def ratios(self) -> dict[str, float | None]:
        """Our time as a part of others'; below 1 is faster."""
        others = {"fastest peer": self.peers[self.fastest].median if self.peers else None, "floor": self.floor, "copy": self.copy.median}
        return {f"ours / {name}": time and round(self.ours.median / time, 3) for name, time in others.items()}


def _softmax_inputs(point: Point) -> tuple[torch.Tensor, ...]:
    shape = (point.rows, point.vocab)
    logits = (torch.randn(shape, device="cuda") * 5).to(by_name(point.dtype).torch)
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

    return lambda logits, temperature: softmax(logits, temperature)


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
    for i, point in enumerate(points or benchmark.points, 1):
        lines.append(_measure(benchmark, point, chosen, bandwidth))
        console.print(f"{i:3} {point.dtype} {point.rows} × {point.vocab}: ours {lines[-1].ours.median:.1f} µs", style="dim")
    cells = [_cells(line, list(chosen)) for line in lines]
    table = Table(*cells[0])
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
        except ImportError as error:
            line.missing[name] = f"absent: {error}"
        except Exception as error:  # a peer that cannot do this shape must not end the run
            line.missing[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return line


def _time(run: Run) -> Timing:
    """Median and percentiles in µs; the L2 cache is cleared before each repetition."""
    from triton.testing import do_bench

    run()
    median, p20, p80 = do_bench(run, warmup=15, rep=60, quantiles=[0.5, 0.2, 0.8])
    return Timing(*(round(ms * 1e3, 2) for ms in (median, p20, p80)))


def _copy_bandwidth() -> float:
    """Bytes read and written per second by a copy that is large beside every cache."""
    source, target = torch.empty((2, 1 << 30), dtype=torch.uint8, device="cuda")
    return float(2 * source.nbytes / _time(lambda: target.copy_(source)).median * 1e6)


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

µs, medians of `triton.testing.do_bench`, launch included; torch {about["torch"]}, triton {about["triton"]}. `floor` is each input byte
read once and each output byte written once at {about["copy_tb_per_s"]} TB/s, at which a copy of 1 GiB ran (read + write), without a launch;
`copy` is a measured copy of the same bytes, with one. Again: `{about["command"]}`

{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

{chr(10).join(f"- {line}" for line in missing)}
"""
