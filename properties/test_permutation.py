"""Permutation: f(x[π], T) = f(x, T)[π]. Only the order of summation may differ, and the bound covers every order. Exact results that
depend on positions, as the greedy choice among ties does, are left out.

Kernels break it by treating a block of columns, the tail or the first tile, unlike the others.
"""

from stabcheck.laws import law
from stabcheck.variations import random_order


@law("permuting the columns permutes the result, within the bounds", traits=["permutation_equivariant"])
def test_permutation(case):
    order, exact = random_order(case, case.recipe.vocab), case.expected
    permuted = case.batch.with_logits(case.batch.logits[:, order])
    expected = case.expect(permuted)
    moved = (expected.value - exact.value[:, order]).abs() > 0  # greedy ties: the lowest index wins, wherever it went
    free = moved & (expected.bound == 0)
    free = free if expected.free is None else free | expected.free
    bound = exact.bound[:, order] + expected.bound
    yield case.within(case.run(permuted), case.run()[:, order], bound, free, what="f(x[π]) with f(x)[π]")
