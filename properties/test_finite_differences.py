"""Finite differences: the gradient in some columns is (loss(x + h e_j) − loss(x − h e_j))/2h of the fp64 loss, within its own bound and
the difference quotient's: |f‴|·h²/6 of the formula, and the rounding of the two losses over 2h.

This holds the kernel's gradient against the loss itself, whatever the gradient's formula says. Kernels break it with a forgotten option.
"""

from stabcheck.laws import law
from stabcheck.variations import difference_quotient
from stabcheck.verdicts import Comparison


@law("the gradient is the difference quotient of the fp64 loss, in a few columns of each row", traits=["gradient"], weight=0.5)
def test_finite_differences(case):
    columns, quotient, slack, free = difference_quotient(case)
    exact = case.expected["grad"]
    free = free if exact.free is None else free | exact.free[:, columns]
    yield Comparison(
        case.run()["grad"][:, columns], quotient, exact.bound[:, columns] + slack, free, what="gradient with difference quotient"
    )
