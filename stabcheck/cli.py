"""The command line: run, replay, gate, report, list, doctor, mutants, bench.

Exit codes: 0 held, 1 finding or loss of accuracy, 2 wrong use, 3 could not run, 4 stale ledger or baseline.
"""

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
BUILT_IN = "stabcheck.kernels"


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

    targets, more = _split([*(targets or []), *context.args])
    raise typer.Exit(run_suites(targets, operation, device, profile, report_dir, more))


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """(targets, what goes to pytest): the first option ends the targets."""
    first_option = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:first_option], words[first_option:]


@app.command()
def replay(
    what: Annotated[list[str] | None, typer.Argument(help="Ids, files or directories. Default: all in the report directory.")] = None,
    kernels: Annotated[
        list[str] | None, typer.Option(help="Targets a reproducer may import; module:function stands in for its kernel.")
    ] = None,
    device: DeviceOption = "auto",
    report_dir: ReportDir = LATEST,
    prune: Annotated[bool, typer.Option("--prune", help="Delete those that are fixed, instead of keeping them as tests.")] = False,
) -> None:
    """Run reproducers again: FIXED, FAILED or ERROR each; exit 0 if all are fixed, 1 if one failed, 2 on an error."""
    from stabcheck.sessions import replay_all

    for target in kernels or []:
        if (place := target.partition(":")[0]).endswith(".py") and not Path(place).is_file():
            raise UsageError(f"--kernels {target}: there is no file {place}; check the path, which starts from the current directory")
    console = Console(soft_wrap=True, highlight=False)
    raise typer.Exit(replay_all(what or [str(report_dir)], kernels or [], device, report_dir, console, prune))


@app.command(context_settings=PASS_ON)
def gate(
    context: typer.Context,
    targets: Annotated[list[str] | None, typer.Argument(help="Kernels, as for run. Default: stabcheck's own.")] = None,
    operation: Annotated[str, typer.Option(help="What a function named as a target computes, if it is not registered.")] = "",
    device: DeviceOption = "auto",
    report_dir: ReportDir = LATEST,
    corpus: Annotated[Path, typer.Option(help="Committed reproducers, replayed first.")] = Path("reports/corpus"),
    ledger: Annotated[Path, typer.Option(help="Known failures, each with a link to its issue.")] = Path("stabcheck-ledger.toml"),
    baselines: Annotated[Path, typer.Option(help="Accuracy baselines, by architecture.")] = Path("reports/baselines"),
    changed_since: Annotated[str, typer.Option(help="Only kernels whose source, or what it imports, changed since this revision.")] = "",
    update: Annotated[bool, typer.Option("--update", help="Record baselines that are new or better.")] = False,
    update_all: Annotated[bool, typer.Option("--update-all", help="Record worse ones too; each is printed.")] = False,
    no_mutants: Annotated[bool, typer.Option("--no-mutants", help="Leave out the self-test on kernels broken on purpose.")] = False,
) -> None:
    """Yes or no to a change of kernels: corpus, properties, ledger, baselines, reports. Exit 0 pass, 1 finding or loss of accuracy,
    2 wrong use, 3 could not run, 4 stale ledger or baseline. Options it does not know go to pytest: -k, -n 2, …"""
    from stabcheck.gate import Gate, run_gate

    targets, more = _split([*(targets or []), *context.args])
    renewed = "all" if update_all else "better" if update else ""
    asked = Gate(
        tuple(targets) or (BUILT_IN,), operation, device, report_dir, corpus, ledger, baselines, changed_since, renewed, not no_mutants
    )
    raise typer.Exit(run_gate(asked, more, Console(soft_wrap=True, highlight=False)))


@app.command()
def report(
    results: Annotated[list[Path] | None, typer.Argument(help="results.json of a run. Default: the latest.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the results of several shards or hosts.")] = False,
    bench: Annotated[list[Path] | None, typer.Option(help="Benches to show, files or directories. Default: reports/bench.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: beside the results; joined ones: reports/merged.")] = None,
) -> None:
    """The reports of results, anew or joined: report.html, a page that opens offline, and gate.md. Exits as the run they speak of did."""
    from stabcheck.report import run_report

    raise typer.Exit(run_report(results or [], merge, bench or [], out, Console(soft_wrap=True, highlight=False)))


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
        str | None,
        typer.Argument(
            show_default="softmax",
            help="softmax, logsumexp, token_logprob, cross_entropy, filtered_probs, sample, verify_speculative, or all of them; or "
            "engine: examples a second of the toolkit itself; or power: that the laws with statistics find what they are sized for.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the JSON and Markdown tables.")] = None,
    peers: Annotated[list[str] | None, typer.Option(help="Only these peers, e.g. --peers 'torch eager'.")] = None,
    compare: Annotated[Path | None, typer.Option(help="JSON of an earlier bench, or a directory of them: print the ratios to it.")] = None,
    new: Annotated[Path | None, typer.Option("--with", help="Compare this file or directory instead of measuring; needs no GPU.")] = None,
) -> None:
    """Time the kernels beside their peers, the device's copy bandwidth and the floor. Needs a GPU."""
    from stabcheck.bench import named, run_benches
    from stabcheck.power import show_power
    from stabcheck.ratios import compare_files
    from stabcheck.throughput import measure as measure_engine

    console = Console(soft_wrap=True)
    if what in ("engine", "power") and (compare or new):
        raise UsageError(f"{what} times no kernel, so --compare has nothing to say of it; leave it away, or name an operation")
    if new and (out or peers or not compare):
        raise UsageError(f"--with {new} measures nothing; give it --compare BASE.json, and neither --out nor --peers")
    if what == "engine":
        measure_engine("auto", out, console)
    elif what == "power":
        raise typer.Exit(show_power(out, console))
    elif new and compare:
        compare_files(compare, new, "" if what in (None, "all") else named(str(what))[0].name, Console(highlight=False))
    else:
        code = run_benches(what or "softmax", out_dir=out, peers=peers or [], compare=compare, console=Console(highlight=False))
        raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; wrong use ends in one line on standard error and 2."""
    for stream in (sys.stdout, sys.stderr):  # whatever the locale, a symbol it cannot show must not end the run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
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
