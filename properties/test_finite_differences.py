"""Finite differences: the gradient in some columns is (loss(x + h e_j) − loss(x − h e_j))/2h of the fp64 loss, within its own bound and
the difference quotient's: |f‴|·h²/6 of the formula, and the rounding of the two losses over 2h.

This holds the kernel's gradient against the loss itself, whatever the gradient's formula says. Kernels break it with a forgotten option.
"""

from stabcheck.laws import law
from stabcheck.variations import difference_quotient
from stabcheck.verdicts import Comparison


@law(
    "the gradient is the difference quotient of the fp64 loss, in a few columns of each row, its target's and its maximum's among them",
    traits=["gradient"],
    weight=0.5,
)
def test_finite_differences(case):
    columns, quotient, slack, free = difference_quotient(case)
    exact = case.expected["grad"]
    free = free if exact.free is None else free | exact.free.gather(1, columns)
    got, bound = case.run()["grad"].gather(1, columns), exact.bound.gather(1, columns) + slack
    yield Comparison(got, quotient, bound, free, what="gradient with difference quotient")
