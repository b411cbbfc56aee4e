"""Keep-set: the tokens with a probability, or drawn, are those that top-k, top-p and min-p keep under the kernel's policies.

The oracle is exact: n tokens of the sorted row, with least ≤ n ≤ most where rounding decides (`stabcheck.operations.filters`). Kernels
break it by measuring top-p on the full mass after top-k (TokenSpeed #280), by keeping all ties of the k-th value, by a pivot search that
gives up.
"""

from stabcheck.choices import kept_or_not
from stabcheck.laws import law


@law("the tokens kept are those the filters keep: none missing, none more, but where rounding decides", traits=["filters"], weight=4)
def test_keep_set(case):
    yield kept_or_not(case, case.run())
