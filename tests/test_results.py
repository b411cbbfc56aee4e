"""The one results file: what is read, joined, counted and concluded of it, and how it is written.

Each branch of the judgement and of the counts has a case of its own here, so that swapping two of them fails; damaged files are planted.
"""

import json
import math
from pathlib import Path

import pytest
from report_data import H200, INTERPRETER, finding, item, report

from stabcheck.errors import UsageError
from stabcheck.results import counts, document, findings, judgement, load, write

WRONG, NAN = finding("aaaaaa", kind="wrong"), finding("bbbbbb", kind="non-finite")
HELD, SKIPPED = item(property="memory"), item(property="in_place", outcome="skipped", reason="needs a GPU")
BROKEN = item(property="accuracy", outcome="failed", findings=[WRONG])
KNOWN = item(property="order", outcome="known", findings=[NAN], reason="https://example.com/1")
UNEXPECTED = item(property="masking", outcome="unexpected pass", reason="https://example.com/2")
RAISED = item(property="layout", outcome="failed")
CHANGE = {"kernel": "temperature_softmax[auto]", "metric": "accuracy.bf16.ulp", "was": 0.31, "now": 0.62}


def entry(state="known"):
    return {"kernel": "k", "property": "p", "dtype": "bf16", "kind": "wrong", "issue": "https://example.com/1", "state": state}


@pytest.fixture
def file(tmp_path):
    """file(value, name): a results file that holds it, as JSON unless it is text or bytes."""

    def put(value, name="results.json"):
        path = tmp_path / name
        raw = value if isinstance(value, str | bytes) else json.dumps(value)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return path

    return put


# ---- files that cannot be read


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ('{"schema": "stabcheck-report/1", "ite', "is truncated or no JSON"),
        ("", "is truncated or no JSON"),
        (b"\xff\xfe", "is truncated or no JSON"),
        ("[]", "has schema 'list'"),
        ({"schema": "stabcheck-report/2"}, "has schema 'stabcheck-report/2'; this version reads 'stabcheck-report/1'"),
        ({"points": []}, "has schema None"),
        ({"schema": "stabcheck-report/1", "profile": "cpu", "versions": {}}, "lacks 'items'"),
        (report() | {"items": None}, "results.json"),
        (report() | {"items": [{}]}, "results.json"),
        (report() | {"items": [{name: value for name, value in HELD.items() if name != "outcome"}]}, "results.json"),
    ],
    ids=["truncated", "empty", "binary", "list", "newer", "bench", "no items", "items null", "item empty", "item without outcome"],
)
def test_a_file_that_is_no_results_is_named_and_not_taken_for_one(file, raw, told):
    with pytest.raises(UsageError, match=r"results\.json") as raised:
        load([file(raw)])
    assert told in str(raised.value)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*nothing.json: No such file.*; name a results.json that a run wrote"):
        load([tmp_path / "nothing.json"])


def test_many_findings_are_named_in_part():
    found = [item(outcome="failed", findings=[{**NAN, "id": f"{k:06x}"}]) for k in range(20)]
    told = judgement(report(*found))[1]
    assert told.startswith("BROKEN on NVIDIA H200 (sm_90): 20 findings in 20 trials: 000000, ") and told.endswith(", 00000b and 8 more")


def test_results_of_version_0_1_are_read():
    old = load([Path(__file__).parent / "data/results-0.1.json"])
    assert {(i["corpus"], *(str(i["tally"][part]) for part in ("ulps", "by_vocab", "by_magnitude"))) for i in old["items"]} == {
        ("", *["{}"] * 3)
    }
    assert judgement(old)[0] == 0


# ---- several reports as one


def test_shards_and_hosts_are_joined_into_one_report(file):
    other = item(property="memory", host=INTERPRETER)
    one, two = file(report(HELD, BROKEN), "1.json"), file(report(other, SKIPPED), "2.json")
    joined = load([one, two])
    assert counts(joined) | {"trials": 4, "held": 2, "broken": 1, "not_run": 1} == counts(joined)
    assert sorted(host["arch"] for host in joined["hosts"]) == ["interpreter", "sm_90"]
    assert "CPU (interpreter) and NVIDIA H200 (sm_90)" in judgement(joined)[1]


def test_two_answers_on_one_trial_are_no_report(file):
    paths = [file(report(HELD), "1.json"), file(report(HELD | {"outcome": "failed"}), "2.json")]
    with pytest.raises(UsageError, match=r"test_memory\[.*\] on sm_90 is passed in one report and failed in .*2.json; join reports of one"):
        load(paths)


