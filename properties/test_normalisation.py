"""Normalisation: |Σ_i p_i − 1| ≤ Σ_i bound_i; an all -inf row sums to what its policy says.

Kernels break it by letting padding lanes join the sum, by dropping the tail, by a denominator of another row or in a narrow format.
"""

from stabcheck.laws import law
from stabcheck.verdicts import Comparison


@law("every row of probabilities sums to one within the sum of its bounds", traits=["row_sum_one"])
def test_normalisation(case):
    results = case.run()
    got, exact = results["probs"].double(), case.settled(results)["probs"]
    free = None if exact.free is None else exact.free.any(-1)
    yield Comparison(got.sum(-1), exact.value.sum(-1), exact.bound.sum(-1), free, what="row sums")
