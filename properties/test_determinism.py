"""Determinism: the same input gives the same bits, run after run, whatever the memory held before.

Kernels break it with float atomics (the order of additions changes), with races, and by reading memory nothing wrote.
"""

from stabcheck.laws import law


@law("the same input gives the same bits in every run")
def test_determinism(case):
    first = case.run().clone()
    for again in range(3):
        yield case.same_bits(case.run(), first, kind="not deterministic", what=f"run {again + 2} with run 1")