def test_a_finding_is_never_lost_in_joining(file):
    other = BROKEN | {"findings": [NAN]}
    try:
        found = findings(load([file(report(BROKEN), "1.json"), file(report(other), "2.json")]))
    except UsageError:
        return
    assert found.keys() == {"aaaaaa", "bbbbbb"}


def test_the_order_of_the_files_changes_nothing(file):
    more = {"ledger": [entry()], "mutants": {"killed": ["SM1"], "survived": []}}
    one = file(report(HELD, item(property="memory", host=INTERPRETER), **more), "1.json")
    two = file(report(SKIPPED, **more | {"ledger": [entry("stale")], "mutants": {"killed": ["LS4"], "survived": []}}), "2.json")
    assert write(load([one, two]), one.with_name("a.json")).read_bytes() == write(load([two, one]), one.with_name("b.json")).read_bytes()


def test_what_every_shard_says_of_ledger_baselines_and_mutants_is_kept(file):
    first = {
        "ledger": [entry()],
        "baselines": {"state": "compared", "missing": ["k a.b.ulp"]},
        "mutants": {"killed": ["SM1"], "survived": []},
    }
    later = {"ledger": [entry(), entry("stale")], "baselines": {"missing": ["l a.b.ulp"]}, "mutants": {"killed": [], "survived": ["LS4"]}}
    joined = load([file(report(HELD, **first), "1.json"), file(report(SKIPPED, **later), "2.json"), file(report(), "3.json")])
    assert [e["state"] for e in joined["ledger"]] == ["known", "stale"]
    assert joined["baselines"] == {"state": "compared", "missing": ["k a.b.ulp", "l a.b.ulp"]}
    assert joined["mutants"] == {"killed": ["SM1"], "survived": ["LS4"]}


def test_a_shard_that_lost_trials_or_ended_early_fails_the_whole_unless_they_ran_in_another(file):
    held, lost = {"status": 0, "lost": [], "passed_over": [], "deselected": 9}, {"status": 1, "lost": ["test_x"], "passed_over": []}
    other = item(property="layout")
    for order in ((held, lost), (lost, held)):
        paths = [file(report(one, session=session), f"{n}.json") for n, (one, session) in enumerate(zip((HELD, other), order, strict=True))]
        assert "never reported, such as test_x" in judgement(load(paths))[1]
    early = [file(report(HELD, session=held), "1.json"), file(report(other, session=held | {"status": 2}), "2.json")]
    assert judgement(load(early))[0] == 3
    ran = [file(report(HELD, session=held | {"lost": [other["test"]]}), "1.json"), file(report(other, session=held), "2.json")]
    assert judgement(load(ran))[0] == 0


# ---- counts and the verdict


def test_every_trial_is_counted_once_under_its_outcome():
    n = counts(report(HELD, HELD, SKIPPED, BROKEN, BROKEN, BROKEN, KNOWN, UNEXPECTED, RAISED))
    expected = {"held": 2, "not_run": 1, "broken": 3, "known": 1, "unexpected": 1, "errors": 1}
    assert n == expected | {"trials": sum(expected.values()), "findings": 1}


def test_what_is_known_is_no_finding():
    assert findings(report(KNOWN, BROKEN)) == {"aaaaaa": WRONG}


