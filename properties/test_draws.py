"""Law of the draws: the ids drawn from one row at many positions have the row's probabilities, bin by bin.

Bins are where samplers go wrong: the argmax, the boundary of the filters, the first token dropped, the tail, ranges and parities of ids.
Counts lie in exact binomial regions; a correct kernel fails an assertion once in 10^9, and then once more with fresh noise. Kernels
break it by rejection that gives up and takes the argmax, by ties that collapse on the lowest id (TokenSpeed #280), by biased noise.
"""

from stabcheck.draws import law_of_draws
from stabcheck.laws import law


@law(
    "counts of many draws from a row, in bins of ids, fit its probabilities",
    traits=["draws"],
    gpu=True,
    row_local=False,
    max_vocab=65537,
    weight=0.4,
)
def test_draws(case):
    yield from law_of_draws(case)
