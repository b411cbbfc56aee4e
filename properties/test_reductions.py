"""Reductions: sum is the sum of the rows' losses, mean that sum over the number of rows not ignored (NaN if there are none, as torch has
it), and the gradient of a row is what it would be alone, times the upstream scalar, and over that number.

Kernels break it by dividing by all rows, by adding ignored rows' losses, by an upstream gradient taken for granted.
"""

from stabcheck.errors import UnsupportedInput
from stabcheck.laws import law


@law(
    "sum and mean agree with the losses of the rows that are not ignored, and so do their gradients", traits=["reductions"], row_local=False
)
def test_reductions(case):
    for how in ("sum", "mean"):
        batch = case.batch.with_options(reduction=how)
        try:
            yield case.against_reference(case.run(batch), batch, what=how)
        except UnsupportedInput:  # a kernel that has the other one only
            continue
