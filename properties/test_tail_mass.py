"""Tail mass: V − 1 tokens at a gap of 12 to 20 below the head are drawn as often as their mass says.

Each is rare, all together are not. Kernels break it by Gumbel noise −log(−log u) with a u of 24 bits: no draw reaches further than 16.6,
and the last steps before that are coarse.
"""

from stabcheck.laws import law
from stabcheck.tails import tail_masses


@law("the mass of many tokens far below the head is drawn in full", traits=["draws"], gpu=True, row_local=False, once=True, vocab=128256)
def test_tail_mass(case):
    yield from tail_masses(case)
