"""Nucleus: with top-p alone, Σ_{kept} p_i ≥ p, and without its least token less than p; no token dropped is larger than one kept.

Independent of how the keep-set comes about. Kernels break it by dropping the token that crosses p, by a sum that leaves out a tile.
"""

from stabcheck.choices import nucleus
from stabcheck.laws import law


@law("the tokens top-p keeps reach the mass p, and no fewer would", traits=["kept"])
def test_nucleus(case):
    if case.contract.policies["crossing"] == "kept":
        yield from nucleus(case)
