"""Permutation: f(x[π], T) = f(x, T)[π], targets moving with their columns. Only the order of summation may differ, and the bound covers
every order. Exact results that depend on positions, as the greedy choice among ties does, are left out.

Kernels break it by treating a block of columns, the tail or the first tile, unlike the others.
"""

from stabcheck.laws import law
from stabcheck.operations.base import of_columns
from stabcheck.variations import both_bounds, random_order


@law("permuting the columns permutes the result, within the bounds", traits=["permutation_equivariant"])
def test_permutation(case):
    order = random_order(case, case.recipe.vocab)
    permuted, lost = case.operation.take_columns(case.batch, order)
    bounds, free = both_bounds(case.expected, case.expect(permuted), order, lost)
    yield case.within(case.run(permuted), of_columns(case.run(), order), bounds, free, what="f(x[π]) with f(x)[π]")
