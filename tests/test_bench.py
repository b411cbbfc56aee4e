"""Benches: what a comparison calls slower, the files it takes, the command line; and the recipes for CI."""

import copy
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from stabcheck import bench, ratios
from stabcheck.benchmarks import BENCHMARKS, LOGSUMEXP
from stabcheck.cli import main
from stabcheck.devices import GPU, Device
from stabcheck.errors import UsageError

HOME = Path(__file__).parents[1]
REAL = sorted((HOME / "reports/bench").glob("*.json"))
H200 = Device("cuda", "NVIDIA H200", "sm_90", GPU)


def times(median, spread=0.02):
    return {"median": median, "p20": median * (1 - spread), "p80": median * (1 + spread), "host": 10.0, "memory": 1.0}


def line(ours=10.0, *, copied=8.0, rows=32, **peers):
    point = {"dtype": "bf16", "vocab": 32000, "rows": rows}
    return {"point": point, "copy": times(copied), "ours": times(ours), "variants": {}, "peers": {n: times(us) for n, us in peers.items()}}


def document(*lines, **about):
    known = {"schema": ratios.SCHEMA, "operation": "softmax", "device": "NVIDIA H200", "arch": "sm_90", "torch": "2.11.0"}
    return known | about | {"points": list(lines or [line()])}


def marks(then, now):
    return [change.mark for change in ratios.changes(then, now)]


def shown(then, now):
    file = io.StringIO()
    ratios.show(then, now, Console(width=80, file=file))
    return file.getvalue()


def scaled(timing, factor):
    return timing | {name: timing[name] * factor for name in ("median", "p20", "p80")}


# ---- what is slower


def test_a_bench_beside_itself_has_changed_nowhere():
    assert marks(document(), document()) == [""]


def test_a_point_that_takes_longer_than_both_spreads_is_told_and_no_other():
    then = document(line(rows=1), line(rows=8), line(rows=32))
    now = document(line(rows=1), line(11.5, rows=8), line(rows=32))
    assert marks(then, now) == ["", "slower", ""]
    assert "softmax: 1 of 3 times slower than the base beyond the spreads, most ×1.15 for ours at bf16 8 × 32000" in shown(then, now)


def test_a_point_that_takes_less_is_faster():
    assert marks(document(line(11.5)), document(line(10.0))) == ["faster"]


def test_a_slower_machine_is_no_slower_kernel():
    (change,) = ratios.changes(document(line(10.0, copied=8.0)), document(line(17.0, copied=13.6)))
    assert (change.mark, f"{change.raw:.2f}", f"{change.ratio:.2f}") == ("", "1.70", "1.00")


def test_a_faster_machine_does_not_hide_a_slower_kernel():
    (change,) = ratios.changes(document(line(10.0, copied=8.0)), document(line(10.0, copied=5.6)))
    assert (change.mark, f"{change.raw:.2f}", f"{change.ratio:.2f}") == ("slower", "1.00", "1.43")


# ours and the copy, p20, median and p80, of two runs of one softmax on an H200: over the copies' medians four are slower, two faster
NOISE = [
    ((7.07, 7.07, 7.07), (3.68, 3.9, 3.9), (7.01, 7.1, 7.14), (3.65, 3.74, 3.87)),
    ((7.33, 7.33, 7.36), (4.13, 4.13, 4.35), (7.23, 7.42, 7.46), (4.06, 4.26, 4.29)),
    ((7.78, 7.78, 8.0), (7.07, 7.78, 8.03), (7.87, 7.98, 8.19), (6.91, 7.44, 7.68)),
    ((10.43, 10.53, 10.62), (10.15, 10.96, 11.3), (10.43, 10.51, 10.72), (9.95, 10.66, 10.94)),
    ((8.48, 8.64, 8.7), (3.71, 3.78, 3.94), (8.38, 8.5, 8.6), (3.79, 3.87, 3.94)),
    ((8.86, 8.9, 8.9), (4.58, 4.58, 4.61), (8.93, 8.93, 8.96), (4.54, 4.54, 4.72)),
]


