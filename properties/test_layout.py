"""Layout: strides, padding and offsets of the logits, and strides of the inputs, change nothing beyond the bounds.

The memory between and around the rows is NaN, so a kernel that reads it is found out. Kernels break it by using V as the row stride
(vLLM #42684), by assuming contiguous or aligned rows, contiguous targets or upstream gradients.
"""

from stabcheck.errors import UnsupportedInput
from stabcheck.laws import law
from stabcheck.recipe import Layout
from stabcheck.variations import relaid, with_inputs_expanded, with_inputs_strided


@law("padded, strided and offset logits give the same result within the bounds", requires="strides", weight=0.5)
def test_layout(case):
    layouts = (Layout(pad=1), Layout(pad=5, offset=1), Layout(step=2), Layout(pad=3, step=3, offset=7))
    batches = {str(layout): relaid(case, layout) for layout in layouts}
    batches["columns first in memory"] = case.batch.with_logits(case.batch.logits.t().contiguous().t())
    batches["every other element of longer inputs"] = with_inputs_strided(case)
    for what, batch in batches.items():
        try:
            yield case.against_reference(case.run(batch), what=what)
        except UnsupportedInput:  # some strides only, say
            continue
    expanded = with_inputs_expanded(case)
    yield case.against_reference(case.run(expanded), expanded, what="the first row's inputs for all rows, stride 0")
