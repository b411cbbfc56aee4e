"""Offsets of 64 bits: a kernel whose offsets wrap is caught, a right one is not; here they wrap at 2^12, so that it takes no memory."""

import pytest
import torch
from planted import CPU, LAWS, kernel, recipe_of, right
from planted_sampling import RIGHT, VERIFY, right_verifier

from stabcheck.cases import Case
from stabcheck.errors import UnsupportedInput
from stabcheck.guards import run_beyond_int32
from stabcheck.verdicts import summarise

REACH = 1 << 12
SOFTMAX = "temperature_softmax"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """small(free): so much memory is free."""
    monkeypatch.setattr("stabcheck.guards.INT32_REACH", REACH)
    monkeypatch.setattr("stabcheck.guards.LARGE", REACH // 2)

    def memory(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))

    memory(1 << 30)
    return memory


def wrapped(tensor):
    """What a kernel reads whose offsets of rows wrap: rows beyond lie that much before."""
    rows = []
    for r in range(len(tensor)):
        offset = r * tensor.stride(0)
        offset -= 2 * REACH if offset >= REACH else 0
        rows.append(tensor.as_strided(tensor.shape[1:], tensor.stride()[1:], tensor.storage_offset() + offset))
    return torch.stack(rows)


def writes_wrapped(x, t):
    """A softmax whose last row is written where its wrapped offset says."""
    p, out = right(x, t), torch.empty(x.shape)
    out[:-1] = p[:-1]
    out.as_strided(x.shape[1:], (1,), out.storage_offset() + (len(x) - 1) * out.stride(0) - 2 * REACH).copy_(p[-1])
    return out


def case(operation, function, **declared):
    made = recipe_of(operation, [0.0, 1.0, 2.0, 0.5, -1.0, 0.25, 1.5, 0.75], inputs=INPUTS[operation])
    return Case(kernel(function, operation, **declared), CPU, made)


INPUTS = {SOFTMAX: {"temperature": 1.0}, VERIFY: {"draft": 2, "coin": 0.9, "last": 0.5}}
KERNELS = {SOFTMAX: right, VERIFY: right_verifier}


def failures(made):
    """The words on what failed."""
    comparisons = list(LAWS["offsets64"].comparisons(made))
    return [c.what for c, s in zip(comparisons, summarise(comparisons), strict=True) if s.failed]


@pytest.mark.parametrize("operation", KERNELS)
def test_a_right_kernel_holds(operation):
    assert failures(case(operation, KERNELS[operation])) == []


def test_a_softmax_that_reads_a_row_elsewhere_is_caught():
    assert "rows that differ from row 0, whose logits they share" in failures(case(SOFTMAX, lambda x, t: right(wrapped(x), t)))


def test_a_softmax_that_writes_a_row_elsewhere_is_caught():
    told = failures(case(SOFTMAX, writes_wrapped))
    assert told[0].startswith("writes in the guards")


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_verifier_that_reads_a_row_elsewhere_is_caught(which):
    def verify(p, q, drafts, coins):
        return right_verifier(wrapped(p) if which == "target" else p, wrapped(q) if which == "draft" else q, drafts, coins)

    assert failures(case(VERIFY, verify)) == ["rows that differ from row 0, whose logits they share"]


def test_what_a_verifier_is_given_reaches_beyond():
    seen = []

    def verify(p, q, drafts, coins):
        seen.extend((p, q))
        return RIGHT[VERIFY](p, q, drafts, coins)

    run_beyond_int32(case(VERIFY, verify))
    for tensor in seen:
        assert (len(tensor) - 1) * tensor.stride(0) >= REACH
        assert tensor.storage_offset() >= REACH  # room before it for what wraps


def test_a_device_that_is_too_small_is_told_how_much_it_takes(small):
    small(REACH)
    with pytest.raises(UnsupportedInput, match=r"64-bit offsets need .* GiB of free device memory"):
        run_beyond_int32(case(SOFTMAX, right))


def test_so_much_memory_is_asked_for_as_the_verifier_and_its_guards_take(small):
    span = REACH + 8  # elements from the first row to the last
    needed = (
        (span + 2 * REACH) * 12 + span * 4 + 2 * REACH
    )  # logits, p, q with their margins; what one of them replaces; looking at margins
    small(needed - 1)
    with pytest.raises(UnsupportedInput):
        run_beyond_int32(case(VERIFY, right_verifier))
    small(needed)
    run_beyond_int32(case(VERIFY, right_verifier))
