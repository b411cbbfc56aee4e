"""Argmax: k = 1, p → 0 and T = 0 each keep one token: the largest logit, of several the lowest id.

Kernels break it by ties resolved by position in a sort, by 0/0 at T = 0, by a nucleus that may be empty.
"""

from stabcheck.choices import OFF, with_all
from stabcheck.laws import law


@law("k = 1, p = 0 and T = 0 keep or draw the first largest logit", traits=["filters"], weight=0.5)
def test_argmax(case):
    for name, value in (("top_k", 1), ("top_p", 0.0), ("temperature", 0.0)):
        batch = with_all(case, with_all(case, **OFF), **{name: value})
        yield case.against_reference(case.run(batch), batch, what=f"{name} = {value:g} for all rows")
