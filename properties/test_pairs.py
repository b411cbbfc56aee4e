"""Pairs: draws at neighbouring positions, and of neighbouring seeds, are independent of each other.

Counts by the bins of both draws against products of probabilities. Kernels break it by counters that overlap between positions, by keys
that add seed and position, by hashes too weak to part neighbours.
"""

from stabcheck.draws import pair_independence
from stabcheck.laws import law


@law(
    "draws at neighbouring positions and of neighbouring seeds are independent",
    traits=["draws"],
    gpu=True,
    row_local=False,
    max_vocab=16385,
    weight=0.2,
)
def test_pairs(case):
    yield from pair_independence(case)
