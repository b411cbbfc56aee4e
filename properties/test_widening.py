"""Widening: logits of a narrow format give what the same numbers in fp32 give, up to the rounding of outputs that have the narrow format.

Kernels break it by computing in the narrow format, by rounding the maximum or the target's logit, by a branch of their own for bf16.
"""

from stabcheck.laws import law
from stabcheck.variations import moves


@law("narrow logits give what the same numbers in fp32 give, within the bounds", dtypes=("bf16", "fp16"), weight=0.5)
def test_widening(case):
    if "fp32" in case.kernel.dtypes:
        wide = case.batch.with_logits(case.batch.logits.float())
        here, there = case.expected, case.expect(wide)
        bounds, free = {n: e.bound + there[n].bound for n, e in here.items()}, {n: e.incomparable for n, e in here.items()}
        got = {n: v.double() + moves(here[n].value, there[n].value) for n, v in case.run(wide).items()}  # an upstream may be rounded
        yield case.within(case.run(), got, bounds, free, what=f"{case.recipe.dtype} with fp32 of the same numbers")
