"""Range: probabilities in [0, 1], log-probabilities at most 0, entropy in [0, log V], losses at least 0.

A limit of 0 is exact, since no rounding of the contract's formulas changes a sign; another, or that of a looser error model, is passed by
no more than the element's bound. Kernels break it by forming log-probabilities as differences of large numbers and entropies as sums of
terms of both signs.
"""

from stabcheck.laws import law
from stabcheck.verdicts import Comparison


@law("every output is in its range: probabilities in [0, 1], logprob ≤ 0, entropy in [0, log V], loss ≥ 0", traits=["ranges"])
def test_range(case):
    results, vocab = case.run(), case.recipe.vocab
    settled = case.settled(results)
    for output in case.operation.outputs:
        got, exact = results[output.name].double(), settled[output.name]
        limits = (("min", output.low), ("max", output.high(vocab) if output.high else None))
        for side, limit in limits:
            if limit is not None:
                exactly = limit == 0 and case.kernel.error_model == "shift_first"
                nearest, bound = got.clamp(**{side: limit}), 0.0 if exactly else exact.bound
                yield Comparison(got, nearest, bound, exact.free, kind="wrong", what=case.named(output.name, f"with its limit {limit:g}"))
