"""Accuracy baselines: the figures kept, what is missing, left over, worse and better, and when they are written.

Each list has a case in which exactly one thing belongs into it. Sessions that compare baselines are in test_conclusions.py.
"""

import json
import re

import pytest
from report_data import item

from stabcheck.baselines import advice, file_of, hold, measured, rounded
from stabcheck.errors import UsageError

KERNEL = "temperature_softmax[auto]"
TRIAL = (KERNEL, "accuracy", "bf16")
USE, ULP = "accuracy.bf16.utilisation", "accuracy.bf16.ulp"


def measure(utilisation=0.5, ulp=1.0, kernel=KERNEL, **more):
    total = {"compared": 9, "chances": 0, "utilisation": utilisation, "ulp": ulp}
    return item(kernel, total=total | more.pop("total", {}), **{"ulps": {"0": 9}} | more)


# ---- the figures


@pytest.mark.parametrize(
    ("value", "kept"),
    [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (9.95, 10.0), (0.123, 0.13), (0.12, 0.12), (0.1201, 0.13), (123.4, 130.0), (1e-300, 1e-300),
     (5e-324, 5e-324), (3.14e-40, 3.2e-40), (99.1, 100.0), (2.0**23, 8.4e6)],
)  # fmt: skip
def test_figures_are_kept_to_two_digits_rounded_up(value, kept):
    # once: 0.13 is 0.1300000000000000044 in binary, and becomes 0.14
    assert rounded(value) == pytest.approx(kept, rel=1e-12, abs=0)
    assert rounded(value) >= value * (1 - 1e-15)
    assert rounded(rounded(value)) == rounded(value)  # a figure read from a file is what it was


def test_what_is_measured_of_a_trial():
    assert measured([measure(0.123, 1.05), measure(0.5, 0.0, property="memory", ulps={})]) == {
        KERNEL: {USE: 0.13, ULP: 1.1, "memory.bf16.utilisation": 0.5}
    }


@pytest.mark.parametrize(
    "one",
    [measure(outcome="failed"), measure(outcome="known"), measure(outcome="skipped"), measure(outcome="unexpected pass"),
     measure(total={"compared": 0}), measure(total={"chances": 3}), measure() | {"corpus": "aaaaaa"}],
    ids=["failed", "known", "skipped", "unexpected pass", "compared nothing", "left to chance", "a reproducer"],
)  # fmt: skip
def test_what_did_not_hold_or_was_left_to_chance_has_no_figures(one):
    assert measured([one]) == {}


# ---- the file of a kernel


def test_a_kernel_has_a_file_of_its_name():
    assert file_of("temperature_softmax[online]") == "temperature_softmax-online.json"
    assert file_of("op[v1.2_fast]") == "op-v1.2_fast.json"


@pytest.mark.parametrize("kernel", ["op[a b/c]", "op[../../up]", "op[x[1]]", "op[a:b*c?]", "op[]"])
def test_an_odd_name_makes_a_file_that_any_system_can_hold(kernel):
    assert re.fullmatch(r"op-[\w.-]*\.json", file_of(kernel))


def test_two_kernels_never_share_a_file():
    # once: whatever a file system might not like becomes one hyphen
    assert len({file_of("op[a+b]"), file_of("op[a-b]"), file_of("op[a b]")}) == 3


# ---- held against them


@pytest.fixture
def baselines(tmp_path):
    """baselines(metrics, …, arch): a folder with these figures of the kernel; the folder."""

    def put(metrics=None, kernel=KERNEL, arch="sm_90"):
        if metrics is not None:
            (tmp_path / arch).mkdir(exist_ok=True)
            text = metrics if isinstance(metrics, str) else json.dumps(metrics)
            (tmp_path / arch / file_of(kernel)).write_text(text)
        return tmp_path

    return put


def kept(folder, kernel=KERNEL):
    return json.loads((folder / "sm_90" / file_of(kernel)).read_text())


def lists(ratchet):
    changes = {name: [(c["metric"], c["was"], c["now"]) for c in getattr(ratchet, name)] for name in ("loosened", "tighter", "accepted")}
    return {name: found for name, found in ({"missing": ratchet.missing, "stale": ratchet.stale} | changes).items() if found}


