"""Gradients: each within its bound of the fp64 gradient; their sum over a row is the exact one (0, unless softcap or z-loss pull); and
they are linear: doubling the upstream gradient, which is exact, doubles the gradient but for what underflows.

The bound is p·rel + O(u) before the output's rounding, which is relative to the gradient itself: p_t − 1 may be small near p_t → 1, and a p
rounded to bf16 before the subtraction is found out. That the sums hold follows from the elements; a finding says it in fewer words.
Kernels break it so, by giving ignored rows a gradient, by an upstream factor that is forgotten or taken for 1, by dropping a row's tail.
"""

import torch

from stabcheck.devices import FLUSH, U
from stabcheck.laws import law
from stabcheck.variations import scaled_input
from stabcheck.verdicts import Comparison


@law("gradients are within their bounds, sum to their exact sum over a row and are linear in the upstream gradient", traits=["gradient"])
def test_gradients(case):
    results, exact = case.run(), case.expected["grad"]
    got = results["grad"].double()
    yield dict(zip(case.expected, case.against_reference(results), strict=True))["grad"]
    free = exact.bound.isinf().any(-1) | (False if exact.free is None else exact.free.any(-1))  # an overflow has no sum
    yield Comparison(got.sum(-1), exact.value.sum(-1), exact.bound.sum(-1), free, what="sums of the gradient over rows")
    twice = case.run(scaled_input(case, "upstream", 2.0))["grad"]
    floor = case.contract.input.subnormal + FLUSH
    overflows = exact.bound.isinf() | (2 * got.abs() >= case.contract.input.max)
    slack = torch.where(overflows, torch.inf, 4 * U * got.abs() + 3 * floor)
    yield Comparison(twice, 2 * got, slack, exact.free, what="twice the upstream gradient with twice the gradient")
