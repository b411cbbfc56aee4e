"""Noise keys: every (seed, position, role) has noise of its own; the map from these to the noise is injective.

Checked on dumps: the first variates of a grid of seeds, positions and roles, near 0, 2^31, 2^32 and the ends of int64. Kernels break
it by adding seed and position, by narrowing one of them to 32 bits, by drawing drafts and targets from one stream.
"""

from stabcheck.choices import noise_keys
from stabcheck.laws import law


@law("no two of (seed, position, role) share their noise", traits=["draws"], requires="noise", once=True, row_local=False)
def test_noise_keys(case):
    yield noise_keys(case)