@pytest.mark.parametrize(
    ("was", "collected", "expected"),
    [
        ({USE: 0.5, ULP: 1.0}, {TRIAL}, {}),
        ({USE: 0.5}, {TRIAL}, {"missing": [f"{KERNEL} {ULP}"]}),
        ({USE: 0.49, ULP: 1.0}, {TRIAL}, {"loosened": [(USE, 0.49, 0.5)]}),
        ({USE: 0.5, ULP: 1.1}, {TRIAL}, {"tighter": [(ULP, 1.1, 1.0)]}),
        ({USE: 0.5, ULP: 1.0, "memory.bf16.ulp": 0.0}, {TRIAL}, {"stale": [f"{KERNEL} memory.bf16.ulp"]}),
        ({USE: 0.5, ULP: 1.0, "memory.bf16.ulp": 0.0}, {TRIAL, (KERNEL, "memory", "bf16")}, {}),
        ({USE: 0.5, ULP: 1.0, "memory.bf16.ulp": 0.0}, None, {}),
    ],
    ids=["same", "missing", "loosened", "tighter", "left over", "not run", "partial"],
)
def test_each_change_is_in_the_list_made_for_it(baselines, was, collected, expected):
    assert lists(hold([measure(0.5, 1.0)], collected, baselines(was), "sm_90")) == expected


REFUSED = {"outcome": "skipped", "examples": 1, "total": {"compared": 0}}


@pytest.mark.parametrize(
    "one", [measure(0.1, 0.1, short=3), measure(0.9, 9.0, short=3), measure(short=1, **REFUSED)], ids=["1", "2", "all"]
)
@pytest.mark.parametrize("update", ["", "better", "all"])
def test_a_trial_that_was_short_of_memory_changes_nothing(baselines, one, update):
    folder = baselines({USE: 0.5, ULP: 1.0})
    ratchet = hold([one], {TRIAL}, folder, "sm_90", update)
    assert (lists(ratchet), ratchet.removed) == ({}, [])
    assert {USE: 0.5, ULP: 1.0}.items() <= kept(folder).items()


def test_a_trial_that_its_kernel_refused_leaves_its_baselines_behind(baselines):
    told = lists(hold([measure(unsupported=1, **REFUSED)], {TRIAL}, baselines({USE: 0.5}), "sm_90"))
    assert told == {"stale": [f"{KERNEL} {USE}"]}


def test_noise_below_the_second_digit_is_no_change(baselines):
    folder = baselines({USE: 0.5, ULP: 1.0})
    assert lists(hold([measure(0.49001, 0.99999)], {TRIAL}, folder, "sm_90")) == {}


def test_without_baselines_of_the_architecture_nothing_is_missing(baselines):
    ratchet = hold([measure()], {TRIAL}, baselines({USE: 0.1}, arch="sm_80"), "sm_90")
    assert (ratchet.state, lists(ratchet)) == ("absent", {})


def test_files_of_kernels_that_are_gone_are_left_over_and_removed_when_asked(baselines):
    folder = baselines({USE: 0.5}, kernel="temperature_softmax[gone]")
    baselines({USE: 0.5, ULP: 1.0})
    (stale,) = hold([measure()], {TRIAL}, folder, "sm_90").stale
    assert stale.endswith("sm_90/temperature_softmax-gone.json")
    assert hold([measure()], None, folder, "sm_90").stale == []
    assert hold([measure()], None, folder, "sm_90", "all").state == "updated" and len(list(folder.glob("*/*"))) == 2
    assert lists(hold([measure()], {TRIAL}, folder, "sm_90", "better")) == {}
    assert [path.name for path in folder.glob("*/*")] == [file_of(KERNEL)]


def test_a_kernel_collected_but_not_run_keeps_its_file(baselines):
    folder = baselines({USE: 0.5}, kernel="temperature_softmax[other]")
    hold([measure()], {TRIAL, ("temperature_softmax[other]", "accuracy", "bf16")}, folder, "sm_90", "all")
    assert kept(folder, "temperature_softmax[other]") == {USE: 0.5}


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_what_is_left_over_of_a_kernel_is_told_though_none_of_its_trials_held(baselines, outcome):
    # once: only the files of kernels with something measured are read
    folder = baselines({USE: 0.5, "gone.bf16.ulp": 1.0})
    assert hold([measure(outcome=outcome)], {TRIAL}, folder, "sm_90").stale == [f"{KERNEL} gone.bf16.ulp"]