@pytest.mark.parametrize(
    ("items", "more", "code", "told"),
    [
        ([HELD, SKIPPED], {}, 0, "held on NVIDIA H200 (sm_90): 1 of 1 trials, no finding"),
        ([HELD, KNOWN], {"ledger": [entry()]}, 0, "held on NVIDIA H200 (sm_90): 1 of 2 trials, no finding, 1 known to fail"),
        ([KNOWN], {}, 0, "held on NVIDIA H200 (sm_90): 0 of 1 trials, no finding, 1 known to fail"),
        ([item(host=INTERPRETER)], {}, 0, "held on CPU (interpreter): 1 of 1 trials, no finding"),
        ([HELD, BROKEN, SKIPPED], {}, 1, "BROKEN on NVIDIA H200 (sm_90): 1 finding in 2 trials: aaaaaa"),
        ([BROKEN, item(outcome="failed", findings=[NAN])], {}, 1, "BROKEN on NVIDIA H200 (sm_90): 2 findings in 2 trials: aaaaaa, bbbbbb"),
        ([HELD, RAISED], {}, 1, "ERROR on NVIDIA H200 (sm_90): 1 of 2 trials raised outside the kernel"),
        ([HELD], {"baselines": {"loosened": [CHANGE]}}, 1, "LOOSENED on NVIDIA H200 (sm_90): 1 accuracy baseline got worse"),
        (
            [HELD],
            {"mutants": {"survived": ["SM1"]}},
            3,
            "NO VERDICT on NVIDIA H200 (sm_90): the laws did not notice SM1, broken on purpose",
        ),
        ([SKIPPED], {}, 3, "nothing was tested on NVIDIA H200 (sm_90)"),
        ([], {}, 3, "nothing was tested on no device"),
        ([], {"scope": {"since": "main", "left_out": ["k"]}}, 0, "nothing to test: no kernel changed since main"),
        ([SKIPPED], {"scope": {"since": "main", "left_out": []}}, 3, "nothing was tested"),
        ([HELD], {"ledger": [entry("stale"), entry()]}, 4, "STALE on NVIDIA H200 (sm_90): 1 entry of the ledger no longer holds"),
        (
            [UNEXPECTED],
            {"ledger": [entry("unexpected pass")] * 2},
            4,
            "STALE on NVIDIA H200 (sm_90): 2 entries of the ledger no longer hold",
        ),
        ([HELD], {"ledger": [entry("not run")]}, 0, "held"),
        (
            [HELD],
            {"baselines": {"missing": ["a", "b"], "stale": ["c"]}},
            4,
            "STALE on NVIDIA H200 (sm_90): 3 baselines missing or left over",
        ),
        ([HELD], {"baselines": {"tighter": [CHANGE]}}, 0, "held"),
    ],
)
def test_the_verdict_and_its_exit_code(items, more, code, told):
    given, line = judgement(report(*items, **more))
    assert (given, line[: len(told)]) == (code, told)


def test_an_unexpected_pass_is_no_pass_whether_or_not_the_ledger_is_in_the_report():
    assert judgement(report(HELD, UNEXPECTED))[0] == 4


def test_the_gravest_thing_is_the_verdict():
    """Taken away one by one: finding, error, looser baseline, surviving mutant, entry of the ledger, missing baseline."""
    more = {"baselines": {"loosened": [CHANGE], "missing": ["m"]}, "mutants": {"survived": ["SM1"]}, "ledger": [entry("stale")]}
    told = [judgement(report(HELD, *items, **more)) for items in ([BROKEN, RAISED], [RAISED], [])]
    for gone in ({"baselines": {"missing": ["m"]}}, {"mutants": {}}, {"ledger": []}, {"baselines": {}}):
        more |= gone
        told.append(judgement(report(HELD, **more)))
    assert [code for code, _ in told] == [1, 1, 1, 3, 4, 4, 0]
    assert [line.split()[0] for _, line in told] == ["BROKEN", "ERROR", "LOOSENED", "NO", "STALE", "STALE", "held"]


# ---- writing


def test_a_report_is_sorted_has_no_durations_and_one_host_per_device():
    items = [HELD | {"seconds": 1.5}, BROKEN | {"seconds": 0.1}, SKIPPED | {"seconds": 0.0}]
    made = document(items, profile="gate", seed="0")
    assert [i["property"] for i in made["items"]] == ["accuracy", "in_place", "memory"]
    assert "seconds" not in json.dumps(made)
    assert ([(h["device"], h["arch"]) for h in made["hosts"]], made["profile"], made["seed"]) == ([H200], "gate", "0")


def test_the_order_and_speed_of_the_trials_change_no_byte(tmp_path):
    items = [i | {"seconds": float(k)} for k, i in enumerate((HELD, BROKEN, SKIPPED, KNOWN))]
    again = [i | {"seconds": i["seconds"] + 1} for i in reversed(items)]
    one, two = (write(document(order), tmp_path / name) for name, order in (("a", items), ("b", again)))
    assert one.read_bytes() == two.read_bytes()


def test_nan_and_infinities_are_text_in_a_file_that_is_strict_json(tmp_path):
    def forbid(constant):
        raise AssertionError(f"{constant} is no JSON")

    path = write(report(HELD, numbers=[math.nan, {"a": (math.inf, 1.5)}], by={3: -math.inf}), tmp_path / "new/results.json")
    written = json.loads(path.read_text(), parse_constant=forbid)
    assert (written["numbers"], written["by"]) == (["nan", {"a": ["inf", 1.5]}], {"3": "-inf"})


def test_writing_replaces_a_file_in_one_step_or_leaves_it_as_it_was(tmp_path):
    path = write(report(HELD), tmp_path / "results.json")
    with path.open() as reader:  # someone who has it open keeps reading the old one
        write(report(BROKEN), path)
        assert json.load(reader)["items"][0]["outcome"] == "passed"
    with pytest.raises(TypeError):
        write(report(HELD, odd=object()), path)
    assert load([path])["items"][0]["outcome"] == "failed"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.stat().st_mode & 0o777 == 0o644