def test_the_noise_of_a_real_machine_is_not_told():
    runs = [[], []]
    for rows, (ours_then, copy_then, ours_now, copy_now) in enumerate(NOISE):
        for run, ours, copied in zip(runs, (ours_then, ours_now), (copy_then, copy_now), strict=True):
            both = {"ours": ours, "copy": copied}
            run.append(line(rows=rows) | {n: dict(zip(("p20", "median", "p80"), t, strict=True)) for n, t in both.items()})
    assert marks(document(*runs[0]), document(*runs[1])) == [""] * len(NOISE)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_slow_down_by_30_percent_is_told_at_each_point_of_a_real_bench(path):
    then = ratios.load(path)[0]
    for i in range(len(then["points"])):
        now = copy.deepcopy(then)
        now["points"][i]["ours"] = scaled(now["points"][i]["ours"], 1.3)
        slower = [change for change in ratios.changes(then, now) if change.mark]
        assert [(c.mark, c.name, [c.dtype, c.vocab, c.rows]) for c in slower] == [
            ("slower", "ours", list(then["points"][i]["point"].values()))
        ]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_medians_that_move_within_the_spreads_of_a_real_bench_are_not_told(path):
    then = ratios.load(path)[0]
    now = copy.deepcopy(then)
    for each in now["points"]:
        each["ours"] = scaled(each["ours"], each["ours"]["p80"] / each["ours"]["median"])
        each["copy"] = scaled(each["copy"], each["copy"]["p20"] / each["copy"]["median"])
    assert not any(marks(then, now))


def test_a_variant_is_compared_by_itself():
    then, now = line(), line()
    then["variants"], now["variants"] = {"ours in place": times(20.0)}, {"ours in place": times(30.0), "ours, new": times(1.0)}
    found = ratios.changes(document(then), document(now))
    assert [(change.name, change.mark) for change in found] == [("ours", ""), ("ours in place", "slower")]


def test_the_fastest_peer_of_each_time_is_named():
    then, now = line(10.0, eager=40.0, compiled=20.0), line(10.0, eager=16.0)
    (change,) = ratios.changes(document(then), document(now))
    assert change.peers == ("0.50 compiled", "0.62 eager")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_ratios_to_peers_are_those_of_the_file(path):
    then = ratios.load(path)[0]
    cells = [ratios.cells(change) for change in ratios.changes(then, then) if change.name == "ours"]
    told = [cell["then / fastest peer"].partition(" ")[0] for cell in cells]
    assert told == [f"{line['ours']['median'] / min(p['median'] for p in line['peers'].values()):.2f}" for line in then["points"]]
    assert [float(t) for t in told] == pytest.approx([line["ours / fastest peer"] for line in then["points"]], abs=0.006)


# ---- what is told


def test_another_device_and_another_torch_are_told_and_the_same_ones_are_not():
    then = document(device="NVIDIA A100", arch="sm_80", torch="2.10.0")
    assert ratios.remarks(then, document()) == [
        "another device: measured on NVIDIA H200 (sm_90), the base on NVIDIA A100 (sm_80); read the ratios by the copy",
        "torch 2.11.0, the base 2.10.0",
    ]
    assert ratios.remarks(document(), document()) == []


def test_points_that_were_not_measured_again_are_told():
    then = document(*(line(rows=rows) for rows in (1, 8, 32, 128, 512)))
    told = "4 of 5 points of the base not measured again: bf16 1 × 32000, bf16 8 × 32000, bf16 128 × 32000 …"
    assert ratios.remarks(then, document(line(rows=32))) == [told]


def test_nothing_in_common_is_told_and_is_no_verdict():
    text = shown(document(line(rows=1)), document(line(rows=2)))
    assert "nothing to compare" in text and "slower" not in text


def test_bytes_counted_in_another_way_are_told():
    (told,) = ratios.remarks(document(floor="read once"), document(floor="read twice"))
    assert told == "the copy is of read twice, the base's of read once: ratios by the copy mean nothing"


def test_the_table_is_as_wide_as_it_needs_and_takes_names_as_they_are():
    then = document(line(**{"[bold]peer[/nothing]": 20.0, "x" * 60: 15.0}))
    text = shown(then, document(line(**{"[bold]peer[/nothing]": 12.0}), device="[/red]"))
    assert "x" * 60 in text and "0.83 [bold]peer[/nothing]" in text and "measured on [/red]" in text
    assert "10.0 (9.8–10.2)" in text and "…" not in text


