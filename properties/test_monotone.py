"""Monotone: x_i ≤ x_j in one row implies p_i ≤ p_j, and equal logits get equal probabilities, up to their numerators' rounding.

Denominator errors are common to the row and cancel, so the slack is p·(κ + division + output rounding): tighter than accuracy at large V.
Kernels break it by mixing up tiles or rows, and by rescaling one block and not another.
"""

from stabcheck.laws import law
from stabcheck.variations import running_maximum
from stabcheck.verdicts import Comparison


@law("a larger logit never gets a smaller probability, and ties are equal, within the rounding of their numerators", traits=["monotone"])
def test_monotone(case):
    got, exact = case.run()["probs"].double(), case.expected["probs"]
    largest, slack = running_maximum(case.batch.logits.double(), got, exact.order())
    got = largest.where(got >= largest, got)  # only falling below counts
    yield Comparison(got, largest, slack, exact.free, kind="order", what="each element with the largest at or below its logit")
