"""The command line: run, replay, list, doctor, mutants, bench. Exit codes: 0 held, 1 finding, 2 wrong use, 3 could not run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stabcheck.errors import UsageError

app = typer.Typer(name="stabcheck", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
DeviceOption = Annotated[str, typer.Option(help="auto, cpu (through Triton's interpreter), cuda or cuda:N.")]
ReportDir = Annotated[Path, typer.Option(help="Where findings, reproducers and results are written.")]
LATEST = Path("reports/latest")


@app.command(context_settings=PASS_ON)
def run(
    context: typer.Context,
    targets: Annotated[
        list[str] | None, typer.Argument(help="Kernels: module, package, file.py or file.py:function. Default: stabcheck's own.")
    ] = None,
    operation: Annotated[str, typer.Option(help="What a function named as a target computes, if it is not registered.")] = "",
    device: DeviceOption = "auto",
    profile: Annotated[str, typer.Option(help="Hypothesis profile: cpu, gpu, gate, soak or your own. Default: by device.")] = "",
    report_dir: ReportDir = LATEST,
) -> None:
    """Check kernels against every property. Options it does not know go to pytest: -k, -x, --lf, -n 2, --junitxml=…"""
    from stabcheck.sessions import run_suites

    words = [*(targets or []), *context.args]
    first_option = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    raise typer.Exit(run_suites(words[:first_option], operation, device, profile, report_dir, words[first_option:]))


@app.command()
def replay(
    what: Annotated[list[str] | None, typer.Argument(help="Ids, files or directories. Default: the latest findings.")] = None,
    kernels: Annotated[
        list[str] | None, typer.Option(help="Targets a reproducer may import; module:function stands in for its kernel.")
    ] = None,
    device: DeviceOption = "auto",
    report_dir: ReportDir = LATEST,
) -> None:
    """Run reproducers again: FIXED, FAILED or ERROR each; exit 0 if all are fixed, 1 if one failed, 2 on an error."""
    from stabcheck.sessions import replay_all

    raise typer.Exit(replay_all(what or [str(report_dir)], kernels or [], device, report_dir, Console(soft_wrap=True, highlight=False)))


@app.command("list")
def list_() -> None:
    """Operations, kernels and properties."""
    from stabcheck.tables import show_all

    show_all(Console())


@app.command()
def doctor() -> None:
    """What can run here, and the next command."""
    from stabcheck.doctor import examine

    raise typer.Exit(examine(Console(highlight=False, soft_wrap=True)))


@app.command()
def mutants(
    only: Annotated[list[str] | None, typer.Argument(help="Ids of mutants, such as SM4. Default: all.")] = None,
    device: DeviceOption = "auto",
    report_dir: ReportDir = LATEST,
) -> None:
    """Prove that the properties can fail: every kernel broken on purpose must be killed by a law named for it, and shrink small."""
    from stabcheck.mutants import run_mutants

    raise typer.Exit(run_mutants([m.upper() for m in only or []], device, report_dir, Console(file=sys.stdout)))


@app.command()
def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="softmax, logsumexp, token_logprob, cross_entropy, filtered_probs, sample, verify_speculative; or "
            "engine: examples a second of the toolkit itself; or power: that the laws with statistics find what they are sized for."
        ),
    ] = "softmax",
    out: Annotated[Path | None, typer.Option(help="Directory for the JSON and Markdown tables.")] = None,
    peers: Annotated[list[str] | None, typer.Option(help="Only these peers, e.g. --peers 'torch eager'.")] = None,
) -> None:
    """Time the kernels beside their peers, the device's copy bandwidth and the floor. Needs a GPU."""
    from stabcheck.bench import bench as measure
    from stabcheck.devices import gpu_available
    from stabcheck.power import show_power
    from stabcheck.throughput import measure as measure_engine

    if what == "engine":
        measure_engine("auto", out, Console(soft_wrap=True))
        raise typer.Exit(0)
    if what == "power":
        raise typer.Exit(show_power(out, Console(soft_wrap=True)))
    if not gpu_available():
        print("stabcheck: bench times kernels on a GPU and torch sees none here; run it on a machine with one", file=sys.stderr)
        raise typer.Exit(3)
    measure(what, out_dir=out, peers=tuple(peers) if peers else None, console=Console())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; wrong use ends in one line on standard error and 2."""
    try:
        return int(app(args=list(arguments) if arguments is not None else None, standalone_mode=False) or 0)
    except UsageError as error:
        print(f"stabcheck: {error}", file=sys.stderr)
        return 2
    except typer.Exit as leave:
        return int(leave.exit_code)
    except Exception as error:  # click's own usage errors and aborts carry their exit code
        if not hasattr(error, "exit_code"):
            raise
        error.show()  # type: ignore[attr-defined]
        return int(error.exit_code)
