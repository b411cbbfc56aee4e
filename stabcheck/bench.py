"""Speed: a kernel beside its peers, a copy of the same bytes and the floor, all in one run on one device.

Times are medians in µs on the device, its launches included, with the 20th and 80th percentile; `host` is what issuing the call costs the
CPU, which a CUDA graph saves. The floor is what moving the bytes that must be moved takes at the copy bandwidth measured in the same run;
no launch (about 4 µs) is in it, so only large inputs come near. Compare ratios: they hold from run to run.
Another operation is another `Benchmark` in `stabcheck.benchmarks`: data, no code here changes. Times published elsewhere are shown as such.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console

from stabcheck import devices, ratios
from stabcheck.benchmarks import BENCHMARKS
from stabcheck.errors import UsageError
from stabcheck.points import Benchmark, Point, Run

NO_GPU = "bench times kernels on a GPU and torch sees none here; run it on a machine with one"
ONLY_WRITTEN = ("copy", "ours / copy", "our host", "our memory")  # columns of the files that the terminal does not show
WARM_UP, REPEATS = 10, 100


@dataclass(frozen=True)
class Timing:
    """Median and spread on the device, and the median on the host, in µs; `memory` is the most a call allocates, in units of the logits."""

    median: float
    p20: float
    p80: float
    host: float
    memory: float = 0.0


@dataclass
class Line:
    """What was measured at one point; `copy` moves the same bytes. `missing` says why a peer has no time."""

    point: Point
    floor: float
    copy: Timing
    ours: Timing
    variants: dict[str, Timing] = field(default_factory=dict)
    peers: dict[str, Timing] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)  # not measured here

    @property
    def ratios(self) -> dict[str, float | None]:
        """Our time as a part of others'; below 1 is faster."""
        fastest = min((t.median for t in self.peers.values()), default=None)
        others = {"fastest peer": fastest, "floor": self.floor, "copy": self.copy.median}
        return {f"ours / {name}": us and round(self.ours.median / us, 3) for name, us in others.items()}


def run_benches(what: str, *, out_dir: Path | None, peers: Sequence[str], compare: Path | None, console: Console) -> int:
    """`stabcheck bench WHAT`: measure an operation, or all, one after another; returns the exit code.

    Raises
    ------
    UsageError: an operation or a peer it does not know; a base that is missing, damaged or of another operation.
    """
    benchmarks = named(what, peers)
    bases = ratios.load(compare, benchmarks[0].name if what != "all" else "") if compare else []
    if not devices.gpu_available():
        print(f"stabcheck: {NO_GPU}", file=sys.stderr)
        return 3
    model = devices.describe("cuda").model
    beside = [ratios.counterpart(bases, b.name, model) for b in benchmarks]  # read before --out may write over them
    for benchmark, base in zip(benchmarks, beside, strict=True):
        now = bench(benchmark, out_dir=out_dir, peers=peers, console=console)
        if base:
            ratios.show(base, now, console)
        elif compare:
            console.print(f"{benchmark.name}: not compared, {compare} holds no bench of it", markup=False, soft_wrap=True)
    return 0


