"""Row isolation: a row's bits do not depend on the contents of other rows. Batch invariance: nor, within the bounds, on how many there are.

A batch of the same shape in which every other row is replaced by NaN must give the remaining rows bit for bit. A kernel may take another
route for fewer rows, so single rows are compared within the bounds, bit for bit if it declares batch_invariant.
A kernel that takes its parameters from pools must find them wherever they lie in the pool.
Kernels break it with tiles that span rows, with row parameters read by slot (TokenSpeed #280), with leftovers of a shared buffer.
"""

from stabcheck.choices import in_pools, run_pooled
from stabcheck.laws import law
from stabcheck.operations.base import of_rows
from stabcheck.variations import with_other_rows_nan


@law("a row's result does not depend on the other rows of the batch", row_local=False)
def test_isolation(case):
    got, rows = case.run(), case.batch.logits.shape[0]
    for parity in (0, 1):
        neighbours = case.run(with_other_rows_nan(case, parity))
        own = slice(parity, None, 2)
        what = "rows between NaN rows with the rows as they were"
        yield case.same_bits(of_rows(neighbours, own), of_rows(got, own), what=what, aligned=False)
    if case.kernel.pooled:
        for what, pools in in_pools(case):
            yield case.same_bits(run_pooled(case, pools), got, what=what)
    few = slice(0, (rows + 2) // 3)
    exact = case.expect(case.batch.pick(few))
    bounds = {name: 0.0 if case.kernel.batch_invariant else 2 * e.bound for name, e in exact.items()}
    free = {name: e.incomparable for name, e in exact.items()}
    yield case.within(
        case.run(case.batch.pick(few)), of_rows(got, few), bounds, free, what="the first third of the rows alone", aligned=False
    )