# ---- written


@pytest.mark.parametrize(
    ("update", "now", "after", "told"),
    [
        ("better", (0.4, 1.0), {USE: 0.4, ULP: 1.0}, {}),
        ("better", (0.6, 0.9), {USE: 0.5, ULP: 0.9}, {"loosened": [(USE, 0.5, 0.6)]}),
        ("all", (0.6, 0.9), {USE: 0.6, ULP: 0.9}, {"accepted": [(USE, 0.5, 0.6)]}),
    ],
)
def test_an_update_keeps_what_is_better_and_what_is_worse_only_if_asked(baselines, update, now, after, told):
    folder = baselines({USE: 0.5, ULP: 1.0, "gone.bf16.ulp": 1.0})
    ratchet = hold([measure(*now)], {TRIAL}, folder, "sm_90", update)
    assert (kept(folder), ratchet.state, lists(ratchet)) == (after, "updated", told)
    assert lists(hold([measure(*now)], {TRIAL}, folder, "sm_90")) == ({} if update == "all" else told)


def test_an_update_of_a_part_keeps_the_rest(baselines):
    folder = baselines({USE: 0.5, ULP: 1.0, "memory.bf16.ulp": 1.0})
    hold([measure(0.4, 0.9)], None, folder, "sm_90", "better")
    assert kept(folder) == {USE: 0.4, ULP: 0.9, "memory.bf16.ulp": 1.0}


def test_the_first_update_makes_a_file_a_kernel_sorted_one_metric_a_line(baselines):
    folder = baselines() / "new"
    hold([measure(property="order"), measure()], {TRIAL}, folder, "sm_90", "better")
    lines = (folder / "sm_90" / file_of(KERNEL)).read_text().splitlines()
    assert lines[1:-1] == [
        ' "accuracy.bf16.ulp": 1.0,',
        ' "accuracy.bf16.utilisation": 0.5,',
        ' "order.bf16.ulp": 1.0,',
        ' "order.bf16.utilisation": 0.5',
    ]


@pytest.mark.parametrize("text", ["{", "", "[]", '{"a": 1}', '{"a.b.c": "1"}', '{"a.b.c": null}', '{"a.b.c": true}', '{"a.b.c": NaN}'])
def test_a_damaged_file_is_named_and_left_as_it_is(baselines, text):
    # once for true and NaN; nothing is ever worse than NaN
    folder = baselines(text)
    with pytest.raises(UsageError, match=r"temperature_softmax-auto\.json.*restore it, or delete it and record it anew"):
        hold([measure()], {TRIAL}, folder, "sm_90", "all")
    assert (folder / "sm_90" / file_of(KERNEL)).read_text() == text


def test_each_list_has_an_advice_of_its_own():
    # once: a kernel's name is cut at its first space
    change = {"kernel": KERNEL, "metric": ULP, "was": 0.31, "now": 0.62}
    about = {"arch": "sm_90", "directory": "b", "missing": [f"{KERNEL} {ULP}", "op[two words] a.b.ulp"], "stale": ["b/sm_90/x.json"],
             "loosened": [change], "tighter": [change], "accepted": [change]}  # fmt: skip
    missing, stale, loosened, cure, accepted, tighter = advice(about)
    assert missing == f"missing: 2 metrics of {KERNEL}, op[two words] have no baseline in b/sm_90; record them with stabcheck gate --update"
    assert stale == "left over: no trial measures b/sm_90/x.json any more; remove them with stabcheck gate --update"
    assert loosened == f"loosened: {KERNEL} {ULP} 0.31 → 0.62"
    assert cure == "mend the kernel, or accept what is looser with stabcheck gate --update-all"
    assert accepted == f"accepted: {KERNEL} {ULP} 0.31 → 0.62"
    assert tighter == f"can be tightened: 1 baselines, such as {KERNEL} {ULP} 0.31 → 0.62; keep it with stabcheck gate --update"
    assert advice({name: [] for name in about}) == []
