"""Determinism: the same input gives the same bits, run after run, whatever the memory held before.

Kernels break it with float atomics (the order of additions changes), with races, and by reading memory nothing wrote.
"""

from stabcheck.guards import GuardAllocations
from stabcheck.laws import law


@law("the same input gives the same bits in every run", weight=0.5)
def test_determinism(case):
    for batch in case.batches:
        first = case.run(batch)
        for again in range(3):
            yield case.same_bits(case.run(batch), first, kind="not deterministic", what=f"run {again + 2} with run 1")
        with GuardAllocations():
            poisoned = case.run(batch)
        yield case.same_bits(poisoned, first, kind="not deterministic", what="a run in poisoned memory with run 1")
