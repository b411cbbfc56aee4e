"""Gradients: each within its bound of the fp64 gradient; their sum over a row is the exact one (0, unless softcap or z-loss pull); and
they are linear: twice the upstream gradient gives twice the gradient.

Near p_t → 1 the target's gradient p_t − 1 is small, and its bound with it: rounding p before the subtraction is found out.

Kernels break it so, by giving ignored rows a gradient, by losing the upstream factor, by dropping the tail of a row.
"""

from stabcheck.laws import law
from stabcheck.variations import scaled_input
from stabcheck.verdicts import Comparison


@law("gradients are within their bounds, sum to their exact sum over a row and are linear in the upstream gradient", traits=["gradient"])
def test_gradients(case):
    got, exact = case.run()["grad"].double(), case.expected["grad"]
    yield Comparison(got, exact.value, exact.bound, exact.free, what="the gradient")
    free = exact.bound.isinf().any(-1) | (False if exact.free is None else exact.free.any(-1))  # an overflow has no sum
    yield Comparison(got.sum(-1), exact.value.sum(-1), exact.bound.sum(-1), free, what="sums of the gradient over rows")
    twice = scaled_input(case, "upstream", 2.0)
    bound = 2 * exact.bound + case.expect(twice)["grad"].bound
    yield Comparison(case.run(twice)["grad"], 2 * got, bound, exact.free, what="twice the upstream gradient with twice the gradient")
