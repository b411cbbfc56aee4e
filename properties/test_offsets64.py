"""64-bit offsets: rows × V may exceed 2^31.

Every row of a batch of more than 2^31 elements holds the same logits, so every row of the result must hold the same bits, and they must
be right. Guards of 2^31 elements lie around every buffer: an offset that wraps at 32 bits lands there, not in foreign memory.
Kernels break it by multiplying a 32-bit row index with a 32-bit stride.
"""

from stabcheck.guards import run_beyond_int32
from stabcheck.laws import law
from stabcheck.operations.base import of_rows


@law("offsets beyond 2^31 elements reach the right rows", gpu=True, once=True, big=True, row_local=False)
def test_offsets64(case):
    witnesses, differing_rows, stray = run_beyond_int32(case)
    yield case.no_fault(stray, what="writes in the guards of 2^31 elements around the buffers")
    yield case.no_fault(differing_rows, what="rows that differ from row 0, whose logits they share")
    yield case.against_reference(of_rows(witnesses, slice(0, 1)), case.batch.pick(slice(0, 1)), what="row 0")