# ---- files


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_files_from_before_the_schema_had_a_name_are_read(tmp_path):
    old = document()
    del old["schema"]
    assert ratios.load(write(tmp_path / "old.json", old)) == [old]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no JSON"),
        (b"\xff\xfe".decode("latin-1") * 3, "no JSON"),
        ([], "names no operation and device"),
        ({"operation": "softmax", "points": []}, "names no operation and device"),
        ({"operation": "softmax", "device": "NVIDIA H200"}, "lacks something (KeyError: 'points')"),
        (document(schema="stabcheck-report/1"), "its schema is 'stabcheck-report/1'"),
        (document({"point": {"dtype": "bf16"}}), "lacks something (KeyError: 'vocab')"),
        (document(line() | {"point": {"dtype": [], "vocab": 1, "rows": 1}}), "lacks something (TypeError"),
        (document(line() | {"ours": {"median": 1.0}}), "lacks something (KeyError: 'p20')"),
        (document(line() | {"copy": scaled(times(1.0), float("nan"))}), "a time in it is not positive"),
        (document(line() | {"copy": times(0.0)}), "a time in it is not positive"),
        (document(line(eager=-1.0)), "a time in it is not positive"),
        (document(line() | {"ours": times(1.0) | {"p80": "1"}}), "lacks something (TypeError"),
    ],
)
def test_a_damaged_file_is_named_with_its_damage_and_the_cure(tmp_path, content, told):
    path = write(tmp_path / "base.json", content)
    with pytest.raises(UsageError, match="stabcheck bench OPERATION --out") as caught:
        ratios.load(path)
    assert str(path) in str(caught.value) and told in str(caught.value)


def test_a_directory_gives_its_files_of_benches_and_nothing_else(tmp_path):
    write(tmp_path / "softmax-h200.json", document())
    write(tmp_path / "softmax-old.json", document())  # not of its name
    write(tmp_path / "logsumexp-h200.json", document(operation="logsumexp"))
    write(tmp_path / "engine.json", "{}")
    assert [found["operation"] for found in ratios.load(tmp_path)] == ["logsumexp", "softmax"]
    assert ratios.load(tmp_path, "softmax") == [document()]
    with pytest.raises(UsageError, match=r"holds no sample-DEVICE.json; write one with: stabcheck bench sample --out"):
        ratios.load(tmp_path, "sample")


def test_the_base_is_the_one_of_this_device_else_the_only_one():
    h200, a100 = document(), document(device="NVIDIA A100")
    assert ratios.counterpart([a100, h200], "softmax", "NVIDIA H200") is h200
    assert ratios.counterpart([a100], "softmax", "NVIDIA H200") is a100
    assert ratios.counterpart([h200], "logsumexp", "NVIDIA H200") is None
    with pytest.raises(UsageError, match="there for NVIDIA A100, NVIDIA H200, and none for NVIDIA B200; name the file of one"):
        ratios.counterpart([a100, h200], "softmax", "NVIDIA B200")


