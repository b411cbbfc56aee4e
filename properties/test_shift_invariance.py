"""Shift invariance: f(x + c, T) = f(x, T) for every c for which x + c is exact.

From y = fl(x + c) and x' = y − c, rows where x' + c = y exactly are compared with each other, each within its bound. The common offset
drops out of the bound, so this is a law. Kernels break it by starting a running maximum at 0, by clamping, by forming lse − x
(PyTorch #11752).
"""

from stabcheck.laws import law
from stabcheck.variations import exact_shift


@law("adding a constant to a row, where that is exact, changes nothing beyond the bounds", traits=["shift_invariant"])
def test_shift_invariance(case):
    shifted, base, exact = exact_shift(case)
    expected = case.expect(base)
    free = ~exact if expected.free is None else expected.free | ~exact
    yield case.within(case.run(shifted), case.run(base), expected.bound + case.expect(shifted).bound, free, what="x + c with x")
