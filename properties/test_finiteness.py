"""Finiteness: got_i is NaN where the policy says NaN, and finite everywhere else.

Kernels break it by overflow before the maximum is subtracted (inf − inf), by exp(-inf − -inf) on a fully masked tile, by 0/0 at T = 0.
"""

from stabcheck.laws import law
from stabcheck.verdicts import ANY_FINITE


@law("the output is finite wherever the exact result is, and NaN only where the policy says so", traits=["accurate", "real"])
def test_finiteness(case):
    got, exact = case.run(), case.expected
    bounds = {name: e.bound.clamp(min=ANY_FINITE) for name, e in exact.items()}  # infinite where the result may overflow
    yield case.within(got, {n: e.value for n, e in exact.items()}, bounds, {n: e.free for n, e in exact.items()}, kind="non-finite")
