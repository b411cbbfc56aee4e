"""Id in range: an id is in [0, V) whatever the input, NaN, infinities and parameters out of range included; else it is a wild read later.

Kernels break it when a lane beyond the row's end wins the argmax (id = V), or when nothing wins and the id is that of an empty search.
"""

from stabcheck.choices import in_range, without_meaning
from stabcheck.laws import law


@law("ids are in [0, V) for every input, rows that mean nothing included", traits=["ids"])
def test_id_range(case):
    yield from in_range(case, case.run(), "with its limits")
    for what, batch in without_meaning(case):
        yield from in_range(case, case.run(batch), f"with its limits, {what}")