# ---- the command line


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    """cli(*words): (exit code, standard output, standard error), with base.json and other.json in the directory, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stabcheck.devices.gpu_available", lambda: False)
    write(tmp_path / "base.json", document())
    write(tmp_path / "slow.json", document(line(15.0)))
    write(tmp_path / "other.json", document(operation="logsumexp"))

    def run(*words):
        code = main(["bench", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_two_files_are_compared_without_a_gpu_and_a_slow_down_does_not_change_the_exit_code(cli):
    code, out, _ = cli("--compare", "base.json", "--with", "slow.json")
    assert code == 0
    assert "softmax: 1 of 1 times slower than the base beyond the spreads, most ×1.50 for ours at bf16 32 × 32000" in out


def test_two_directories_are_compared_operation_by_operation(cli, tmp_path):
    for name, ours in (("then", 10.0), ("now", 15.0)):
        (tmp_path / name).mkdir()
        for operation in ("softmax", "logsumexp", *(["sample"] if name == "now" else [])):
            write(tmp_path / name / f"{operation}-h200.json", document(line(ours), operation=operation))
    code, out, _ = cli("--compare", "then", "--with", "now")
    assert code == 0
    assert [text in out for text in ("softmax: 1 of 1", "logsumexp: 1 of 1", "only in one of the two: sample")] == [True] * 3
    assert cli("temperature_softmax", "--compare", "then", "--with", "now")[1].count("times slower") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--compare", "base.json", "--with", "gone.json"), "cannot read gone.json: No such file or directory"),
        (("--compare", "gone.json", "--with", "base.json"), "cannot read gone.json"),
        (("--compare", "base.json", "--with", "other.json"), "base.json is a bench of softmax, other.json of logsumexp"),
        (("logsumexp", "--compare", "base.json", "--with", "slow.json"), "base.json is a bench of softmax, not of logsumexp"),
        (("--with", "base.json"), "give it --compare BASE.json"),
        (("--compare", "base.json", "--with", "slow.json", "--out", "x"), "neither --out nor --peers"),
        (("engine", "--compare", "base.json"), "engine times no kernel"),
        (("softmax", "--compare", "other.json"), "other.json is a bench of logsumexp, not of softmax; name one of softmax"),
        (("softmax", "--compare", "gone.json"), "cannot read gone.json"),
        (("all", "--compare", "."), "holds no OPERATION-DEVICE.json"),
        (("softmx",), "no benchmark of 'softmx'; there is one of temperature_softmax, softmax"),
        (("softmax", "--peers", "fla"), "unknown peer 'fla'; softmax knows torch eager"),
        (("all", "--peers", "fla"), "unknown peer 'fla'; all knows torch eager"),
    ],
)
def test_wrong_use_ends_2_with_one_line(cli, words, told):
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("all",), ("softmax", "--compare", "base.json"), ("cross_entropy", "--peers", "fla-core")])
def test_a_bench_that_would_measure_ends_3_without_a_gpu(cli, words):
    code, _, err = cli(*words)
    assert (code, err) == (3, "stabcheck: bench times kernels on a GPU and torch sees none here; run it on a machine with one\n")


# ---- measuring, with the clock replaced


@pytest.fixture
def gpu(cli, monkeypatch):
    """gpu.ours: the time every kernel takes on a GPU that is not there; gpu.measured: (operation, peers) of each point so far."""

    clock = SimpleNamespace(ours=10.0, measured=[])

    def timing(us):
        return bench.Timing(us, us * 0.98, us * 1.02, 20.0, 1.0)

    def measure(benchmark, point, peers, bandwidth):
        clock.measured.append((benchmark.name, tuple(peers)))
        return bench.Line(point, 4.0, timing(8.0), timing(clock.ours), {}, {name: timing(20.0) for name in peers})

    monkeypatch.setattr("stabcheck.devices.gpu_available", lambda: True)
    monkeypatch.setattr("stabcheck.devices.describe", lambda name: H200)
    monkeypatch.setattr(bench, "_copy_bandwidth", lambda: 4.2e12)
    monkeypatch.setattr(bench, "_measure", measure)
    return clock


def test_what_is_written_says_its_schema_and_can_be_compared(cli, gpu, tmp_path):
    assert cli("softmax", "--out", "reports")[0] == 0
    written = json.loads((tmp_path / "reports/softmax-h200.json").read_text())
    assert (written["schema"], len(written["points"])) == ("stabcheck-bench/1", len(BENCHMARKS["softmax"].points))
    assert "| bf16 | 32000 | 1 | 10.0 (9.8–10.2) | 20.0 |" in (tmp_path / "reports/softmax-h200.md").read_text()
    gpu.ours = 15.0
    code, out, _ = cli("softmax", "--compare", "reports")
    assert code == 0
    assert "softmax: 30 of 30 times slower than the base beyond the spreads, most ×1.50" in out


def test_a_base_is_read_before_it_is_written_over(cli, gpu):
    cli("softmax", "--out", "reports")
    gpu.ours = 15.0
    assert "30 of 30 times slower" in cli("softmax", "--out", "reports", "--compare", "reports")[1]


def test_all_measures_each_operation_once_and_says_which_has_no_base(cli, gpu):
    code, out, _ = cli("all", "--compare", "base.json")
    operations = list(dict.fromkeys(b.name for b in BENCHMARKS.values()))
    assert code == 0
    assert list(dict.fromkeys(name for name, _ in gpu.measured)) == operations
    assert len(gpu.measured) == sum(len(BENCHMARKS[name].points) for name in operations)
    assert out.count("not compared, base.json holds no bench of it") == len(operations) - 1
    assert out.count("times slower") == 1


def test_each_file_is_written_as_soon_as_its_operation_is_measured(cli, gpu, monkeypatch, tmp_path):
    measure = bench._measure

    def breaks(benchmark, *rest):
        if benchmark is LOGSUMEXP:
            raise RuntimeError("CUDA out of memory")
        return measure(benchmark, *rest)

    monkeypatch.setattr(bench, "_measure", breaks)
    with pytest.raises(RuntimeError):
        cli("all", "--out", "reports")
    assert [path.name for path in (tmp_path / "reports").glob("*.json")] == ["softmax-h200.json"]


def test_of_all_operations_each_is_timed_beside_those_of_the_peers_it_knows(cli, gpu):
    cli("all", "--peers", "fla-core", "--peers", "torch eager")
    known = {"softmax": ("torch eager",), "cross_entropy": ("fla-core",), "logsumexp": ("torch eager", "fla-core")}
    assert {name: peers for name, peers in gpu.measured if name in known} == known
    assert {peers for name, peers in gpu.measured if name == "sample"} == {()}
