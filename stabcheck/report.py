"""`stabcheck report`: the page and the Markdown of results, of one run or joined from several; the gate writes its reports through here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from stabcheck import ratios
from stabcheck.errors import UsageError
from stabcheck.markdown import COMMENT, markdown
from stabcheck.results import Report, judgement, load, write
from stabcheck.views import Bench

LATEST, MERGED, BENCHES = Path("reports/latest/results.json"), Path("reports/merged"), Path("reports/bench")
DRAWERS = ("jinja2", "matplotlib")  # the extra `report`


def run_report(files: Sequence[Path], merge: bool, benches: Sequence[Path], out: Path | None, console: Console) -> int:
    """Write the reports of results, and the joined results if asked; the exit code of their verdict.

    Raises
    ------
    UsageError: a damaged file, several without being asked to join them, or results that would be overwritten by the joined ones.
    """
    sources = list(files) or [LATEST]
    if len(sources) > 1 and not merge:
        raise UsageError(f"{len(sources)} files of results: add --merge to join them, or name one")
    if merge and not files:
        raise UsageError("--merge joins the files it is given, and there are none; name the results.json of each shard or host")
    directory = out or (MERGED if merge else sources[0].parent)
    joined = directory / "results.json"
    if merge and joined.resolve() in [source.resolve() for source in sources]:
        raise UsageError(f"the joined results would overwrite {joined}; choose another directory with --out")
    report, times = load(sources), find_benches(benches)
    with _writing(directory):
        written = [write(report, joined)] if merge else []
    written += write_reports(report, directory, times)
    code, verdict = judgement(report)
    for line in (verdict, *(f"  {path}" for path in written)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def find_benches(paths: Sequence[Path] = ()) -> list[Bench]:
    """The benches in these files and directories, or those in reports/bench, where what is none is passed over.

    Raises
    ------
    UsageError: one that was named is missing or damaged.
    """
    if paths:
        return [bench for path in paths for bench in ratios.load(path)]
    return [bench for path in sorted(BENCHES.glob("*.json")) for bench in _if_any(path)]


def _if_any(path: Path) -> list[Bench]:
    try:
        return ratios.load(path)
    except UsageError:
        return []


def write_reports(report: Report, directory: Path, benches: Sequence[Bench] = ()) -> list[Path]:
    """Write report.html and gate.md; where what draws the page is missing, the Markdown alone, and to standard error how to get the page.

    Raises
    ------
    UsageError: nothing can be written there.
    """
    texts = {"gate.md": markdown(report, benches, limit=COMMENT)}
    with _writing(directory):
        try:
            from stabcheck.html import html

            texts["report.html"] = html(report, benches)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] not in DRAWERS:
                raise
            print(f"no report.html: {error.name} is not installed; for the page, pip install 'stabcheck[report]'", file=sys.stderr)
            (directory / "report.html").unlink(missing_ok=True)  # that of an earlier run
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in texts]


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}; choose another directory with --out") from error
