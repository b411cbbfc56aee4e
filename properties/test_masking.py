"""Masking = deletion: setting columns to -inf gives 0 there and, elsewhere, what deleting those columns gives.

Kernels break it with finite stand-ins for -inf, with maxima that start at 0, and by NaN when a whole tile is masked (exp(-inf − -inf)).
"""

from stabcheck.laws import law
from stabcheck.variations import with_columns_masked


@law("masking columns with -inf equals deleting them: exactly 0 there, the same elsewhere within the bounds", traits=["masking"])
def test_masking(case):
    masked, kept = with_columns_masked(case)
    exact = case.expect(masked)
    got = case.run(masked)
    yield case.against_reference(got, masked, what="masked columns")
    deleted = masked.with_logits(masked.logits[:, kept])
    expected = case.expect(deleted)
    yield case.within(got[:, kept], case.run(deleted), exact.bound[:, kept] + expected.bound, expected.free, what="masked with deleted")
