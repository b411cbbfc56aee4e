"""In place = out of place: overwriting the input gives what a fresh output gives, at the first call as at any other.

Autotuners are cleared before each call, so that every call is a first one. Kernels break it when an autotuner runs an in-place kernel
several times without restoring its buffer, and by reading what they have already overwritten.
"""

from stabcheck.laws import law
from stabcheck.variations import run_in_place


@law("the in-place form gives what the out-of-place form gives, at the first call too", requires="in_place")
def test_in_place(case):
    for batch in case.batches:
        exact = case.expect(batch)
        bounds, free = {n: 2 * e.bound for n, e in exact.items()}, {n: e.incomparable for n, e in exact.items()}
        yield case.within(run_in_place(case, batch), case.run(batch), bounds, free, what="in place with out of place")
