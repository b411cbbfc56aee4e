"""A kernel that does not come back is a finding; alarms of others are theirs."""

import signal

import pytest
import torch

from stabcheck import watchdog
from stabcheck.devices import describe
from stabcheck.findings import Broken
from stabcheck.laws import all_laws
from stabcheck.recipe import Recipe
from stabcheck.registry import make_kernel
from stabcheck.trial import Trial


def hangs(logits, temperature):
    """Never returns for more than two columns, whatever is raised in it."""
    while logits.shape[1] > 2:
        try:
            torch.softmax(logits, -1)
        except Exception:
            continue
    return torch.softmax(logits / temperature[:, None], -1)


def trial():
    return Trial(make_kernel("temperature_softmax", hangs, dtypes=["fp32"]), all_laws()["accuracy"], "fp32", describe("cpu"))


def test_a_kernel_that_hangs_is_a_finding_and_is_not_run_again(monkeypatch):
    monkeypatch.setitem(watchdog.SECONDS, False, 0.3)
    monkeypatch.setattr(watchdog, "_THREADS", [])  # one that looks as often as the new limit asks for
    hung = trial()
    with pytest.raises(Broken) as raised:
        hung(Recipe("temperature_softmax", "fp32", 5))
    assert raised.value.finding.kind == "hang"
    hung(Recipe("temperature_softmax", "fp32", 6))
    assert hung.tally.examples == 1


def test_a_kernel_that_returns_is_counted_and_leaves_no_watch_behind():
    before, calm = signal.getsignal(signal.SIGALRM), trial()
    calm(Recipe("temperature_softmax", "fp32", 2))
    assert (calm.tally.examples, calm.tally.total.compared, calm.lost) == (1, 2, False)
    assert (watchdog._WATCHES, signal.getsignal(signal.SIGALRM)) == ([], before)


def test_the_alarm_of_another_goes_to_the_other():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append("theirs"))
    try:
        with watchdog.watched(False, lambda: None):
            signal.raise_signal(signal.SIGALRM)
        assert heard == ["theirs"]
    finally:
        signal.signal(signal.SIGALRM, before)
