"""Permutation: f(x[π], T) = f(x, T)[π]. Only the order of summation may differ, and the bound covers every order.

Kernels break it by treating a block of columns, the tail or the first tile, unlike the others.
"""

from stabcheck.laws import law
from stabcheck.variations import random_order


@law("permuting the columns permutes the result, within the bounds", traits=["permutation_equivariant"])
def test_permutation(case):
    order = random_order(case, case.recipe.vocab)
    exact = case.expected
    permuted = case.run(case.batch.with_logits(case.batch.logits[:, order]))
    free = None if exact.free is None else exact.free[:, order]
    yield case.within(permuted, case.run()[:, order], 2 * exact.bound[:, order], free, what="f(x[π]) with f(x)[π]")
