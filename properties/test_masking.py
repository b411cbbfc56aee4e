"""Masking = deletion: setting columns to -inf gives 0 there and, elsewhere, what deleting those columns gives.

Rows whose target is among the masked columns cannot be deleted; they are held against the reference only.

Kernels break it with finite stand-ins for -inf, with maxima that start at 0, and by NaN when a whole tile is masked (exp(-inf − -inf)).
"""

from stabcheck.laws import law
from stabcheck.operations.base import of_columns
from stabcheck.variations import both_bounds, with_columns_masked


@law("masking columns with -inf equals deleting them: exactly 0 there, the same elsewhere within the bounds", traits=["masking"])
def test_masking(case):
    masked, kept = with_columns_masked(case)
    got = case.run(masked)
    yield case.against_reference(got, masked, what="masked columns")
    deleted, lost = case.operation.take_columns(masked, kept)
    bounds, free = both_bounds(case.expect(masked), case.expect(deleted), kept, lost)
    yield case.within(of_columns(got, kept), case.run(deleted), bounds, free, what="masked with deleted")
