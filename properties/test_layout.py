"""Layout: strides, padding and offsets of the logits change nothing beyond the bounds.

The memory between and around the rows is NaN, so a kernel that reads it is found out. Kernels break it by using V as the row stride
(vLLM #42684) and by assuming contiguous or aligned rows.
"""

from stabcheck.errors import UnsupportedInput
from stabcheck.laws import law
from stabcheck.recipe import Layout
from stabcheck.variations import relaid


@law("padded, strided and offset logits give the same result within the bounds", requires="strides", weight=0.5)
def test_layout(case):
    layouts = (Layout(pad=1), Layout(pad=5, offset=1), Layout(step=2), Layout(pad=3, step=3, offset=7))
    batches = {str(layout): relaid(case, layout) for layout in layouts}
    batches["columns first in memory"] = case.batch.with_logits(case.batch.logits.t().contiguous().t())
    for what, batch in batches.items():
        try:
            yield case.against_reference(case.run(batch), what=what)
        except UnsupportedInput:  # some strides only, say
            continue
