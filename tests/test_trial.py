"""A trial counts what it examined and raises what it finds, in a way that Hypothesis can shrink and never calls flaky."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from planted import CPU, LAWS, finding_of, five_percent_too_much, inf, kernel, recipe, right, shaky, trial

from stabcheck import UnsupportedInput
from stabcheck.findings import Broken
from stabcheck.items import LawItem
from stabcheck.recipe import Layout
from stabcheck.trial import Outcome, Trial

PLAIN = recipe([0.0, 1.0])


def refuses(logits, temperature):
    raise UnsupportedInput("only multiples of 16")


def raises(logits, temperature):
    raise RuntimeError("out of shared memory\nsecond line")


# ---- counting


def test_a_trial_counts_examples_rows_and_elements():
    examined = trial(right)
    examined(PLAIN)
    examined(recipe([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]))
    assert (examined.tally.examples, examined.tally.rows, examined.tally.elements) == (2, 3, 8)
    assert examined.tally.total.compared == 8


def test_a_refused_input_is_counted_and_neither_a_pass_nor_a_finding():
    examined = trial(refuses)
    examined(PLAIN)
    assert (examined.tally.unsupported, examined.tally.vacuous, examined.tally.total.compared) == (1, 0, 0)
    assert examined.tally.refusal == "only multiples of 16"


def out_of_memory(logits, temperature):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 53.00 GiB")


@pytest.fixture
def crowd(monkeypatch):
    """Others hold most of the memory."""
    monkeypatch.setattr("stabcheck.trial.crowded", lambda device: True)


@pytest.mark.parametrize("where", ["in the kernel", "in the engine"])
def test_memory_that_others_hold_is_no_finding_and_is_counted(where, monkeypatch, crowd):
    examined = trial(out_of_memory if where == "in the kernel" else right)
    if where == "in the engine":
        monkeypatch.setattr("stabcheck.trial.summarise", lambda comparisons: out_of_memory(0, 0))
    examined(PLAIN)
    assert (examined.tally.short, examined.tally.unsupported, examined.tally.total.compared) == (1, 0, 0)
    assert "fewer workers" in examined.tally.refusal


def test_what_was_wrong_before_the_memory_ran_out_is_a_finding(crowd):
    def law(case):
        yield case.same_bits(case.run(), {"probs": torch.full((1, 2), 7.0)})
        out_of_memory(0, 0)

    examined = trial(right)
    examined.law = replace(examined.law, check=law)
    with pytest.raises(Broken):
        examined(PLAIN)


def test_a_law_that_takes_the_memory_itself_is_short_of_it_too():
    examined = trial(out_of_memory)
    examined.law = replace(examined.law, big=True)
    examined(PLAIN)
    assert examined.tally.short == 1


def test_runs_that_were_refused_do_not_make_a_finding_shaky(tmp_path):
    examined = trial(five_percent_too_much)
    found = examined.finding(PLAIN, examined.examine(PLAIN))
    examined.examine = lambda recipe: Outcome(refusal="no memory", short=True)
    item = SimpleNamespace(trial=examined, session_state=SimpleNamespace(report_dir=tmp_path), shrunk=lambda finding: finding)
    assert LawItem.settle(item, found).kind == "wrong"
    examined.examine = lambda recipe: Outcome()
    assert LawItem.settle(item, found).kind == "not deterministic"


def test_a_fault_holds_no_tensors():
    fault = trial(raises).examine(PLAIN).fault
    assert (fault.__traceback__, fault.__cause__, fault.__context__) == (None, None, None)


def test_a_kernel_that_asks_for_more_than_an_empty_device_has_crashed():
    with pytest.raises(Broken, match="Tried to allocate 53"):
        trial(out_of_memory)(PLAIN)


def test_a_law_that_needs_much_memory_runs_alone(monkeypatch):
    beside = []

    @contextmanager
    def noted(device):
        beside.append(device)
        yield

    monkeypatch.setattr("stabcheck.trial.alone", noted)
    examined = trial(right)
    examined(PLAIN)
    assert not beside
    examined.law = replace(examined.law, big=True)
    examined(recipe([0.0, 1.0]))
    assert beside == [examined.device]


def test_an_example_in_which_everything_is_free_is_counted_as_vacuous():
    examined = trial(right)
    examined(recipe([0.0, 1.0], temperature=0.0))
    assert (examined.tally.vacuous, examined.tally.total.free) == (1, 2)


def test_an_empty_batch_is_not_vacuous():
    examined = trial(right)
    examined(PLAIN.with_(siblings=0))
    assert (examined.tally.examples, examined.tally.vacuous) == (1, 0)


def test_regimes_are_counted_in_rows():
    examined = trial(right)
    examined(recipe([0.0], [0.0]))
    assert examined.tally.regimes["V = 1"] == 2


def test_the_example_that_failed_first_is_known():
    examined = trial(lambda x, t: right(x, t) * (1.05 if x.shape[1] > 2 else 1))
    examined(PLAIN)
    for _ in range(2):
        with pytest.raises(Broken):
            examined(recipe([0.0] * 3))
    assert examined.tally.killed_at == 2


def test_the_tally_is_json():
    import json

    examined = trial(right)
    examined(PLAIN)
    assert json.loads(json.dumps(examined.tally.data()))["examples"] == 1


# ---- finding


def found_by(examined, made=PLAIN):
    with pytest.raises(Broken) as raised:
        examined(made)
    return raised.value


def test_a_finding_says_where_it_is_from():
    finding = found_by(trial(five_percent_too_much)).finding
    assert finding.kernel == "temperature_softmax[five_percent_too_much]"
    assert (finding.property_name, finding.dtype, finding.arch, finding.kind) == ("accuracy", "fp32", "interpreter", "wrong")
    assert finding.recipe == PLAIN
    assert finding.target == "planted:five_percent_too_much"


def test_a_kernel_that_raises_is_a_crash_told_in_one_line():
    finding = found_by(trial(raises)).finding
    assert (finding.kind, finding.detail) == ("crash", "RuntimeError: out of shared memory")


def test_an_interrupt_is_no_finding():
    def interrupted(logits, temperature):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial(interrupted)(PLAIN)


def test_each_kind_is_a_type_of_its_own():
    """Hypothesis keeps bugs apart by type and line: one type would hide the second bug."""
    wrong, crash = found_by(trial(five_percent_too_much)), found_by(trial(raises))
    assert type(wrong) is not type(crash)
    assert type(wrong) is type(found_by(trial(five_percent_too_much, dtype="bf16"), PLAIN.with_(dtype="bf16")))


def test_a_failed_recipe_keeps_failing_though_the_kernel_recovers():
    calls = []

    def wrong_at_first(logits, temperature):
        calls.append(1)
        return right(logits, temperature) * (1.05 if len(calls) == 1 else 1)

    examined = trial(wrong_at_first)
    assert found_by(examined).finding is found_by(examined).finding


def test_hypothesis_never_calls_a_shaky_kernel_flaky():
    assert finding_of(trial(shaky)) is not None


def test_the_same_place_is_raised_from_for_every_recipe():
    examined = trial(five_percent_too_much)
    first, second = found_by(examined), found_by(examined, recipe([0.0] * 3))
    assert first.__traceback__ is not None
    assert first.finding.recipe != second.finding.recipe
    assert type(first) is type(second)


def test_time_for_shrinking_the_recipe_ends_and_known_failures_stay(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("stabcheck.trial.seconds", lambda device: now[0])
    examined = trial(five_percent_too_much)
    first = found_by(examined).finding
    now[0] = 1e6
    examined(recipe([0.0] * 3))  # not looked at any more
    assert found_by(examined).finding is first


# ---- examine


def test_examining_counts_nothing():
    examined = trial(right)
    assert examined.examine(PLAIN).ok
    assert examined.tally.examples == 0


def test_rows_that_fail_are_told_apart():
    outcome = trial(lambda x, t: right(x, t) * (1 + (x[:, :1] > 0).float())).examine(recipe([0.0, 1.0], [5.0, 1.0], [0.0, 2.0]))
    assert outcome.failing_rows().tolist() == [False, True, False]


@pytest.mark.parametrize(("law", "function"), [("memory", five_percent_too_much), ("accuracy", raises)])
def test_rows_are_not_told_apart_where_they_cannot_be(law, function):
    outcome = trial(function, law).examine(recipe([0.0, 1.0]))
    assert outcome.fault is None or outcome.failing_rows() is None


def test_a_layout_reaches_the_kernel():
    seen = []
    examined = trial(lambda x, t: seen.append(x.stride()) or right(x, t))
    examined(PLAIN.with_(layout=Layout(4, 2)))
    assert seen == [(8, 2)]


def test_a_policy_the_kernel_declares_is_what_it_is_held_to():
    empty = recipe([-inf, -inf])
    assert Trial(kernel(right), LAWS["accuracy"], "fp32", CPU).examine(empty).ok
    zeros = kernel(right, policies={"empty_row": "zeros"})
    assert Trial(zeros, LAWS["accuracy"], "fp32", CPU).examine(empty).witness().kind == "non-finite"


def test_what_was_compared_before_a_refusal_still_counts():
    """The usual kernel: it takes padded rows, wrongly, and refuses column strides, which the layout law tries next."""

    def kernel(x, t):
        if x.stride(-1) != 1 and x.shape[1] > 1:
            raise UnsupportedInput("columns must be contiguous")
        return right(x, t) if x.is_contiguous() else right(x, t) * 0.5

    assert trial(kernel, "layout").examine(recipe([0.0, 1.0, 2.0], [2.0, 1.0, 0.0])).ok is False


def test_a_kernel_that_fails_only_when_asked_why_is_still_a_finding():
    def kernel(x, t):
        if not x.any():
            raise UnsupportedInput("all zero")
        return right(x, t) * 0.5

    assert found_by(trial(kernel), recipe([5.0])).finding.kind == "wrong"


def test_a_lost_device_is_a_crash_and_nothing_runs_after_it(monkeypatch):
    def lost(comparisons):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("stabcheck.trial.summarise", lost)
    examined = trial(right)
    assert found_by(examined).finding.kind == "crash"
    examined(recipe([1.0, 2.0]))  # neither run nor called a failure
    assert examined.tally.examples == 1


def test_a_buffer_returned_twice_is_told():
    kept = {}

    def kernel(x, t):
        out = kept.setdefault((x.shape, x.dtype), torch.empty_like(x, memory_format=torch.contiguous_format))
        return out.copy_(right(x, t))

    found = found_by(trial(kernel, "permutation"), recipe([0.0, 1.0])).finding
    assert (found.kind, "buffer of an earlier call" in found.detail) == ("memory", True)


def test_a_refused_example_is_not_counted_as_exercised():
    examined = trial(refuses)
    examined(PLAIN)
    assert (examined.tally.examples, examined.tally.rows, examined.tally.elements) == (1, 0, 0)
