"""`stabcheck report`: what it reads, joins and writes, how it ends, and what it says when something is not there."""

import json
import sys
from pathlib import Path

import pytest
import report_data as data

from stabcheck.cli import main
from stabcheck.errors import UsageError
from stabcheck.report import find_benches, write_reports
from stabcheck.results import counts, judgement, load, write

for needed in ("jinja2", "matplotlib"):
    pytest.importorskip(needed, reason="the page needs the extra `report`")

HOME = Path(__file__).parents[1]
LATEST = Path("reports/latest/results.json")
HELD = data.report(data.item())


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """cli(*words): (exit code, standard output, standard error), in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main(["report", *map(str, words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def only_line(text):
    (line,) = text.strip().splitlines()
    return line


# ---- one run


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (HELD, 0),
        (data.report(data.item(outcome="failed", findings=[data.finding()])), 1),
        (data.report(data.item(outcome="skipped", reason="needs a GPU")), 3),
        (data.report(data.item(), baselines={"missing": ["a b"]}), 4),
    ],
    ids=["held", "broken", "nothing ran", "stale"],
)
def test_the_latest_results_are_told_beside_them_and_the_verdict_is_the_exit_code(cli, report, code):
    write(report, LATEST)
    ended, out, err = cli()
    assert (ended, err) == (code, "")
    assert out.splitlines() == [judgement(report)[1], "  reports/latest/gate.md", "  reports/latest/report.html"]
    assert all(line in Path("reports/latest", name).read_text() for name in ("gate.md", "report.html") for line in [judgement(report)[1]])


def test_reports_go_where_they_are_told(cli, tmp_path):
    write(HELD, Path("a.json"))
    assert cli("a.json", "--out", "deep/down")[0] == 0
    assert sorted(path.name for path in (tmp_path / "deep/down").iterdir()) == ["gate.md", "report.html"]


def test_the_markdown_fits_a_comment_however_much_was_found(cli):
    write(data.large(3000, 500), LATEST)
    assert cli()[0] == 1
    assert 30_000 < LATEST.with_name("gate.md").stat().st_size <= 60_000


def test_the_same_results_give_the_same_bytes(cli):
    write(data.everything(), LATEST)
    written = []
    for name in ("one", "two"):
        cli("--out", name)
        written.append([(path.name, path.read_bytes()) for path in sorted(Path(name).iterdir())])
    assert written[0] == written[1] and len(written[0]) == 2


def test_committed_results_are_told(cli):
    code, out, _ = cli(HOME / "reports/h200/results.json", "--out", ".", "--bench", HOME / "reports/bench")
    assert (code, out.splitlines()[0]) == (0, "held on NVIDIA H200 (sm_90): 702 of 702 trials, no finding")
    assert Path("report.html").stat().st_size < 400_000
    assert "| 782 | 702 | 0 | 0 | 0 | 0 | 80 | 0 |" in Path("gate.md").read_text()


# ---- several


def test_shards_and_hosts_are_joined_if_asked(cli):
    shards = [data.report(data.item()), data.report(data.item(dtype="fp32", outcome="failed", findings=[data.finding()]))]
    shards.append(data.report(data.item(host=data.INTERPRETER)))
    files = [write(shard, Path(f"{k}/results.json")) for k, shard in enumerate(shards)]
    code, out, _ = cli("--merge", *files)
    merged = Path("reports/merged")
    assert code == 1
    assert out.splitlines()[1:] == [f"  {merged / name}" for name in ("results.json", "gate.md", "report.html")]
    assert counts(load([merged / "results.json"])) == counts(load(files)) == counts(load(files)) | {"trials": 3, "held": 2, "broken": 1}
    assert "NVIDIA H200 (sm_90)" in (merged / "report.html").read_text() and "| `interpreter` |" in (merged / "gate.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.json", "b.json"], "2 files of results: add --merge to join them, or name one"),
        (["--merge"], "--merge joins the files it is given, and there are none"),
        (["--merge", "results.json", "b.json", "--out", "."], "the joined results would overwrite results.json"),
        (["--merge", "a.json", "clash.json"], "is passed in one report and failed in clash.json"),
        (["missing.json"], "cannot read missing.json: No such file or directory"),
        (["damaged.json"], "damaged.json is truncated or no JSON"),
        ([], "cannot read reports/latest/results.json"),
        (["a.json", "--out", "b.json"], "cannot write to b.json: "),
        (["--merge", "a.json", "b.json", "--out", "b.json/c"], "cannot write to b.json/c: "),
        (["a.json", "--bench", "damaged.json"], "damaged.json is no JSON"),
        (["a.json", "--bench", "b.json"], "b.json is no bench, or is damaged"),
        (["a.json", "--bench", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_wrong_use_ends_2_with_one_line_and_writes_nothing(cli, words, told):
    for name in ("a.json", "b.json", "results.json"):
        write(HELD, Path(name))
    write(data.report(data.item(outcome="failed")), Path("clash.json"))
    Path("damaged.json").write_text('{"schema": ')
    before = {path: path.read_bytes() for path in Path().iterdir()}
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert told in only_line(err)
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


# ---- benches


def test_benches_of_the_repository_are_shown_and_what_is_none_is_passed_over(cli):
    write(HELD, LATEST)
    Path("reports/bench").mkdir()
    Path("reports/bench/softmax-h200.json").write_text(json.dumps(data.bench()))
    Path("reports/bench/other.json").write_text('{"points": 1}')
    Path("reports/bench/cut.json").write_text('{"poi')
    assert [bench["operation"] for bench in find_benches()] == ["softmax"]
    assert cli()[0] == 0
    assert "Speed on NVIDIA H200: 6 points" in LATEST.with_name("gate.md").read_text()
    assert "Speed against the floor and peers" in LATEST.with_name("report.html").read_text()


def test_benches_are_taken_from_the_files_and_directories_named(cli, tmp_path):
    write(HELD, LATEST)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/sample-h200.json").write_text(json.dumps(data.bench("sample")))
    (tmp_path / "one.json").write_text(json.dumps(data.bench("logsumexp", points=2)))
    assert cli("--bench", "mine", "--bench", "one.json")[0] == 0
    assert "Speed on NVIDIA H200: 8 points" in LATEST.with_name("gate.md").read_text()


# ---- without the extra


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_what_draws_the_page_the_markdown_is_written_and_the_cure_told(cli, monkeypatch, missing):
    write(HELD, LATEST)
    page = LATEST.with_name("report.html")
    page.write_text("of an earlier run")
    monkeypatch.setitem(sys.modules, missing, None)
    for module in [name for name in sys.modules if name in ("stabcheck.html", "stabcheck.plots") or name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, module)
    code, out, err = cli()
    assert (code, out.splitlines()[1:]) == (0, ["  reports/latest/gate.md"])
    assert "pip install 'stabcheck[report]'" in only_line(err) and missing in err
    assert not page.exists()


def test_another_module_that_is_missing_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "stabcheck.html", raising=False)
    monkeypatch.setitem(sys.modules, "stabcheck.plots", None)
    with pytest.raises(ModuleNotFoundError, match=r"stabcheck\.plots"):
        write_reports(HELD, tmp_path)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file/below: Not a directory; choose another directory with --out"):
        write_reports(HELD, tmp_path / "file/below")