def named(what: str, peers: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmark of an operation, or all. Raises UsageError for a name that is not known, of a peer too."""
    if what != "all" and what not in BENCHMARKS:
        raise UsageError(f"no benchmark of {what!r}; there is one of {', '.join(BENCHMARKS)}, and all")
    found = list({b.name: b for b in BENCHMARKS.values()}.values()) if what == "all" else [BENCHMARKS[what]]
    known = dict.fromkeys(name for b in found for name in b.peers)
    for name in peers:
        if name not in known:
            raise UsageError(f"unknown peer {name!r}; {what} knows {', '.join(known)}")
    return found


def bench(
    benchmark: Benchmark, *, out_dir: Path | None, peers: Sequence[str] = (), console: Console, points: Sequence[Point] = ()
) -> ratios.Document:
    """Measure an operation beside some peers or all; print the table; write `<operation>-<device>.json`, which it returns, and `.md`."""
    chosen = {name: load for name, load in benchmark.peers.items() if not peers or name in peers}
    bandwidth = _copy_bandwidth()
    lines = []
    for point in points or benchmark.points:
        lines.append(_measure(benchmark, point, chosen, bandwidth))
        console.print(f"{point.dtype} {point.rows} × {point.vocab}: ours {lines[-1].ours.median:.1f} µs", style="dim")
    cells = [_cells(line, list(chosen)) for line in lines]
    shown = [{name: text for name, text in row.items() if name not in ONLY_WRITTEN and not name.endswith("†")} for row in cells]
    ratios.show_table(shown, console)
    about = _about(benchmark, bandwidth)
    document = about | {"points": [asdict(line) | line.ratios for line in lines]}
    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
        stem = ratios.stem(about["operation"], about["device"])
        (out_dir / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
        (out_dir / f"{stem}.md").write_text(_markdown(about, lines, cells))
    return document


def _about(benchmark: Benchmark, bandwidth: float) -> dict[str, Any]:
    device = devices.describe("cuda")
    about: dict[str, Any] = {"schema": ratios.SCHEMA, "operation": benchmark.name, "device": device.model, "arch": device.arch}
    about |= {"floor": benchmark.moves, "copy_tb_per_s": round(bandwidth / 1e12, 3)}
    about |= {"published": benchmark.published_where} if benchmark.published else {}
    return about | {"command": f"stabcheck bench {benchmark.name} --out reports/bench", **devices.versions()}


def _measure(benchmark: Benchmark, point: Point, peers: dict[str, Callable[[], Run]], bandwidth: float) -> Line:
    inputs = benchmark.inputs(point)
    moved = benchmark.moved(inputs)
    copy = _time_copy(moved // 2)
    kept = inputs[0].detach().clone() if benchmark.overwrites else None

    def timed(run: Run) -> Timing:
        return _time(lambda: run(*inputs), inputs[0].detach(), kept)

    line = Line(point, moved / bandwidth * 1e6, copy, timed(benchmark.ours), {n: timed(run) for n, run in benchmark.variants.items()})
    for name, load in peers.items():
        try:
            line.peers[name] = timed(load())
        except Exception as error:  # not installed, or not for this shape: neither must end the run
            line.missing[name] = why_missing(error)
    line.published = benchmark.published.get(point, {})
    return line


def why_missing(error: Exception) -> str:
    """Why a peer has no time, in one line, without the place on this machine that Python adds where a module lacks a name."""
    told = str(error).partition("\n")[0]
    return f"absent: {told.removesuffix(f' ({error.path})')}" if isinstance(error, ImportError) else f"failed: {told}"


def _time(run: Callable[[], Any], logits: torch.Tensor | None = None, kept: torch.Tensor | None = None) -> Timing:
    """Time a call that finds the L2 cache cleared, as `triton.testing.do_bench` does, and the logits as they were kept.

    A clearing takes the device 0.25 ms (do_bench: 0.06). As many are made as take longer than issuing the call: a slow host would else be
    timed in place of the device.
    """
    memory = 0.0 if logits is None else _memory(run) / logits.nbytes
    cache = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    device: list[float] = []
    host: list[float] = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for i in range(WARM_UP + REPEATS):
        if logits is not None and kept is not None:
            logits.copy_(kept)
        for _ in range(1 if i < WARM_UP else 1 + int(median(host[:WARM_UP]) / 125)):
            cache.zero_()
        start.record()
        begin = time.perf_counter()
        run()
        host.append((time.perf_counter() - begin) * 1e6)
        end.record()
        end.synchronize()
        device.append(start.elapsed_time(end) * 1e3)
    p20, _, _, p80 = quantiles(device[WARM_UP:], n=5)
    return Timing(*(round(number, 2) for number in (median(device[WARM_UP:]), p20, p80, median(host[WARM_UP:]), memory)))


def _memory(run: Callable[[], Any]) -> int:
    """Bytes a call has allocated at its peak, its results included; the first call, which may compile, does not count."""
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def _copy_bandwidth() -> float:
    """Bytes read and written per second by a copy that is large beside every cache."""
    return 2 * (1 << 30) / _time_copy(1 << 30).median * 1e6


def _time_copy(size: int) -> Timing:
    source, target = torch.empty((2, size), dtype=torch.uint8, device="cuda")
    return _time(lambda: target.copy_(source))


def _cells(line: Line, peers: list[str]) -> dict[str, str]:
    """The line as its table shows it: column -> text."""
    times = {name: f"{line.peers[name].median:.1f}" if name in line.peers else line.missing[name].partition(":")[0] for name in peers}
    return {
        "dtype": line.point.dtype,
        "V": str(line.point.vocab),
        "rows": str(line.point.rows),
        "ours (20–80 %)": f"{line.ours.median:.1f} ({line.ours.p20:.1f}–{line.ours.p80:.1f})",
        **{name: f"{timing.median:.1f}" for name, timing in line.variants.items()},
        **times,
        **{f"{name} †": f"{us:.1f}" for name, us in line.published.items()},
        "copy": f"{line.copy.median:.1f}",
        "floor": f"{line.floor:.1f}",
        **{name: f"{ratio:.2f}" if ratio else "" for name, ratio in line.ratios.items()},
        "our host": f"{line.ours.host:.0f}",
        "our memory": " / ".join(f"{timing.memory:.2f}" for timing in (line.ours, *line.variants.values())),
    }


def _markdown(about: dict[str, Any], lines: list[Line], cells: list[dict[str, str]]) -> str:
    rows = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    missing = sorted({f"{name}: {why}" for line in lines for name, why in line.missing.items()})
    notes = [f"† published, not measured in this run: {about['published']}"] if "published" in about else []
    return f"""# {about["operation"]} on {about["device"]} ({about["arch"]})

µs, medians on the device, launches included, the L2 cache cleared before each call; torch {about["torch"]}, triton {about["triton"]}.
`floor` is {about["floor"]} moved at {about["copy_tb_per_s"]} TB/s (a copy of 1 GiB, read + write), without a
launch; `copy` is a copy of the same bytes, with one; `our host` is what issuing our call costs the CPU; `our memory` is the most it had
allocated, results included, in units of the logits' size.
Again: `{about["command"]}`

{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

{chr(10).join(f"- {line}" for line in notes + missing)}
"""
