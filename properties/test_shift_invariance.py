"""Shift invariance: f(x + c, T) = f(x, T) for every c for which x + c is exact; a log-sum-exp moves by c.

From y = fl(x + c) and x' = y − c, rows where x' + c = y exactly are compared with each other, each within its bound. Where the common
offset drops out of the bound, this is a law on it. Kernels break it by starting a running maximum at 0, by clamping, by forming lse − x
(PyTorch #11752).
"""

from stabcheck.laws import law
from stabcheck.variations import either, exact_shift, moves, per_output, shifts


@law("adding a constant to a row, where that is exact, changes nothing beyond the bounds", traits=["shift_equivariant"])
def test_shift_invariance(case):
    shifted, base, exact = exact_shift(case)
    here, there = case.expect(base), case.expect(shifted)
    what = f"x + c with x, c = {shifts(case)[0, 0]:g}" if case.recipe.total_rows == 1 else "x + c with x"
    free = {n: either(~per_output(exact, e.value), e.incomparable, there[n].incomparable) for n, e in here.items()}
    got = {n: v.double() + moves(there[n].value, here[n].value) for n, v in case.run(base).items()}
    yield case.within(case.run(shifted), got, {n: e.bound + there[n].bound for n, e in here.items()}, free, what=what)
