"""Layout: strides, padding and offsets of the logits change nothing beyond the bounds.

The memory between and around the rows is NaN, so a kernel that reads it is found out. Kernels break it by using V as the row stride
(vLLM #42684) and by assuming contiguous or aligned rows.
"""

from stabcheck.laws import law
from stabcheck.recipe import Layout
from stabcheck.variations import relaid


@law("padded, strided and offset logits give the same result within the bounds", requires="strides")
def test_layout(case):
    for layout in (Layout(pad=1), Layout(pad=5, offset=1), Layout(step=2), Layout(pad=3, step=3, offset=7)):
        yield case.against_reference(case.run(relaid(case, layout)), what=str(layout))
    columns_first = case.batch.with_logits(case.batch.logits.t().contiguous().t())
    yield case.against_reference(case.run(columns_first), what="columns first in memory")
