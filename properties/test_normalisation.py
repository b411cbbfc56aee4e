"""Normalisation: |Σ_i p_i − 1| ≤ Σ_i bound_i and 0 ≤ p_i ≤ 1 + bound_i; an all -inf row sums to what its policy says.

Kernels break it by letting padding lanes join the sum, by dropping the tail, by a denominator of another row or in a narrow format.
"""

from stabcheck.laws import law


@law("every row of probabilities sums to one within the sum of its bounds, and no probability is negative", traits=["row_sum_one"])
def test_normalisation(case):
    got, exact = case.run().double(), case.expected
    free = None if exact.free is None else exact.free.any(-1)
    total, slack = exact.value.sum(-1), exact.bound.sum(-1)
    yield case.within(got.sum(-1), total, slack, free, what="row sums")
    yield case.same_bits(got.clamp(min=0), got, free=exact.free, what="probabilities with their positive parts")
    yield case.within(got, got.clamp(max=1), exact.bound, exact.free, what="probabilities with 1 at most")
