"""Disabled filter = no-op: k ≤ 0 or k ≥ V, p ≥ 1 and min_p ≤ 0 give the bits of a call without that filter, beside whatever rows.

Kernels break it by stand-ins for "off" that cut something (min-p = 0 as 1e-20 drops tokens 46 units below the maximum, TokenSpeed #280),
and by a code path that one row's filter switches on for all.
"""

from stabcheck.choices import OFF, with_all, with_every_other_off, with_other_offs
from stabcheck.laws import law
from stabcheck.operations.base import of_rows


@law(
    "a filter that is off changes no bit, however it is switched off and whatever the other rows have", traits=["filters"], row_local=False
)
def test_no_op(case):
    off = with_all(case, **OFF)
    plain = case.run(off)
    yield case.against_reference(plain, off, what="all filters off")
    yield case.same_bits(case.run(with_other_offs(case)), plain, what="filters off by other values")
    for parity in (0, 1):
        own = slice(parity, None, 2)
        mixed = of_rows(case.run(with_every_other_off(case, parity)), own)
        yield case.same_bits(mixed, of_rows(plain, own), what="rows without filters beside rows with them, and beside none", aligned=False)
